"""The dead letter in a real browser: looked at, filtered, replayed, edited and deleted."""

import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import cast

import pytest
from playwright.async_api import Browser, Page, expect

from ecotone_fastapi import DeadLetterFilter
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.messaging.dead_letter import DeadLetterStore, ParkedMessage
from tests.web.page.shop import SCRIPT, ChargeCard, Shop

pytestmark = pytest.mark.chromium

LARGE = 12345678901234567890  # more than a number of JavaScript can hold
Open = Callable[..., Awaitable[Page]]


async def list_of(shop: Shop, page: Page, filter_: str = "") -> None:
    await page.goto(f"{shop.address}#/dead-letters{filter_}")
    await expect(page.locator("main table")).to_be_visible()


async def only_id(shop: Shop) -> str:
    [one] = await shop.ecotone.dead_letters.list()
    return one.id


async def test_the_counter_falls_when_a_dead_letter_is_replayed_from_the_page(shop: Shop, page: Page) -> None:
    await shop.charge("order-1", "order-2", "order-3")
    await list_of(shop, page)
    badge = page.get_by_role("link", name=re.compile("^Dead letters")).locator(".badge")
    await expect(badge).to_have_text("3")
    shop.bank.works = True

    await page.get_by_role("row").filter(has_text="order-2").get_by_role("link").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Dead letter: ChargeCard")
    await page.get_by_role("button", name="Replay", exact=True).click()

    await expect(page.locator(".notice")).to_contain_text("was replayed")
    await expect(page.locator("#dead-letter-count")).to_have_text("2 messages")
    await expect(badge).to_have_text("2")
    await shop.until(shop.charged, 1)
    assert shop.bank.charged == [ChargeCard("order-2", 5)]


async def test_the_list_is_filtered_by_handler_error_channel_and_text(shop: Shop, page: Page) -> None:
    await shop.charge("order-1", "order-2")
    await shop.receipt("order-3")
    await list_of(shop, page)
    counter = page.locator("#dead-letter-count")
    await expect(counter).to_have_text("3 messages")
    await expect(page.locator("#known-handlers option[value=charge-card]")).to_have_count(1)

    for field, value, found in [
        ("Handler", "charge-card", 2),
        ("Error", "TimeoutError", 1),
        ("Channel", "payments", 2),
        ("Text", "order-2", 1),
        ("Tenant", "nobody", 0),
    ]:
        await page.get_by_label(field, exact=True).fill(value)
        await page.keyboard.press("Enter")
        await expect(counter).to_have_text(f"{found} message{'s' if found != 1 else ''} with this filter")
        await expect(page.locator("main tbody tr")).to_have_count(found)
        assert value in page.url
        await page.get_by_role("button", name="Clear the filter").click()
        await expect(counter).to_have_text("3 messages")


async def test_the_list_is_filtered_by_time(shop: Shop, page: Page) -> None:
    await shop.charge("order-1")
    await list_of(shop, page)

    await page.get_by_role("combobox", name="Parked", exact=True).select_option("Last hour")
    await expect(page.locator("#dead-letter-count")).to_have_text("1 message with this filter")
    await page.get_by_role("combobox", name="Parked", exact=True).select_option("Between …")
    await page.get_by_label("Until").fill("2020-01-01T00:00:00")
    await page.get_by_role("button", name="Filter", exact=True).click()

    await expect(page.locator("#dead-letter-count")).to_have_text("0 messages with this filter")
    await expect(page.get_by_text("No dead letter is meant by this filter.")).to_be_visible()


async def test_a_filter_is_in_the_address_and_is_kept_on_the_way_back(shop: Shop, page: Page) -> None:
    await shop.charge("order-1")
    await shop.receipt("order-2")
    await list_of(shop, page, "?error=CardError")

    await expect(page.locator("main tbody tr")).to_have_count(1)
    await page.locator("main tbody a").click()
    await page.get_by_role("link", name="← All dead letters").click()

    await expect(page.get_by_label("Error", exact=True)).to_have_value("CardError")
    await expect(page.locator("main tbody tr")).to_have_count(1)


