"""The dead letter in a real browser: looked at and filtered, and nothing in it comes alive."""

from datetime import UTC, datetime
from typing import cast

import pytest
from playwright.async_api import Browser, Page, expect

from ecotone_fastapi.core.message import Message
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore, ParkedMessage
from tests.web.page.shop import SCRIPT, Shop
from tests.web.page.visits import list_of, only_id

pytestmark = pytest.mark.chromium

LARGE = 12345678901234567890  # more than a number of JavaScript can hold


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
