"""The other sections in a real browser: overview, channels, scheduled messages, projections, handlers, message flow."""

import os
import re
import socket
from collections.abc import Awaitable, Callable

import pytest
from fastapi import Depends
from playwright.async_api import Page, expect

from ecotone_fastapi import ScheduledMessages, asynchronous, command_handler
from ecotone_fastapi.adapters.rabbitmq import RabbitMQChannel
from tests.web.page.shop import MoneyWasMoved, RemindCustomer, Shop, anybody

pytestmark = pytest.mark.chromium

Open = Callable[..., Awaitable[Page]]


async def go_to(page: Page, section: str) -> None:
    await page.get_by_role("navigation").get_by_role("link", name=re.compile(f"^{section}")).click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(section)


def tile(page: Page, name: str) -> object:
    return page.locator(".tile").filter(has=page.get_by_text(name, exact=True))


def row(page: Page, text: str) -> object:
    return page.get_by_role("row").filter(has=page.get_by_role("rowheader", name=text))


async def test_the_overview_shows_how_much_there_is_and_what_needs_attention(shop: Shop, page: Page) -> None:
    await expect(page.get_by_text("Nothing needs attention.")).to_be_visible()
    await expect(page.locator("#connection-text")).to_have_text("Live")

    await shop.charge("order-1", "order-2")
    await shop.ecotone.command_bus.send(RemindCustomer("order-1"))
    await shop.ecotone.consumers.pause("mails", reason="the mail server moves")

    await expect(tile(page, "Dead letters")).to_contain_text("2")
    await expect(tile(page, "Scheduled")).to_contain_text("1")
    await expect(tile(page, "Consumers")).to_contain_text("1 paused")
    concerns = page.get_by_role("list", name="What needs attention")
    await expect(concerns).to_contain_text("mails is paused: the mail server moves")
    await expect(concerns).to_contain_text("2 messages in the dead letter")
    await concerns.get_by_role("link", name="2 messages in the dead letter").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Dead letters")


@pytest.mark.parametrize("section", ["overview", "channels"])
async def test_what_a_table_is_about_is_said_once(shop: Shop, page: Page, section: str) -> None:
    await page.goto(f"{shop.address}#/{section}")

    await expect(page.get_by_role("table", name="Channels")).to_be_visible()
    told = page.get_by_role("main").get_by_text("Channels", exact=True)
    await expect(told).to_have_count(1)
    await expect(told).to_have_role("heading")


async def test_a_server_that_does_not_answer_is_told(shop: Shop, page: Page) -> None:
    shop.bank.down = True

    await page.reload()

    await expect(page.get_by_role("list", name="What needs attention")).to_contain_text(
        "The server bank does not answer: ChannelError: the line is dead"
    )


async def test_a_broker_that_is_down_is_told_with_what_waits_for_it(sqlite_url: str, opening: Open) -> None:
    @asynchronous("parcels")
    @command_handler("ship", id="ship")
    async def ship(order_id: str) -> None: ...

    broker = RabbitMQChannel("parcels", "amqp://127.0.0.1:9/")
    async with Shop(sqlite_url, operations=[Depends(anybody)], handlers=[ship], channels=[broker]).served() as shop:
        await shop.ecotone.command_bus.send("order-1", to="ship")
        page = await opening(shop.address)

        await expect(tile(page, "Outbox")).to_contain_text("1")
        await expect(page.get_by_role("list", name="What needs attention")).to_contain_text(
            re.compile("parcels has broken off and tries again .* ChannelError")
        )
        await expect(page.locator(".concerns li").filter(has_text="parcels")).to_have_count(1)
        await go_to(page, "Channels")
        lanes = page.get_by_role("table", name="Outbox")
        await expect(lanes.get_by_role("row", name="parcels")).to_contain_text("outbox")
        await expect(lanes.get_by_role("row", name="parcels")).to_contain_text(
            re.compile(r"cannot be reached, \d+ attempts?: ChannelError")
        )
        others = page.get_by_role("table", name="What else runs beside the application")
        await expect(others.get_by_role("row", name=re.compile("^outbox"))).to_be_visible()


