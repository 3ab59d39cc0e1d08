import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ecotone_fastapi import DeadLettersDep, Ecotone
from ecotone_fastapi.adapters.memory import MemoryChannel, MemoryDeadLetters
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.core.bus import EventBus
from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.core.endpoint import command_handler, event_handler
from ecotone_fastapi.core.errors import (
    ChannelError,
    ConcurrencyError,
    ConfigurationError,
    ConversionError,
    DeadLetterNotFoundError,
    HeaderError,
    UnknownChannelError,
    UnknownEndpointError,
)
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.plugin import Limits
from ecotone_fastapi.messaging.asynchronous import asynchronous
from ecotone_fastapi.messaging.dead_letter import DeadLetterOffice, DeadLetters
from ecotone_fastapi.messaging.dead_letter_store import (
    DeadLetterFilter,
    DeadLetterStore,
    ParkedMessage,
    parked_id,
    replays_of,
)
from ecotone_fastapi.messaging.deduplication import deduplicated
from ecotone_fastapi.messaging.failures import Failures
from ecotone_fastapi.messaging.policies import Backoff
from ecotone_fastapi.messaging.scheduling import ScheduledMessages
from ecotone_fastapi.testing.flow import Flow, TravellingClock, flow_test

AT_ONCE = Failures(Backoff(first=0.0))


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


@dataclass(frozen=True)
class MailWasSent:
    order_id: str


class Mails:
    """Two handlers of one event: one of them fails until it is mended."""

    def __init__(self) -> None:
        self.mended = False
        self.runs: list[Message[Any]] = []
        self.written: list[str] = []
        self.thanked: list[Message[Any]] = []

    @asynchronous("mails")
    @event_handler(id="mail")
    async def mail(self, event: OrderWasPlaced, message: Message[Any], events: EventBus) -> None:
        self.runs.append(message)
        if not self.mended:
            raise TimeoutError(f"no answer for {event.order_id}")
        await events.publish(MailWasSent(event.order_id))

    @asynchronous("mails")
    @event_handler(id="book")
    async def book(self, event: OrderWasPlaced) -> None:
        self.written.append(event.order_id)

    @asynchronous("thanks")
    @event_handler(id="thank")
    async def thank(self, event: MailWasSent, message: Message[Any]) -> None:
        self.thanked.append(message)


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def storage(request: pytest.FixtureRequest) -> tuple[Callable[[str], Channel], Sequence[Any]]:
    """What makes channels, and what else the application needs for them."""
    if request.param == "memory":
        return MemoryChannel, []
    database = SqlAlchemy(request.getfixturevalue(f"{request.param}_url"), create_schema=True)
    return database.channel, [database]


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ]
)
def database(request: pytest.FixtureRequest) -> SqlAlchemy:
    return SqlAlchemy(request.getfixturevalue(f"{request.param}_url"), create_schema=True)


@pytest.fixture
def mails() -> Mails:
    return Mails()


@pytest.fixture
async def flow(mails: Mails, storage: tuple[Callable[[str], Channel], Sequence[Any]]) -> AsyncIterator[Flow]:
    channel, plugins = storage
    channels = [channel(name) for name in ("mails", "thanks", "others")]
    async with flow_test([mails], channels=channels, plugins=[AT_ONCE, *plugins]) as flow:
        yield flow


async def parked_by(flow: Flow, *orders: str, **headers: str) -> list[ParkedMessage]:
    """Let the handler fail with these orders; return them as they are parked, in order."""
    for order in orders:
        await flow.publish(OrderWasPlaced(order), headers=headers)
        await drain(flow)
    return [*reversed(await flow.dead_letters())][-len(orders) :]


async def drain(flow: Flow, channel: str = "mails") -> None:
    """Run a channel until nothing is on it."""
    with anyio.fail_after(60):
        while await flow.waiting(channel):
            await flow.run(channel, raises=False)


# --------------------------------------------------------------------------------------------------------------- replay


async def test_only_the_handler_that_failed_runs_again(flow: Flow, mails: Mails) -> None:
    [parked] = await parked_by(flow, "1")
    assert mails.written == ["1"]
    mails.mended = True

    await flow.replay(parked)

    assert await flow.dead_letters() == []
    assert await flow.run("mails") == 1
    assert mails.written == ["1"]
    assert mails.runs[-1].payload == OrderWasPlaced("1")


