"""Dead letters are replayed and deleted from the page: one, several, and all that a filter means."""

import re
from typing import Self

import anyio
import pytest
from playwright.async_api import Page, Request, Route, expect

from ecotone_fastapi import DeadLetterFilter
from tests.web.page.shop import ChargeCard, Shop
from tests.web.page.visits import list_of, only_id, park

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


async def few_at_once(route: Route) -> None:
    """Let a request ask for two dead letters, where the page asks for hundreds."""
    await route.continue_(post_data={**route.request.post_data_json, "limit": 2})


async def test_those_that_are_refused_do_not_keep_the_others_back(shop: Shop, page: Page) -> None:
    for number in range(3):
        await park(shop, f"refused-{number}", "{}", endpoint="gone")
    for number in range(5):
        await park(shop, f"good-{number}", f'{{"order_id":"order-{number}","amount":5}}')
    shop.bank.works = True
    await list_of(shop, page)
    await page.route("**/dead-letters/replay", few_at_once)

    await page.get_by_role("button", name="Replay all 8").click()
    await page.get_by_role("button", name="Replay 8 dead letters").click()

    notice = page.locator(".notice.bad")
    await expect(notice).to_contain_text("5 replayed, 3 refused: ")
    await expect(notice).to_contain_text("gone")
    await expect(page.locator("#dead-letter-count")).to_have_text("3 messages")
    await shop.until(shop.charged, 5)
    await page.unroute("**/dead-letters/replay")


class Pace:
    """Lets a replay take its steps only when the test says so."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.steps = anyio.Semaphore(0)
        self.taken = 0

    async def __aenter__(self) -> Self:
        await self._page.route("**/dead-letters/replay", self._wait)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._page.unroute("**/dead-letters/replay")

    async def _wait(self, route: Route) -> None:
        await self.steps.acquire()
        self.taken += 1
        await few_at_once(route)


async def test_how_far_a_replay_is_can_be_seen_from_every_section_and_it_can_be_ended(shop: Shop, page: Page) -> None:
    for number in range(7):
        await park(shop, f"good-{number}", f'{{"order_id":"order-{number}","amount":5}}')
    shop.bank.works = True
    await list_of(shop, page)
    async with Pace(page) as pace:
        await page.get_by_role("button", name="Replay all 7").click()
        await page.get_by_role("button", name="Replay 7 dead letters").click()
        progress = page.get_by_role("group", name="Replaying dead letters")
        pace.steps.release()
        await expect(progress).to_contain_text("2 of 7")
        await page.get_by_role("link", name="Channels", exact=True).click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Channels")
        pace.steps.release()
        await expect(progress).to_contain_text("4 of 7")

        await progress.get_by_role("button", name="Stop").click()
        await expect(progress.get_by_role("button", name="Stopping")).to_be_visible()
        pace.steps.release()  # the one that was under way

        await expect(page.locator(".notice")).to_contain_text(["6 dead letters replayed, 1 not tried."])
        await expect(progress).to_have_count(0)
        await shop.until(shop.charged, 6)
        assert pace.taken == 3
    assert await shop.parked() == 1


async def test_nobody_begins_a_second_replay_while_one_is_under_way(shop: Shop, page: Page) -> None:
    for number in range(3):
        await park(shop, f"good-{number}", f'{{"order_id":"order-{number}","amount":5}}')
    shop.bank.works = True
    await list_of(shop, page)
    async with Pace(page) as pace:
        await page.get_by_role("button", name="Replay all 3").click()
        await page.get_by_role("button", name="Replay 3 dead letters").click()
        await expect(page.get_by_role("group", name="Replaying dead letters")).to_be_visible()
        await page.get_by_role("link", name="Channels", exact=True).click()
        await page.get_by_role("link", name=re.compile("^Dead letters")).click()  # with buttons that know nothing of it

        await page.get_by_role("row").filter(has_text="good-1").get_by_role("checkbox").check()
        await page.get_by_role("button", name="Replay selected (1)").click()

        await expect(page.locator(".notice.bad")).to_contain_text("A replay is under way already")
        pace.steps.release()
        pace.steps.release()
        await shop.until(shop.charged, 3)
        assert pace.taken == 2


async def test_more_are_replayed_by_one_wish_than_by_one_request(shop: Shop, page: Page) -> None:
    for number in range(230):
        await park(shop, f"good-{number:03}", f'{{"order_id":"order-{number}","amount":5}}')
    shop.bank.works = True
    await list_of(shop, page)
    asked: list[int] = []

    def note(request: Request) -> None:
        if request.url.endswith("/dead-letters/replay"):
            asked.append(len(request.post_data_json["ids"]))

    await expect(page.locator("main tbody tr")).to_have_count(50)
    while await page.get_by_role("button", name="Show more").is_visible():
        shown = await page.locator("main tbody tr").count()
        await page.get_by_role("button", name="Show more").click()
        await expect(page.locator("main tbody tr").nth(shown)).to_be_visible()
    await page.get_by_role("checkbox", name="Select all that are shown").check()

    page.on("request", note)
    try:
        await page.get_by_role("button", name="Replay selected (230)").click()
        await expect(page.locator(".notice")).to_contain_text(["230 dead letters replayed."])
    finally:
        page.remove_listener("request", note)
    await shop.until(shop.charged, 230)
    assert await shop.parked() == 0
    assert (sum(asked), asked[0]) == (230, 50)
    assert len(asked) > 2


async def test_how_many_were_replayed_before_a_failure_is_told(shop: Shop, page: Page) -> None:
    await shop.charge("order-1", "order-2", "order-3")
    shop.bank.works = True
    await list_of(shop, page)
    asked = 0

    async def once(route: Route) -> None:
        nonlocal asked
        asked += 1
        await (few_at_once(route) if asked == 1 else route.abort())

    await page.route("**/dead-letters/replay", once)
    await page.get_by_role("button", name="Replay all 3").click()
    await page.get_by_role("button", name="Replay 3 dead letters").click()

    told = "2 dead letters replayed before this: The application does not answer."
    await expect(page.locator(".notice.bad")).to_contain_text(told)
    await expect(page.locator("#dead-letter-count")).to_have_text("1 message")
    await page.unroute("**/dead-letters/replay")


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


async def test_one_that_somebody_has_edited_meanwhile_is_shown_as_it_is_now_and_not_replayed(
    shop: Shop, page: Page
) -> None:
    await shop.charge("order-1")
    edited = await only_id(shop)
    await page.goto(f"{shop.address}#/dead-letters/{edited}")
    replay = page.get_by_role("button", name="Replay", exact=True)
    await expect(replay).to_be_visible()
    await shop.ecotone.dead_letters.edit(edited, payload=b'{"order_id": "theirs", "amount": 7}')
    shop.bank.works = True

    await replay.click()

    await expect(page.locator(".notice.bad")).to_contain_text("was edited by somebody else meanwhile")
    await expect(page.get_by_role("region", name="Payload")).to_contain_text("theirs")
    assert await shop.parked() == 1
    await replay.click()
    await shop.until(shop.charged, 1)
    assert shop.bank.charged == [ChargeCard("theirs", 7)]