async def test_it_is_said_of_which_process_consumers_are_shown(shop: Shop, page: Page) -> None:
    await go_to(page, "Channels")

    here = f"{socket.gethostname()}:{os.getpid()}"
    await expect(page.locator("main")).to_contain_text(f"are those of the process {here}")
    await expect(page.locator("main")).to_contain_text("What other processes run is not shown here")


async def test_what_waits_on_a_channel_is_shown(shop: Shop, page: Page) -> None:
    await shop.ecotone.command_bus.send(RemindCustomer("order-1"), headers={"tenant": "acme"})
    await go_to(page, "Channels")

    await page.get_by_role("link", name="mails").click()

    await expect(page.get_by_role("heading", level=1)).to_have_text("Channel mails")
    waiting = row(page, "RemindCustomer")
    await expect(waiting).to_contain_text('{"order_id":"order-1"}')
    await waiting.get_by_text("Payload and headers").click()
    await expect(waiting).to_contain_text("tenant: acme")
    await expect(page.get_by_role("button", name="Pause mails")).to_be_visible()


async def test_a_consumer_is_paused_with_a_reason_and_resumed(shop: Shop, page: Page) -> None:
    await go_to(page, "Channels")

    await page.get_by_role("button", name="Pause mails").click()
    await page.get_by_label("Why, for those who come after you").fill("the mail server moves")
    await page.get_by_role("dialog").get_by_role("button", name="Pause").click()

    await expect(row(page, "mails")).to_contain_text("the mail server moves")
    await expect(row(page, "mails")).to_contain_text("paused")
    await page.get_by_role("button", name="Resume mails").click()
    await expect(row(page, "mails")).to_contain_text("running")


async def test_a_scheduled_message_is_put_off_and_cancelled(shop: Shop, page: Page) -> None:
    for order in ("order-1", "order-2"):
        await shop.ecotone.command_bus.send(RemindCustomer(order))
    await go_to(page, "Scheduled")
    await expect(row(page, "reminder-order-1")).to_contain_text("in 2 d 23 h")

    await page.get_by_role("button", name="Reschedule reminder-order-1").click()
    await page.get_by_label("Moment").fill("2099-01-01T12:00:00")
    await page.get_by_role("dialog").get_by_role("button", name="Reschedule").click()
    await expect(row(page, "reminder-order-1")).to_contain_text("2099")

    await page.get_by_role("button", name="Cancel reminder-order-1").click()
    await page.get_by_role("button", name="Cancel it").click()
    await expect(row(page, "reminder-order-1")).to_have_count(0)
    await expect(row(page, "reminder-order-2")).to_have_count(1)
    waiting = shop.ecotone.assembly.services[ScheduledMessages]
    assert [one.key for one in await waiting.list()] == ["reminder-order-2"]


async def test_a_projection_is_rebuilt_and_how_far_it_is_can_be_seen(shop: Shop, page: Page) -> None:
    for amount in range(3):
        await shop.ecotone.command_bus.send(MoneyWasMoved("ada", amount))
    await go_to(page, "Projections")
    await expect(row(page, "balances")).to_contain_text("live")
    await expect(row(page, "balances")).to_contain_text(f"run by {socket.gethostname()}:{os.getpid()}:")

    await page.get_by_role("button", name="Rebuild balances").click()
    await page.get_by_role("dialog").get_by_role("button", name="Rebuild").click()

    await expect(page.get_by_role("progressbar", name="Rebuild of balances")).to_be_visible()
    await expect(row(page, "balances")).to_contain_text("version 2: 0 of 3 (0 %)")
    shop.bank.rebuilding.set()
    await expect(page.get_by_role("progressbar")).to_be_hidden()
    await expect(row(page, "balances").locator("[data-label=Version]")).to_have_text("2")


