"""Dead letters are edited on the page, and replayed or kept."""

import pytest
from playwright.async_api import Page, expect

from tests.web.page.shop import ChargeCard, Shop
from tests.web.page.visits import only_id

pytestmark = pytest.mark.chromium


async def test_a_payload_that_is_too_long_is_cut_with_a_mark_and_not_edited(shop: Shop, page: Page) -> None:
    await shop.charge("order-1", note="x" * 100_000)
    await page.goto(f"{shop.address}#/dead-letters/{await only_id(shop)}")

    await expect(page.get_by_text("only the beginning is shown")).to_be_visible()
    await expect(page.get_by_role("region", name="Payload")).to_contain_text("(cut, 100")
    await page.get_by_role("button", name="Edit and replay").click()
    await expect(page.get_by_text("It is too long to be edited here. Its headers can.")).to_be_visible()
    await page.get_by_role("button", name="Replay as edited").click()

    await expect(page.locator(".notice")).to_contain_text("replayed as edited")


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


async def test_a_dead_letter_goes_to_another_channel(shop: Shop, page: Page) -> None:
    await shop.charge("order-1")
    await shop.ecotone.consumers.pause("mails")
    shop.bank.works = True
    await page.goto(f"{shop.address}#/dead-letters/{await only_id(shop)}")
    await page.get_by_role("button", name="Edit and replay").click()

    await page.get_by_label("Replayed to the channel").select_option("mails")
    await page.get_by_role("button", name="Replay as edited").click()

    await expect(page.locator(".notice")).to_contain_text("replayed as edited")
    await page.goto(f"{shop.address}#/channels/mails")
    await expect(page.get_by_role("row").filter(has_text="charge-card")).to_contain_text("order-1")


async def test_a_dead_letter_is_kept_as_edited(shop: Shop, page: Page) -> None:
    await shop.charge("order-1", headers={"tenant": "acme"})
    await page.goto(f"{shop.address}#/dead-letters/{await only_id(shop)}")
    await page.get_by_role("button", name="Edit and replay").click()

    await page.get_by_label("Value of tenant").fill("umbrella")
    await page.get_by_role("button", name="Keep as edited").click()

    await expect(page.locator(".notice")).to_contain_text("kept as edited")
    [kept] = await shop.ecotone.dead_letters.list()
    assert kept.message.headers["tenant"] == "umbrella"
    assert bytes(kept.message.payload) == b'{"order_id":"order-1","amount":5,"note":""}'


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