async def test_a_replayed_message_has_all_of_its_retries_and_is_parked_anew_when_they_are_used_up(
    flow: Flow, mails: Mails
) -> None:
    [first] = await parked_by(flow, "1")
    assert (first.attempts, first.replays, len(mails.runs)) == (4, 0, 4)

    await flow.replay(first.id)
    await drain(flow)

    [again] = await flow.dead_letters()
    assert (again.id, again.attempts, again.replays, len(mails.runs)) == (first.id, 4, 1, 8)
    assert again.deliveries == 4
    assert again.first_failed_at is None or first.first_failed_at is None or again.first_failed_at > first.parked_at


async def test_a_replayed_message_is_the_same_message(flow: Flow, mails: Mails) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    [parked] = await parked_by(flow, "1", traceparent=trace, tenant="acme", priority="7", partition_key="k")
    spent = {HeaderName.attempt, HeaderName.first_failed_at}

    await flow.replay(parked)

    [message] = await flow.waiting("mails")
    before = {name: value for name, value in parked.message.headers.items() if name not in spent}
    assert message.headers == {**before, HeaderName.replays: "1"}
    assert message.payload == parked.message.payload
    assert {"id", "correlation_id", "timestamp", "traceparent", "tenant", "endpoint"} <= before.keys()


async def test_a_replayed_message_neither_waits_nor_expires_nor_takes_the_place_of_another_one(
    flow: Flow, mails: Mails
) -> None:
    mails.mended = True
    await park(flow, Message(b'{"order_id": "1"}', wire(delay="3600", time_to_live="0", schedule_key="reminder")))

    await flow.replay("1")

    assert await flow.run("mails") == 1


async def test_what_a_replayed_message_causes_does_not_inherit_its_counters(flow: Flow, mails: Mails) -> None:
    [parked] = await parked_by(flow, "1", tenant="acme")
    mails.mended = True

    await flow.replay(parked)
    await flow.run("mails")
    await flow.run("thanks")

    [caused] = mails.thanked
    assert caused.headers["tenant"] == "acme"
    assert caused.headers[HeaderName.causation_id] == parked.message.id
    assert not {HeaderName.attempt, HeaderName.replays, HeaderName.first_failed_at} & caused.headers.keys()


async def test_what_could_not_be_read_goes_back_byte_for_byte(flow: Flow, mails: Mails) -> None:
    raw = bytes(range(256))
    await park(flow, Message(raw, wire()))

    await flow.replay("1")
    assert [message.payload for message in await flow.waiting("mails")] == [raw]
    await drain(flow)

    [again] = await flow.dead_letters()
    assert again.message.payload == raw
    assert again.error_type.endswith("ConversionError")
    assert mails.runs == []


async def test_what_is_not_there_cannot_be_replayed(flow: Flow) -> None:
    with pytest.raises(DeadLetterNotFoundError, match="nobody"):
        await flow.replay("nobody")


@pytest.mark.parametrize(("text", "replays"), [("often", 0), ("-1", 0), ("3", 3), ("9" * 5_000, 999_999_999)])
def test_the_count_of_replays_is_read_whoever_has_written_it(text: str, replays: int) -> None:
    assert replays_of(Message(b"", {HeaderName.replays: text})) == replays


def test_an_id_in_the_dead_letter_is_told_from_message_and_handler() -> None:
    message = Message(b"", {"id": "1"})

    assert parked_id(message, "place") == parked_id(message, "place") != parked_id(message, "cancel")
    assert parked_id(Message(b"", {}), None).startswith("unknown-")


def wire(**headers: str) -> dict[str, str]:
    return {"id": "1", "correlation_id": "1", "content_type": "application/json", "endpoint": "mail", **headers}


async def park(flow: Flow, message: Message[bytes], parked_id: str = "1", channel: str = "mails") -> None:
    """Put something into the dead letter, as if it had failed."""
    store: Any = flow.ecotone.assembly.services[DeadLetterStore]
    await store.park(
        ParkedMessage(
            id=parked_id,
            message=message,
            channel=channel,
            endpoint=message.headers.get(HeaderName.endpoint),
            error_type="builtins.ValueError",
            error_message="",
            traceback="",
            attempts=1,
            deliveries=1,
            parked_at=flow.clock.now(),
        )
    )