async def test_a_rebuild_is_cancelled(shop: Shop, page: Page) -> None:
    await shop.ecotone.command_bus.send(MoneyWasMoved("ada", 1))
    await go_to(page, "Projections")
    await expect(row(page, "balances")).to_contain_text("live")
    await page.get_by_role("button", name="Rebuild balances").click()
    await page.get_by_role("dialog").get_by_role("button", name="Rebuild").click()

    await page.get_by_role("button", name="Cancel the rebuild of balances").click()
    await page.get_by_role("dialog").get_by_role("button", name="Cancel the rebuild").click()

    await expect(page.get_by_role("progressbar")).to_be_hidden()
    await expect(row(page, "balances").locator("[data-label=Version]")).to_have_text("1")


async def test_a_projection_that_stands_still_is_told_and_tries_again(shop: Shop, page: Page) -> None:
    await shop.ecotone.command_bus.send(MoneyWasMoved("ada", -1))
    await go_to(page, "Projections")
    await expect(row(page, "balances")).to_contain_text("stands still")
    await expect(row(page, "balances")).to_contain_text("no overdraft")
    shop.bank.works = True

    await page.get_by_role("button", name="Let balances try again now").click()

    await expect(row(page, "balances")).to_contain_text("live")
    await expect(row(page, "balances").locator("[data-label='Events behind']")).to_have_text("0")


@pytest.mark.parametrize("address", ["#/nowhere", "#nothing/at/all", "#/overview/one", "#/dead-letters/%E0%A4%A"])
async def test_an_address_that_means_nothing_breaks_nothing(shop: Shop, page: Page, address: str) -> None:
    await page.goto(shop.address + address)

    await expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("^Overview$|^Dead letter$"))
    await expect(page.locator("#connection-text")).to_have_text("Live")


async def test_a_handler_is_found_and_the_way_to_it_is_shown(page: Page) -> None:
    await go_to(page, "Handlers")
    await page.get_by_label("Find").fill("chargecard")
    await expect(page.get_by_text("1 handler", exact=True)).to_be_visible()

    await page.get_by_role("link", name="Payments.charge", exact=True).click()

    await expect(page.get_by_role("heading", level=1)).to_have_text("Payments.charge")
    stations = page.locator(".stations > li")
    await expect(stations.filter(has_text=re.compile("^Channel payments"))).to_have_count(1)
    await expect(page.get_by_role("row").filter(has_text="Failures.stand_around")).to_contain_text("policy decides")


async def test_the_flow_of_messages_is_drawn_and_told(shop: Shop, page: Page) -> None:
    await go_to(page, "Message flow")

    nodes = page.locator(".drawing [data-kind]")
    await expect(nodes.filter(has_text="ChargeCard")).to_have_count(1)
    await expect(page.locator(".drawing path.edge")).not_to_have_count(0)
    places = await nodes.evaluate_all("all => all.map(one => one.getAttribute('transform'))")
    assert len(set(places)) == len(places), "no node lies upon another one"
    await page.get_by_text("As a table", exact=True).click()
    await expect(page.get_by_role("row", name=re.compile("ChargeCard.*command.*routes.*payments"))).to_be_visible()
    await page.get_by_role("link", name="handler Payments.charge", exact=True).click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Payments.charge")


async def test_the_drawing_leads_on_where_messages_go_round_in_circles(page: Page) -> None:
    ways = await page.evaluate(
        """async () => {
            const { layout } = await import("./page/flow_layout.js");
            const nodes = ["a", "b", "c", "alone"].map(id => ({ id }));
            const edges = [["a", "b"], ["b", "c"], ["c", "a"], ["a", "c"], ["b", "b"]]
                .map(([source, target]) => ({ source, target }));
            const drawn = layout(nodes, edges, { width: 100, height: 40, across: 50, down: 20 });
            return { places: Object.fromEntries(drawn.places), ways: drawn.ways.map(one => one?.length ?? 0) };
        }"""
    )

    assert [ways["places"][one]["x"] for one in "abc"] == [0, 150, 300]
    assert ways["places"]["alone"]["y"] >= 60
    assert ways["ways"] == [2, 2, 4, 4, 0]
