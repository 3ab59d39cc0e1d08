"""Cases for a channel and its stores in an application: what becomes of what fails, pauses or is repeated."""

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import anyio
import pytest

from ecotone_fastapi.core.endpoint import command_handler
from ecotone_fastapi.core.errors import ChannelError
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.pipeline import Call, Order, Proceed, Stage
from ecotone_fastapi.core.plugin import Assembly, Limits, Plugin
from ecotone_fastapi.messaging.asynchronous import AsynchronousHandlers, ConsumerSettings, asynchronous
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterStore, ParkedMessage
from ecotone_fastapi.messaging.deduplication import deduplicated
from ecotone_fastapi.messaging.failures import Failures
from ecotone_fastapi.messaging.policies import Backoff
from ecotone_fastapi.messaging.protection import Consumers
from ecotone_fastapi.messaging.transactions import untransacted
from ecotone_fastapi.testing.conformance.hooks import ChannelHooks, unique
from ecotone_fastapi.testing.flow import Flow, flow_test

# What could not even be parked comes back after ten seconds.
_PARKED_AGAIN = 11.0
_TRACE = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": "vendor=a:b;c=d",
    "baggage": "user=Am%C3%A9lie,region=eu",
}


@dataclass(frozen=True)
class Note:
    """What is sent: some words, and what they belong to."""

    text: str
    subject: str = ""


class Watch:
    """A plugin that sees what is received from one channel, and ends runs when that is enough."""

    def __init__(self, channel: str) -> None:
        self.channel: str = channel
        self.seen: int = 0
        self.enough: anyio.Event = anyio.Event()
        self._wanted = 0

    def install(self, assembly: Assembly) -> None:
        """Stand around everything that is received, and around all that is decided about it."""
        assembly.add_interceptor(self._see, stage=Stage.RECEIVE, order=Order.TRACING)

    def begin(self, wanted: int) -> None:
        """Count from now on."""
        self.seen, self._wanted = 0, wanted
        self.enough = anyio.Event()

    async def _see(self, call: Call, proceed: Proceed) -> Any:
        try:
            return await proceed(call)
        finally:
            if call.channel == self.channel:
                self.seen += 1
                if self.seen >= self._wanted:
                    self.enough.set()


class Application:
    """An application with one channel, whose consumer runs when a case says so, with all that runs beside it."""

    def __init__(self, flow: Flow, watch: Watch, patience: float) -> None:
        self.flow: Flow = flow
        self.name: str = watch.channel
        self._watch = watch
        self._patience = patience

    async def run(self, receptions: int, *, within: float | None = None) -> None:
        """Run until so many deliveries have been judged, or fail."""
        seen = await self.listen(receptions, self._patience if within is None else within)
        assert seen == receptions, f"{seen} of {receptions} deliveries arrived"

    async def listen(self, receptions: int, seconds: float) -> int:
        """Run until so many deliveries have been judged, or so much time is over; return how many there were."""
        self._watch.begin(receptions)
        ecotone = self.flow.ecotone
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                for name in ecotone.assembly.runnables:
                    tasks.start_soon(ecotone.run, name, Limits(stop=self._watch.enough, grace=5.0))
        return self._watch.seen

    async def parked(self) -> ParkedMessage:
        """Return the only dead letter there is."""
        [parked] = await self.flow.dead_letters()
        return parked