# --------------------------------------------------------------------------------------------------------- edit, and to


@pytest.mark.parametrize(
    "payload", [b'{"order_id": "2"}', '{"order_id": "2"}', {"order_id": "2"}, OrderWasPlaced("2")], ids=str
)
async def test_a_message_is_replayed_with_another_payload(flow: Flow, mails: Mails, payload: Any) -> None:
    [parked] = await parked_by(flow, "1")
    mails.mended = True

    await flow.ecotone.dead_letters.replay(parked.id, payload=payload)
    await flow.run("mails")

    assert mails.runs[-1].payload == OrderWasPlaced("2")
    assert mails.runs[-1].id == parked.message.id
    assert await flow.dead_letters() == []


async def test_an_object_brings_its_type_and_a_plain_one_does_not(flow: Flow) -> None:
    for number, payload in enumerate([MailWasSent("1"), {"order_id": "1"}, b"{}"], start=1):
        await park(flow, Message(b"?", {"id": "1", "type": "shop.Old"}), f"{number}")
        await flow.ecotone.dead_letters.replay(f"{number}", payload=payload)

    types = [(one.headers["type"], one.headers.get("content_type")) for one in await flow.waiting("mails")]
    assert types == [
        (f"{MailWasSent.__module__}.MailWasSent", "application/json"),
        ("shop.Old", "application/json"),
        ("shop.Old", None),
    ]


async def test_headers_are_set_and_taken_away(flow: Flow) -> None:
    [parked] = await parked_by(flow, "1", tenant="acme", wrong="yes")

    await flow.ecotone.dead_letters.replay(parked.id, headers={"tenant": "other", "wrong": None, "number": 7})

    [message] = await flow.waiting("mails")
    assert message.headers["tenant"] == "other"
    assert message.headers["number"] == "7"
    assert "wrong" not in message.headers


async def test_a_dead_letter_is_edited_and_stays_to_be_replayed(flow: Flow, mails: Mails) -> None:
    [parked] = await parked_by(flow, "wrong", tenant="acme")
    dead_letters = flow.ecotone.dead_letters

    await dead_letters.edit(parked.id, payload=b'{"order_id": "right"}', headers={"tenant": "other"})

    [edited] = await flow.dead_letters()
    assert edited == replace(parked, message=edited.message)
    assert edited.message.headers == {**parked.message.headers, "tenant": "other"}
    assert edited.message.payload == b'{"order_id": "right"}'
    mails.mended = True
    await flow.replay(edited)
    await drain(flow)
    assert mails.runs[-1].payload == OrderWasPlaced("right")


async def test_nobody_edits_what_is_not_there(flow: Flow) -> None:
    with pytest.raises(DeadLetterNotFoundError):
        await flow.ecotone.dead_letters.edit("nobody", headers={"a": "b"})
    assert await flow.dead_letters() == []