async def test_a_dead_letter_is_shown_with_its_payload_headers_and_traceback(shop: Shop, page: Page) -> None:
    await shop.charge("order-1", amount=LARGE, headers={"tenant": "acme"})
    await page.goto(f"{shop.address}#/dead-letters/{await only_id(shop)}")

    await expect(page.get_by_role("region", name="Payload")).to_have_text(
        '{\n  "order_id": "order-1",\n  "amount": 12345678901234567890,\n  "note": ""\n}'
    )
    await expect(page.get_by_role("row").filter(has_text="tenant")).to_contain_text("acme")
    await expect(page.get_by_role("region", name="Traceback")).to_contain_text("raise CardError")
    await expect(page.locator(".failure")).to_contain_text("card refused for order-1")
    await expect(page.locator(".facts")).to_contain_text("charge-card")


async def test_a_payload_that_is_too_long_is_cut_with_a_mark_and_not_edited(shop: Shop, page: Page) -> None:
    await shop.charge("order-1", note="x" * 100_000)
    await page.goto(f"{shop.address}#/dead-letters/{await only_id(shop)}")

    await expect(page.get_by_text("only the beginning is shown")).to_be_visible()
    await expect(page.get_by_role("region", name="Payload")).to_contain_text("(cut, 100")
    await page.get_by_role("button", name="Edit and replay").click()
    await expect(page.get_by_text("It is too long to be edited here. Its headers can.")).to_be_visible()
    await page.get_by_role("button", name="Replay as edited").click()

    await expect(page.locator(".notice")).to_contain_text("replayed as edited")


async def test_a_payload_that_is_no_text_is_shown_as_base64(shop: Shop, page: Page) -> None:
    store = cast("DeadLetterStore", shop.ecotone.assembly.services[DeadLetterStore])
    await store.park(
        ParkedMessage(
            id="foreign",
            message=Message(b"\xff\x00\x01", {}),
            channel="payments",
            endpoint=None,
            error_type="builtins.ValueError",
            error_message="",
            traceback="",
            attempts=1,
            deliveries=1,
            parked_at=datetime.now(UTC),
        )
    )
    await list_of(shop, page)
    await page.get_by_role("link", name="Message", exact=True).click()

    await expect(page.get_by_role("region", name="Payload")).to_have_text("/wAB")
    await expect(page.get_by_text("There is none: the handler never ran.")).to_be_visible()
    await expect(page.get_by_text("It has no headers.")).to_be_visible()


async def test_script_tags_in_payloads_headers_and_errors_are_only_shown(shop: Shop, page: Page) -> None:
    await shop.charge(f"order-1{SCRIPT}", note=SCRIPT, headers={"note": SCRIPT, "tenant": SCRIPT})
    await list_of(shop, page)
    await expect(page.get_by_text("onerror=").first).to_be_visible()

    await page.locator("main tbody a").click()
    await expect(page.locator(".failure")).to_contain_text(SCRIPT)
    await expect(page.get_by_role("row").filter(has_text="note")).to_contain_text(SCRIPT)
    await page.get_by_role("button", name="Edit and replay").click()
    await expect(page.get_by_label("Value of note")).to_have_value(SCRIPT)

    assert await page.locator("#view script, #view img").count() == 0