class Applications(ChannelHooks):
    """Nothing that a handler could not handle is lost, and nothing is handled that should not be."""

    async def test_what_fails_again_and_again_is_parked_as_it_was_sent(self) -> None:
        """T21, T30: after the last retry the dead letter has the bytes, the headers and the failure."""
        name = unique()
        runs: list[Message[Any]] = []

        @asynchronous(name)
        @command_handler(id="write")
        async def write(note: Note, message: Message[Any]) -> None:
            runs.append(message)
            raise TimeoutError(f"no answer for {note.text}")

        async with self._application(name, write, Failures(Backoff(retries=2, first=0.0))) as application:
            await application.flow.send(Note("Grüße"), headers={"tenant": "acme", **_TRACE})
            await application.run(3)

            parked = await application.parked()
            assert (parked.channel, parked.endpoint, parked.attempts) == (name, "write", 3)
            assert parked.error_type == "builtins.TimeoutError"
            assert parked.error_message == "no answer for Grüße"
            assert "in write" in parked.traceback
            assert parked.first_failed_at is not None
            assert parked.first_failed_at <= parked.parked_at
            assert b"Gr\xc3\xbc\xc3\x9fe" in parked.message.payload
            kept = ("tenant", *_TRACE, HeaderName.id, HeaderName.correlation_id, HeaderName.timestamp)
            assert [{one.headers.get(header) for one in runs} for header in kept] == [
                {parked.message.headers[header]} for header in kept
            ]
            assert parked.message.headers.items() >= {"tenant": "acme", **_TRACE}.items()
            assert await application.listen(1, self._a_while) == 0

    async def test_what_cannot_be_parked_is_not_lost(self) -> None:
        """T22: when the dead letter cannot be written, the message stays on its channel, and is parked later."""
        name = unique()

        @asynchronous(name)
        @command_handler(id="write")
        async def write(note: Note) -> None:
            raise ValueError(note.text)

        async def refuse(_parked: ParkedMessage) -> None:
            raise ChannelError("the dead letter is away")

        async with self._application(name, write, Failures(Backoff(retries=0))) as application:
            await application.flow.send(Note("one"))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(application.flow.ecotone.assembly.services[DeadLetterStore], "park", refuse)
                await application.run(1)
            assert list(await application.flow.dead_letters()) == []

            await application.flow.advance(timedelta(seconds=_PARKED_AGAIN))
            await application.run(1, within=self.patience + _PARKED_AGAIN)
            assert (await application.parked()).error_message == "one"
            assert await application.listen(1, self._a_while) == 0

    async def test_a_replayed_message_begins_anew_where_it_failed(self) -> None:
        """T23, T30: the same message goes back to its channel, with no failed runs and with all of its retries."""
        name = unique()
        runs: list[Message[Any]] = []
        failures = 4  # two rounds of one run and one retry

        @asynchronous(name)
        @command_handler(id="write")
        async def write(note: Note, message: Message[Any]) -> None:
            runs.append(message)
            if len(runs) <= failures:
                raise ValueError(note.text)

        async with self._application(name, write, Failures(Backoff(retries=1, first=0.0))) as application:
            await application.flow.send(Note("one"), headers={"tenant": "acme", **_TRACE})
            for _ in range(2):
                await application.run(2)
                await application.flow.replay(await application.parked())
                assert list(await application.flow.dead_letters()) == []
            await application.run(1)

            attempts = [message.headers.get(HeaderName.attempt) for message in runs]
            assert attempts == [None, "1", None, "1", None]
            assert [message.headers.get(HeaderName.replays) for message in runs] == [None, None, "1", "1", "2"]
            for header in ("tenant", *_TRACE, HeaderName.id, HeaderName.correlation_id):
                assert len({message.headers[header] for message in runs}) == 1
            assert HeaderName.first_failed_at not in runs[-1].headers
            assert list(await application.flow.dead_letters()) == []
            assert await application.listen(1, self._a_while) == 0

    async def test_one_consumer_handles_a_key_in_order_and_keys_side_by_side(self) -> None:
        """T34: with a concurrency above one, messages with the same key are handled one after the other."""
        name, subjects = unique(), ("a", "b", "c", "d")
        handled: defaultdict[str, list[str]] = defaultdict(list)
        running: list[str] = []
        all_of_them = anyio.Event()

        @asynchronous(name, partition_by=lambda note: note.subject)
        @untransacted
        @command_handler(id="write")
        async def write(note: Note) -> None:
            assert note.subject not in running
            running.append(note.subject)
            if len(running) == len(subjects):
                all_of_them.set()
            with anyio.fail_after(self.patience):
                await all_of_them.wait()
            running.remove(note.subject)
            handled[note.subject].append(note.text)

        consumers = AsynchronousHandlers(consumers={name: ConsumerSettings(concurrency=8, batch=40)})
        async with self._application(name, write, consumers, Failures(Backoff(retries=0))) as application:
            self._needs(application.flow.ecotone.assembly.channels[name], "ordered")
            for number in range(10):
                for subject in subjects:
                    await application.flow.send(Note(str(number), subject))
            await application.run(40)

            assert application.flow.failures == []
            assert handled == {subject: [str(number) for number in range(10)] for subject in subjects}

    async def test_a_consumer_that_pauses_gives_back_what_it_has_not_begun(self) -> None:
        """T37: it finishes what is under way and receives nothing more; resumed, it handles the rest as if new."""
        name = unique()
        runs: list[Message[Any]] = []

        @asynchronous(name)
        @command_handler(id="write")
        async def write(note: Note, message: Message[Any], consumers: Consumers) -> None:
            runs.append(message)
            if len(runs) == 2:  # a consumer begins with one message, and has more than that in hand from then on
                await consumers.pause(name, reason=f"{note.text} said so")

        async with self._application(name, write, Failures(Backoff(retries=0))) as application:
            consumers = application.flow.ecotone.consumers
            sent = [str(number) for number in range(5)]
            for text in sent:
                await application.flow.send(Note(text))

            await application.run(2)
            assert await application.listen(1, self._a_while) == 0
            assert len(runs) == 2
            assert list(consumers.paused()) == [name]

            await consumers.resume(name)
            await application.run(3)
            assert len({message.id for message in runs}) == len(runs) == 5
            assert [message.headers.get(HeaderName.attempt) for message in runs] == [None] * 5
            assert application.flow.failures == []
            assert await application.listen(1, self._a_while) == 0

    async def test_what_is_sent_twice_is_handled_once(self) -> None:
        """T41: behind an inbox, a second message with the same id is skipped, and others are not."""
        name = unique()
        handled: list[str] = []

        @asynchronous(name)
        @deduplicated
        @command_handler(id="write")
        async def write(note: Note) -> None:
            handled.append(note.text)

        async with self._application(name, write, Failures(Backoff(retries=0))) as application:
            for text, message_id in (("one", "1"), ("one", "1"), ("two", "2"), ("one", "1")):
                await application.flow.send(Note(text), headers={HeaderName.id: f"{name}-{message_id}"})
            await application.run(4)

            assert sorted(handled) == ["one", "two"]
            assert list(await application.flow.dead_letters()) == []

    async def test_what_a_broker_repeats_is_handled_once(self) -> None:
        """T41: also by a handler without a mark, where the message is not removed in its transaction."""
        name = unique()
        handled: list[str] = []

        @asynchronous(name)
        @command_handler(id="write")
        async def write(note: Note) -> None:
            handled.append(note.text)

        async with self._application(name, write, Failures(Backoff(retries=0))) as application:
            channel = application.flow.ecotone.assembly.channels[name]
            self._needs(channel, "durable")
            if channel.capabilities.transactional:
                pytest.skip(f"{type(channel).__name__} removes a message in the transaction of its handler")
            for _ in range(3):
                await application.flow.send(Note("one"), headers={HeaderName.id: f"{name}-1"})
            await application.run(3)

            assert handled == ["one"]

    @property
    def _a_while(self) -> float:
        """Seconds to wait before believing that nothing is received: consumers need more than one question."""
        return max(self.moment, 0.3)

    @asynccontextmanager
    async def _application(self, name: str, handler: object, *plugins: Plugin) -> AsyncIterator[Application]:
        watch, stores = Watch(name), self.stores()
        async with (
            self.channel(name) as channel,
            flow_test([handler], channels=[channel], plugins=[watch, *plugins, *stores]) as flow,
        ):
            yield Application(flow, watch, self.patience)