async def test_a_dead_letter_that_is_replayed_while_it_is_edited_does_not_come_back(
    database: SqlAlchemy, mails: Mails, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = [database.channel("mails"), database.channel("thanks")]
    async with flow_test([mails], channels=channels, plugins=[database, AT_ONCE]) as flow:
        [parked] = await parked_by(flow, "1")
        store: Any = flow.ecotone.assembly.services[DeadLetterStore]
        get = store.get

        async def get_and_be_late(parked_id: str) -> ParkedMessage:
            found: ParkedMessage = await get(parked_id)
            monkeypatch.undo()
            await flow.replay(parked)
            return found

        monkeypatch.setattr(store, "get", get_and_be_late)
        with pytest.raises(DeadLetterNotFoundError):
            await flow.ecotone.dead_letters.edit(parked.id, headers={"a": "b"})

        assert await flow.dead_letters() == []
        assert len(await flow.waiting("mails")) == 1


@pytest.mark.parametrize(
    "edit", [{"payload": b'{"order_id": "right"}'}, {"headers": {"a": "b"}}], ids=["payload", "headers"]
)
@pytest.mark.parametrize("late", ["replay", "edit"])
async def test_what_was_edited_meanwhile_is_neither_replayed_nor_edited_as_it_was_before(
    database: SqlAlchemy, mails: Mails, monkeypatch: pytest.MonkeyPatch, edit: dict[str, Any], late: str
) -> None:
    channels = [database.channel("mails"), database.channel("thanks")]
    async with flow_test([mails], channels=channels, plugins=[database, AT_ONCE]) as flow:
        [parked] = await parked_by(flow, "1")
        dead_letters = flow.ecotone.dead_letters
        store: Any = flow.ecotone.assembly.services[DeadLetterStore]
        get = store.get

        async def get_and_be_late(parked_id: str) -> ParkedMessage:
            found: ParkedMessage = await get(parked_id)
            monkeypatch.undo()
            await dead_letters.edit(parked_id, **edit)
            return found

        monkeypatch.setattr(store, "get", get_and_be_late)
        with pytest.raises(ConcurrencyError, match="edited by somebody else"):
            await (
                dead_letters.replay(parked.id) if late == "replay" else dead_letters.edit(parked.id, headers={"x": "y"})
            )

        [edited] = await flow.dead_letters()
        assert edited.message != parked.message
        assert "x" not in edited.message.headers
        assert await flow.waiting("mails") == []


async def test_what_was_edited_meanwhile_is_not_sent_to_a_broker_as_it_was_before(
    database: SqlAlchemy, mails: Mails, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with flow_test(
        [mails], channels=[MemoryChannel("mails"), MemoryChannel("thanks")], plugins=[database, AT_ONCE]
    ) as flow:
        [parked] = await parked_by(flow, "1")
        dead_letters = flow.ecotone.dead_letters
        store: Any = flow.ecotone.assembly.services[DeadLetterStore]
        get = store.get

        async def get_and_be_late(parked_id: str) -> ParkedMessage:
            found: ParkedMessage = await get(parked_id)
            monkeypatch.undo()
            await dead_letters.edit(parked_id, headers={"a": "b"})
            return found

        monkeypatch.setattr(store, "get", get_and_be_late)
        with pytest.raises(ConcurrencyError, match="edited by somebody else"):
            await dead_letters.replay(parked.id)

        assert await flow.waiting("mails") == []
        assert [one.message.headers.get("a") for one in await flow.dead_letters()] == ["b"]


async def test_a_replay_at_the_same_time_as_an_edit_never_loses_it(
    database: SqlAlchemy, mails: Mails, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = [database.channel("mails"), database.channel("thanks")]
    async with flow_test([mails], channels=channels, plugins=[database, AT_ONCE]) as flow:
        [parked] = await parked_by(flow, "wrong")
        dead_letters = flow.ecotone.dead_letters
        store: Any = flow.ecotone.assembly.services[DeadLetterStore]
        get, both_have_read, readers = store.get, anyio.Event(), 0

        async def get_together(parked_id: str) -> ParkedMessage:
            nonlocal readers
            found: ParkedMessage = await get(parked_id)
            readers += 1
            if readers == 2:
                both_have_read.set()
            await both_have_read.wait()
            return found

        monkeypatch.setattr(store, "get", get_together)
        replayed, edited = await asyncio.gather(
            dead_letters.replay(parked.id),
            dead_letters.edit(parked.id, payload=b'{"order_id": "right"}'),
            return_exceptions=True,
        )

        waiting = [message.payload for message in await flow.waiting("mails")]
        kept = [letter.message.payload for letter in await flow.dead_letters()]
        assert sorted([replayed is None, edited is None]) == [False, True]
        assert (waiting, kept) == (
            ([parked.message.payload], []) if replayed is None else ([], [b'{"order_id": "right"}'])
        )


async def test_who_has_seen_something_else_changes_nothing(flow: Flow) -> None:
    [parked] = await parked_by(flow, "1")
    dead_letters = flow.ecotone.dead_letters
    assert (await dead_letters.get(parked.id)).revision == parked.revision
    await dead_letters.edit(parked.id, payload=b'{"order_id": "2"}', revision=parked.revision)
    [edited] = await flow.dead_letters()

    with pytest.raises(ConcurrencyError, match="edited by somebody else"):
        await dead_letters.edit(parked.id, payload=b'{"order_id": "3"}', revision=parked.revision)
    with pytest.raises(ConcurrencyError, match="edited by somebody else"):
        await dead_letters.replay(parked.id, revision=parked.revision)

    assert await flow.dead_letters() == [edited]
    assert await flow.waiting("mails") == []
    await dead_letters.replay(parked.id, revision=edited.revision)
    assert [message.payload for message in await flow.waiting("mails")] == [b'{"order_id": "2"}']


async def test_what_somebody_says_of_time_counts_when_it_is_replayed_and_not_before(flow: Flow, mails: Mails) -> None:
    await park(flow, Message(b'{"order_id": "1"}', wire(delay="7200", time_to_live="0", schedule_key="old")))
    before = await flow.dead_letters()
    later = {"delay": 3600.0, "time_to_live": 7200.0, "schedule_key": "new"}

    for name, value in later.items():
        with pytest.raises(HeaderError, match=name):
            await flow.ecotone.dead_letters.edit("1", headers={name: value})
    assert await flow.dead_letters() == before
    await flow.ecotone.dead_letters.edit("1", headers={"schedule_key": "old", "time_to_live": None})
    await flow.ecotone.dead_letters.replay("1", headers=later)

    assert [one.key for one in await flow.ecotone.assembly.services[ScheduledMessages].list()] == ["new"]
    mails.mended = True
    assert await flow.run("mails") == 0
    await flow.advance(timedelta(hours=1, seconds=1))
    assert await flow.run("mails") == 1


async def test_an_edit_that_cannot_be_kept_leaves_the_dead_letter_as_it_was(
    database: SqlAlchemy, mails: Mails, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels = [database.channel("mails"), database.channel("thanks")]
    async with flow_test([mails], channels=channels, plugins=[database, AT_ONCE]) as flow:
        [parked] = await parked_by(flow, "1")
        store: Any = flow.ecotone.assembly.services[DeadLetterStore]

        async def refuse(_: ParkedMessage) -> None:
            raise ChannelError("the disk is full")

        monkeypatch.setattr(store, "park", refuse)
        with pytest.raises(ChannelError, match="the disk is full"):
            await flow.ecotone.dead_letters.edit(parked.id, headers={"a": "b"})

        assert await flow.dead_letters() == [parked]


async def test_what_is_no_edit_leaves_everything_as_it_was(flow: Flow) -> None:
    [parked] = await parked_by(flow, "1")
    dead_letters = flow.ecotone.dead_letters

    with pytest.raises(HeaderError, match="attempt"):
        await dead_letters.replay(parked.id, headers={"attempt": "0"})
    with pytest.raises(ConversionError):
        await dead_letters.replay(parked.id, payload=object())

    assert await flow.dead_letters() == [parked]
    assert await flow.waiting("mails") == []


async def test_a_channel_that_is_gone_is_an_error_that_names_the_others_and_another_one_may_be_said(
    flow: Flow, mails: Mails
) -> None:
    mails.mended = True
    await park(flow, Message(b'{"order_id": "1"}', wire(forward_to="gone")), channel="former")

    with pytest.raises(UnknownChannelError, match=r"dead letter 1: .*'former'") as caught:
        await flow.replay("1")
    assert caught.value.tried == "mails, others, thanks"
    await flow.replay("1", to="mails")

    assert await flow.run("mails") == 1
    assert HeaderName.forward_to not in mails.runs[0].headers


async def test_a_handler_that_is_gone_is_an_error_that_names_the_others_and_another_one_may_be_said(
    flow: Flow, mails: Mails
) -> None:
    mails.mended = True
    await park(flow, Message(b'{"order_id": "1"}', wire(endpoint="former")))

    with pytest.raises(UnknownEndpointError, match=r"dead letter 1: .*'former'") as caught:
        await flow.replay("1")
    assert caught.value.tried == "book, mail, thank"
    await flow.ecotone.dead_letters.replay("1", headers={"endpoint": "book"})

    assert await flow.run("mails") == 1
    assert mails.written == ["1"]


async def test_a_handler_of_another_application_need_not_be_known_here(flow: Flow) -> None:
    await park(flow, Message(b"", wire(endpoint="elsewhere")))

    await flow.replay("1", to="others")

    assert len(await flow.waiting("others")) == 1


# ----------------------------------------------------------------------------------------------------------------- many


async def test_many_are_replayed_by_a_filter_the_oldest_first(flow: Flow, mails: Mails) -> None:
    await parked_by(flow, "1", tenant="acme")
    await parked_by(flow, "2", tenant="other")
    await parked_by(flow, "3", tenant="acme")
    mails.mended = True
    steps: list[tuple[int, int]] = []

    replayed = await flow.ecotone.dead_letters.replay_all(
        DeadLetterFilter(tenant="acme", endpoint="mail"), progress=lambda done, total: steps.append((done, total))
    )

    assert (replayed.count, replayed.refused) == (2, {})
    assert steps == [(1, 2), (2, 2)]
    assert [json.loads(message.payload)["order_id"] for message in await flow.waiting("mails")] == ["1", "3"]
    assert [parked.message.headers["tenant"] for parked in await flow.dead_letters()] == ["other"]


async def test_one_that_cannot_go_back_does_not_hold_up_the_others(flow: Flow, mails: Mails) -> None:
    await park(flow, Message(b'{"order_id": "1"}', wire()), "1")
    await park(flow, Message(b'{"order_id": "2"}', wire(endpoint="former")), "2")
    await park(flow, Message(b'{"order_id": "3"}', wire()), "3")

    replayed = await flow.ecotone.dead_letters.replay_all(["1", "2", "gone", "3"])

    assert replayed.count == 2
    assert {one: type(error) for one, error in replayed.refused.items()} == {
        "2": UnknownEndpointError,
        "gone": DeadLetterNotFoundError,
    }
    assert [parked.id for parked in await flow.dead_letters()] == ["2"]


async def test_all_are_sent_to_another_channel(flow: Flow) -> None:
    await parked_by(flow, "1", "2")

    assert (await flow.ecotone.dead_letters.replay_all(to="others")).count == 2

    assert len(await flow.waiting("others")) == 2


async def test_what_fails_again_at_once_is_not_replayed_a_second_time(flow: Flow, mails: Mails) -> None:
    await parked_by(flow, "1", "2")

    async with anyio.create_task_group() as tasks:
        stop = anyio.Event()
        tasks.start_soon(flow.ecotone.run, "mails", Limits(stop=stop))
        replayed = await flow.ecotone.dead_letters.replay_all()
        with anyio.fail_after(60):
            while await flow.ecotone.dead_letters.count() < 2:
                await anyio.lowlevel.checkpoint()
        stop.set()

    assert replayed.count == 2
    assert [parked.replays for parked in await flow.dead_letters()] == [1, 1]


async def test_dead_letters_are_found_counted_and_deleted(flow: Flow) -> None:
    [one, two, three] = await parked_by(flow, "1", "2", "3")
    dead_letters = flow.ecotone.dead_letters

    assert await dead_letters.list(limit=1, offset=1) == [two]
    assert await dead_letters.list(DeadLetterFilter(text="no answer for 3")) == [three]
    assert await dead_letters.ids() == [one.id, two.id, three.id]
    assert await dead_letters.get(one.id) == one
    assert await dead_letters.count(DeadLetterFilter(error_type="TimeoutError")) == 3

    await dead_letters.delete(one.id)
    assert await dead_letters.delete_all(DeadLetterFilter(text="no answer for 2")) == 1

    assert await flow.dead_letters() == [three]
    with pytest.raises(DeadLetterNotFoundError):
        await dead_letters.delete(one.id)


def test_a_filter_wants_moments_that_say_where_on_earth_they_are() -> None:
    with pytest.raises(ConfigurationError, match="time zone"):
        DeadLetterFilter(since=datetime(2026, 1, 1))  # noqa: DTZ001


# --------------------------------------------------------------------------------------------------------- transactions


class LostChannel(MemoryChannel):
    """A channel whose server has gone."""

    lost = False

    async def send(self, messages: Sequence[Message[bytes]]) -> None:
        if self.lost:
            raise ChannelError("gone")
        await super().send(messages)


async def test_what_the_channel_does_not_take_stays_in_the_dead_letter(mails: Mails, database: SqlAlchemy) -> None:
    channels: list[Any] = [LostChannel("mails"), MemoryChannel("thanks")]
    async with flow_test([mails], channels=channels, plugins=[database, AT_ONCE]) as flow:
        [one, two] = await parked_by(flow, "1", "2")
        channels[0].lost = True

        with pytest.raises(ChannelError):
            await flow.replay(one)
        with pytest.raises(ChannelError):
            await flow.ecotone.dead_letters.replay_all()

        assert await flow.dead_letters() == [two, one]


async def test_two_who_replay_the_same_at_once_send_it_once(database: SqlAlchemy, mails: Mails) -> None:
    channels = [database.channel("mails"), database.channel("thanks")]
    async with flow_test([mails], channels=channels, plugins=[database, AT_ONCE]) as flow:
        [parked] = await parked_by(flow, "1")

        answers = await asyncio.gather(*[flow.replay(parked) for _ in range(5)], return_exceptions=True)

        assert sorted(type(answer).__name__ for answer in answers) == ["DeadLetterNotFoundError"] * 4 + ["NoneType"]
        assert len(await flow.waiting("mails")) == 1


class Support:
    """Replays by command, and fails afterwards if it is told."""

    @command_handler("replay")
    async def replay(self, parked_id: str, dead_letters: DeadLetters, message: Message[Any]) -> None:
        await dead_letters.replay(parked_id)
        if "fail" in message.headers:
            raise RuntimeError("after all")


async def test_a_handler_that_replays_and_then_fails_has_replayed_nothing(database: SqlAlchemy, mails: Mails) -> None:
    channels = [database.channel("mails"), database.channel("thanks")]
    async with flow_test([mails, Support], channels=channels, plugins=[database, AT_ONCE]) as flow:
        [parked] = await parked_by(flow, "1")

        with pytest.raises(RuntimeError):
            await flow.send(parked.id, to="replay", headers={"fail": "1"})
        assert await flow.dead_letters() == [parked]
        assert await flow.waiting("mails") == []
        await flow.send(parked.id, to="replay")

        assert await flow.dead_letters() == []
        assert len(await flow.waiting("mails")) == 1


async def test_a_handler_that_goes_on_after_a_replay_has_failed_leaves_the_dead_letter_there(
    database: SqlAlchemy, mails: Mails
) -> None:
    failures = []

    @command_handler("try to replay")
    async def try_to_replay(parked_id: str, dead_letters: DeadLetters) -> None:
        try:
            await dead_letters.replay(parked_id)
        except ChannelError as error:
            failures.append(str(error))

    channels: list[Any] = [LostChannel("mails"), MemoryChannel("thanks")]
    async with flow_test([mails, try_to_replay], channels=channels, plugins=[database, AT_ONCE]) as flow:
        [parked] = await parked_by(flow, "1")
        channels[0].lost = True

        await flow.send(parked.id, to="try to replay")

        assert len(failures) == 1
        assert await flow.dead_letters() == [parked]


async def test_only_the_run_that_succeeds_leaves_anything_behind(mails: Mails, database: SqlAlchemy) -> None:
    @asynchronous("effects")
    @command_handler("effect", id="effect")
    async def effect(number: int, session: AsyncSession) -> None:
        await session.execute(text("INSERT INTO effect VALUES (:number)"), {"number": number})
        if not mails.mended:
            raise TimeoutError

    async with flow_test([effect], channels=[database.channel("effects")], plugins=[database, AT_ONCE]) as flow:
        async with database.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE effect (number INTEGER)"))
        await flow.send(7, to="effect")
        await drain(flow, "effects")
        mails.mended = True

        await flow.ecotone.dead_letters.replay_all()
        await flow.run("effects")

        async with database.engine.connect() as connection:
            assert (await connection.execute(text("SELECT number FROM effect"))).all() == [(7,)]


async def test_what_is_handled_once_only_is_handled_when_it_is_replayed(mails: Mails) -> None:
    runs: list[int] = []

    @deduplicated
    @asynchronous("effects")
    @command_handler("effect", id="effect")
    async def effect(number: int) -> None:
        runs.append(number)
        if not mails.mended:
            raise TimeoutError

    async with flow_test([effect], channels=[MemoryChannel("effects")], plugins=[AT_ONCE]) as flow:
        await flow.send(7, to="effect")
        await drain(flow, "effects")
        mails.mended = True
        await flow.replay((await flow.dead_letters())[0])

        assert await flow.run("effects") == 1
        assert runs == [7] * 5


# ------------------------------------------------------------------------------------------------------ where it is had


async def test_an_endpoint_asks_for_the_dead_letter(mails: Mails) -> None:
    store = MemoryDeadLetters()
    app = FastAPI()
    ecotone = Ecotone(
        [mails], channels=[MemoryChannel("mails"), MemoryChannel("thanks")], services={DeadLetterStore: store},
        consumers=False,
    )  # fmt: skip
    ecotone.install(app)

    @app.get("/dead-letters")
    async def count(dead_letters: DeadLettersDep) -> int:
        return await dead_letters.count()

    @app.post("/dead-letters/{parked_id}/replay", status_code=202)
    async def replay(parked_id: str, dead_letters: DeadLettersDep) -> None:
        await dead_letters.replay(parked_id)

    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as web:
        assert (await web.get("/dead-letters")).json() == 0
        assert (await web.post("/dead-letters/nobody/replay")).status_code == 404


# ------------------------------------------------------------------------------------------------------------ retention


async def test_nothing_disappears_by_default(flow: Flow) -> None:
    assert "dead-letters" not in flow.ecotone.assembly.runnables


async def test_what_is_too_old_is_deleted_when_that_was_wanted(mails: Mails, caplog: pytest.LogCaptureFixture) -> None:
    channels = [MemoryChannel("mails"), MemoryChannel("thanks")]
    plugins = [AT_ONCE, DeadLetterOffice(keep=timedelta(days=30))]
    clock = TravellingClock(datetime(2026, 1, 1, tzinfo=UTC))
    async with flow_test([mails], channels=channels, plugins=plugins, clock=clock) as flow:
        await parked_by(flow, "1")
        await flow.advance(timedelta(days=20))
        [young] = await parked_by(flow, "2")
        assert await flow.run("dead-letters") == 0

        await flow.advance(timedelta(days=10, seconds=1))
        with caplog.at_level(logging.INFO):
            assert await flow.run("dead-letters") == 1

        assert await flow.dead_letters() == [young]
        assert "deleted 1 dead letters" in caplog.text


async def test_deleting_goes_on_until_it_is_told_to_stop(mails: Mails) -> None:
    channels = [MemoryChannel("mails"), MemoryChannel("thanks")]
    plugins = [AT_ONCE, DeadLetterOffice(keep=timedelta(days=30))]
    async with flow_test([mails], channels=channels, plugins=plugins) as flow:
        stop = anyio.Event()
        stop.set()
        assert await flow.run("dead-letters", Limits(stop=stop)) == 0
        assert await flow.run("dead-letters", Limits(seconds=0.01)) == 0
        assert await flow.run("dead-letters", Limits(messages=1)) == 0


def test_an_office_tells_how_long_it_keeps() -> None:
    assert repr(DeadLetterOffice()) == "DeadLetterOffice(keep=None)"
    with pytest.raises(ConfigurationError, match="kept"):
        DeadLetterOffice(keep=timedelta(0))


@pytest.mark.parametrize("refused", [True, False])
async def test_a_dead_letter_of_another_store_is_deleted_when_its_return_has_committed(
    sqlite_url: str, mails: Mails, refused: bool
) -> None:
    database, elsewhere = SqlAlchemy(sqlite_url, create_schema=True), MemoryDeadLetters()

    @command_handler("replay")
    async def replay(parked_id: str, dead_letters: DeadLetters) -> None:
        await dead_letters.replay(parked_id)
        if refused:
            raise ValueError(parked_id)

    async with flow_test(
        [mails, replay],
        channels=[database.channel("mails"), database.channel("thanks")],
        plugins=[database, Failures(Backoff(retries=0))],
        services={DeadLetterStore: elsewhere},
    ) as flow:
        await flow.publish(OrderWasPlaced("order-1"))
        await flow.run("mails", raises=False)
        [parked] = await flow.dead_letters()

        if refused:
            with pytest.raises(ValueError, match=parked.id):
                await flow.send(parked.id, to="replay")
        else:
            await flow.send(parked.id, to="replay")

        assert [one.id for one in await elsewhere.list()] == ([parked.id] if refused else [])
        assert len(await flow.waiting("mails")) == (0 if refused else 1)