async def test_a_script_that_comes_into_the_page_could_neither_run_nor_tell_anybody(
    shop: Shop, browser: Browser
) -> None:
    # The policy is the second wall: here the first one is torn down on purpose.
    page = await browser.new_page()
    await page.goto(shop.address)

    refused = await page.evaluate(
        """async () => {
            const told = [];
            document.addEventListener("securitypolicyviolation", event => told.push(event.effectiveDirective));
            const image = document.createElement("img");
            try { image.setAttribute("onerror", "document.title = 'run'"); } catch { told.push("markup"); }
            try { document.body.innerHTML += "<b>bold</b>"; } catch { told.push("markup"); }
            image.src = "http://127.0.0.2/?told";
            const style = document.createElement("link");
            Object.assign(style, { rel: "stylesheet", href: "http://127.0.0.2/?told" });
            document.head.append(image, style);
            await fetch("http://127.0.0.2/?told").catch(() => told.push("fetch"));
            while (!["img-src", "style-src-elem", "connect-src"].every(one => told.includes(one))) {
                await new Promise(requestAnimationFrame);
            }
            return told;
        }"""
    )

    assert refused.count("markup") == 2
    assert "fetch" in refused
    assert "run" not in await page.title()
    await page.close()


async def test_several_that_are_selected_are_replayed(shop: Shop, page: Page) -> None:
    await shop.charge("order-1", "order-2", "order-3")
    await list_of(shop, page)
    shop.bank.works = True
    for order in ("order-1", "order-3"):
        await page.get_by_role("row").filter(has_text=order).get_by_role("checkbox").check()

    await page.get_by_role("button", name="Replay selected (2)").click()

    await expect(page.locator("#dead-letter-count")).to_have_text("1 message")
    await expect(page.locator("main tbody tr")).to_contain_text(["order-2"])
    await shop.until(shop.charged, 2)
    assert [one.order_id for one in shop.bank.charged] == ["order-1", "order-3"]


async def test_all_that_a_filter_means_are_replayed_after_a_confirmation(shop: Shop, page: Page) -> None:
    await shop.charge("order-1", "order-2", "order-3")
    await shop.receipt("order-4")
    shop.bank.works = True
    await list_of(shop, page, "?error=CardError")

    await page.get_by_role("button", name="Replay all 3 of this filter").click()
    question = page.get_by_role("dialog")
    await expect(question).to_contain_text("Meant are those whose error is “CardError”.")
    await question.get_by_role("button", name="Replay 3 dead letters").click()

    await expect(page.locator(".notice")).to_have_text(re.compile("^3 dead letters replayed"))
    await expect(page.locator(".badge:visible")).to_have_text(["1"])
    await shop.until(shop.charged, 3)
    assert await shop.ecotone.dead_letters.count(DeadLetterFilter(error_type="TimeoutError")) == 1


async def test_nothing_is_replayed_without_the_confirmation(shop: Shop, page: Page) -> None:
    await shop.charge("order-1")
    shop.bank.works = True
    await list_of(shop, page)
    everything = page.get_by_role("button", name="Replay all 1")

    await everything.click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    await page.keyboard.press("Escape")

    await expect(page.get_by_role("dialog")).to_have_count(0)
    await expect(everything).to_be_focused()
    assert await shop.parked() == 1


async def test_all_are_deleted_only_when_their_number_was_typed(shop: Shop, page: Page) -> None:
    await shop.charge("order-1", "order-2")
    await list_of(shop, page)
    await page.get_by_role("button", name="Delete all 2").click()
    question = page.get_by_role("dialog")
    delete = question.get_by_role("button", name="Delete 2 dead letters")

    await question.get_by_role("textbox").fill("3")
    await expect(delete).to_be_disabled()
    await question.get_by_role("textbox").fill("2")
    await delete.click()

    await expect(page.get_by_text("There are no dead letters.")).to_be_visible()
    assert await shop.parked() == 0


async def test_one_is_deleted(shop: Shop, page: Page) -> None:
    await shop.charge("order-1")
    await page.goto(f"{shop.address}#/dead-letters/{await only_id(shop)}")

    await page.get_by_role("button", name="Delete …").click()
    await expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    await page.get_by_role("button", name="Delete it").click()

    await expect(page.get_by_text("There are no dead letters.")).to_be_visible()
    assert await shop.parked() == 0


