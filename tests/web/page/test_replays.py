"""Dead letters are replayed and deleted from the page: one, several, and all that a filter means."""

import re

import pytest
from playwright.async_api import Page, expect

from ecotone_fastapi import DeadLetterFilter
from tests.web.page.shop import ChargeCard, Shop
from tests.web.page.visits import list_of, only_id

pytestmark = pytest.mark.chromium


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


async def test_a_dead_letter_that_somebody_else_has_replayed_is_told_to_be_gone(shop: Shop, page: Page) -> None:
    await shop.charge("order-1")
    gone = await only_id(shop)
    await page.goto(f"{shop.address}#/dead-letters/{gone}")
    replay = page.get_by_role("button", name="Replay", exact=True)
    await expect(replay).to_be_visible()
    await shop.ecotone.dead_letters.delete(gone)

    await replay.click()

    await expect(page.locator(".notice.bad")).to_contain_text(gone)