async def test_a_dead_letter_is_edited_and_replayed(shop: Shop, page: Page) -> None:
    await shop.charge("order-1", headers={"tenant": "acme", "old": "yes"})
    await page.goto(f"{shop.address}#/dead-letters/{await only_id(shop)}")
    await page.get_by_role("button", name="Edit and replay").click()
    payload = page.get_by_label("Payload", exact=True).and_(page.get_by_role("textbox"))

    await payload.fill((await payload.input_value()).replace('"amount": 5', '"amount": 0'))
    await page.get_by_label("Value of tenant").fill("umbrella")
    await page.get_by_role("button", name="Remove the header old").click()
    await page.get_by_role("button", name="Add a header").click()
    await page.get_by_label("Name of the header").last.fill("mended_by")
    await page.get_by_label("Value of the header").last.fill("ada")
    await page.get_by_role("button", name="Replay as edited").click()

    await expect(page.locator(".notice")).to_contain_text("replayed as edited")
    await shop.until(shop.charged, 1)
    [headers] = shop.bank.headers
    assert shop.bank.charged == [ChargeCard("order-1", 0)]
    assert (headers["tenant"], headers["mended_by"], "old" in headers) == ("umbrella", "ada", False)


async def test_what_is_no_json_any_more_is_not_sent(shop: Shop, page: Page) -> None:
    await shop.charge("order-1")
    await page.goto(f"{shop.address}#/dead-letters/{await only_id(shop)}")
    await page.get_by_role("button", name="Edit and replay").click()
    payload = page.get_by_label("Payload", exact=True).and_(page.get_by_role("textbox"))

    await payload.fill('{"order_id": ')
    await page.get_by_role("button", name="Replay as edited").click()

    await expect(page.locator(".fault")).to_contain_text("This is no JSON")
    await expect(payload).to_be_focused()
    assert await shop.parked() == 1


async def test_what_the_api_refuses_is_told_and_nothing_is_lost(shop: Shop, page: Page) -> None:
    await shop.charge("order-1")
    await page.goto(f"{shop.address}#/dead-letters/{await only_id(shop)}")
    await page.get_by_role("button", name="Edit and replay").click()

    await page.get_by_label("Value of endpoint").fill("gone")
    await page.get_by_role("button", name="Replay as edited").click()

    await expect(page.locator(".notice.bad")).to_contain_text("gone")
    await expect(page.get_by_label("Value of endpoint")).to_have_value("gone")
    assert await shop.parked() == 1


async def test_a_dead_letter_that_somebody_else_has_replayed_is_told_to_be_gone(shop: Shop, page: Page) -> None:
    await shop.charge("order-1")
    gone = await only_id(shop)
    await page.goto(f"{shop.address}#/dead-letters/{gone}")
    replay = page.get_by_role("button", name="Replay", exact=True)
    await expect(replay).to_be_visible()
    await shop.ecotone.dead_letters.delete(gone)

    await replay.click()

    await expect(page.locator(".notice.bad")).to_contain_text(gone)


async def test_more_than_one_page_can_be_seen(shop: Shop, page: Page) -> None:
    await shop.charge(*[f"order-{number}" for number in range(53)])
    await list_of(shop, page)

    await expect(page.locator("main tbody tr")).to_have_count(50)
    await page.get_by_role("button", name="Show more").click()

    await expect(page.locator("main tbody tr")).to_have_count(53)
    await expect(page.get_by_role("button", name="Show more")).to_be_hidden()


async def test_a_list_in_use_says_that_it_has_changed_and_does_not_move(shop: Shop, page: Page) -> None:
    await shop.charge("order-1")
    await list_of(shop, page)
    await page.get_by_role("row").filter(has_text="order-1").get_by_role("checkbox").check()

    await shop.charge("order-2")

    await expect(page.get_by_text("The dead letter has changed: 2 messages now.")).to_be_visible()
    await expect(page.locator("main tbody tr")).to_have_count(1)
    await page.get_by_role("button", name="Show it as it is now").click()
    await expect(page.locator("main tbody tr")).to_have_count(2)
    await expect(page.get_by_role("row").filter(has_text="order-1").get_by_role("checkbox")).to_be_checked()
