"""How a projection handles events: in order, in one unit of work with its state and its checkpoint."""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from ecotone_fastapi.core.conversion import JSON
from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.errors import ConfigurationError, ConversionError, ProjectionError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import Message, aliases_of, name_of
from ecotone_fastapi.core.pipeline import Call, Proceed, Scope
from ecotone_fastapi.core.routing import Routing
from ecotone_fastapi.core.watching import Operation, Watching
from ecotone_fastapi.modelling.event_storage import (
    START,
    EventFilter,
    Expected,
    Page,
    Position,
    StoredEvent,
)
from ecotone_fastapi.modelling.event_store import EventStore
from ecotone_fastapi.modelling.event_types import StoredHeaders, revision_in
from ecotone_fastapi.modelling.projection_store import (
    EVER,
    Condition,
    PartitionRecord,
    ProjectionRecord,
    ProjectionStore,
)
from ecotone_fastapi.modelling.projections import RUN, Hook, Methods, Projection, Run, hidden
from ecotone_fastapi.modelling.revisions import leave, read_between, take_left
from ecotone_fastapi.modelling.stream_names import category_of

EMITTED = "projection"
"""The category of the streams of what projections emit."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is done in one unit of work.

    Args:
        act: Does it.
    """

    act: Callable[[], Awaitable[Any]]


class Watch:
    """Tells, of a unit of work that has failed, how far it had come."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.handled: int = 0

    @property
    def event(self) -> StoredEvent | None:
        """The event that was being handled."""
        return None if self.run is None else self.run.event

    @property
    def smaller(self) -> int:
        """How many events a smaller batch is to have; 0 when the first event of the batch is the one that fails.

        What stands before the event that fails is handled first. When none of them has failed, but what comes after
        them, it is not known which one is to blame.
        """
        over = self.run is not None and self.run.over
        return self.handled // 2 if over else self.handled


class Projector:
    """One projection, ready to handle events.

    Args:
        described: Its mark.
        methods: Its methods.
        which: The events that it reads.
        gateway: Calls its methods.
        events: Where events are.
        store: Keeps its checkpoints.

    Raises:
        ConfigurationError: A handler has no route.
    """

    def __init__(
        self,
        described: Projection,
        methods: Methods,
        which: EventFilter,
        *,
        gateway: Gateway,
        events: EventStore,
        store: ProjectionStore,
    ) -> None:
        self.described = described
        self.methods = methods
        self.which = which
        self.events = events
        self.store = store
        self.gateway = gateway
        self.name: str = described.name
        self.synchronous: bool = described.mode == "synchronous"
        self._routing = Routing(methods.handlers)
        self._known: dict[tuple[str, int], tuple[tuple[Endpoint, Proceed], ...]] = {}
        self._route = f"projection:{self.name}"
        self.beside: bool = False  # whether there are versions of other revisions, as far as it is known

    @property
    def endpoints(self) -> Iterable[Endpoint]:
        """What is called through the gateway: handlers and hooks, and what stands for a unit of work."""
        yield Endpoint(self._route, Kind.INTERNAL, self._route, None, _perform)
        yield from (hidden(one, self.described) for one in self.methods.handlers)
        yield from self.methods.hooks.values()

    async def unit(self, act: Callable[[], Awaitable[Any]]) -> Any:
        """Do something in a unit of work: that of the calling task, else one of its own, which may be tried again."""
        return await self.gateway.dispatch(Kind.INTERNAL, self.gateway.message(Work(act)), self._route)

    # ------------------------------------------------------------------------------------------------------- versions

    def is_mine(self, record: ProjectionRecord) -> bool:
        """Whether this code works on a version."""
        return record.revision == self.described.revision and record.condition is not Condition.RETIRED

    async def mine(self) -> Sequence[ProjectionRecord]:
        """Return the versions that this code works on; the first one is begun if need be.

        Raises:
            ProjectionError: One counts in another way.
        """
        versions = await self.store.versions(self.name)
        if not any(one.revision == self.described.revision for one in versions):
            await self.unit(self.begin)
            versions = await self.store.versions(self.name)
        self.beside = any(one.revision != self.described.revision for one in versions)
        return self.checked(versions)

    def checked(self, versions: Sequence[ProjectionRecord]) -> Sequence[ProjectionRecord]:
        """Return those that this code works on.

        Raises:
            ProjectionError: One counts in another way.
        """
        found = [one for one in versions if self.is_mine(one)]
        for one in found:
            if one.shape != self.described.shape:
                raise ProjectionError(
                    f"the projection {self.name!r} was {one.shape} when version {one.version} of it was begun, and is "
                    f"{self.described.shape} now: its checkpoint means nothing any more",
                    hint="delete and initialise it, or raise its revision to make a version beside the live one",
                )
        return found

    async def find(self, version: int) -> ProjectionRecord | None:
        """Return a version; `None` when there is none."""
        versions = await self.store.versions(self.name)
        return next((one for one in versions if one.version == version), None)

    async def is_gone(self, record: ProjectionRecord, *, token: bool = True) -> bool:
        """Whether a version was deleted, retired, or, if its token counts, taken away, while it was worked on."""
        now = await self.find(record.version)
        return now is None or not self.is_mine(now) or (token and now.token != record.token)

    async def begin(self) -> None:
        """Add the first version of this revision, and run `init`; within a unit of work."""
        versions = await self.store.lock(self.name)
        if any(one.revision == self.described.revision for one in versions):
            return
        replaces = any(one.condition is Condition.LIVE for one in versions)
        builds = replaces or (self.synchronous and await self.has_history())
        await self.add(
            ProjectionRecord(
                self.name,
                1 + max((one.version for one in versions), default=0),
                self.described.shape,
                self.described.revision,
                Condition.BUILDING if builds else Condition.LIVE,
                silent_until=EVER if replaces else START,
                by_hand=replaces,
                began_at=self.gateway.clock.now() if builds else None,
                total=await self.size(START) if builds else 0,
            )
        )

    async def add(self, record: ProjectionRecord) -> None:
        """Add a version, and run `init`; within a unit of work."""
        if await self.store.add(record):
            await self.hook(Hook.INIT, Run(record))

    async def has_history(self) -> bool:
        """Whether there is an event for it."""
        return bool((await self.events.storage.read_all(after=START, limit=1, which=self.which)).events)

    async def size(self, after: Position) -> int:
        """Return how many events, or partitions, there are behind a position."""
        if self.described.partitioned:
            return len(await self.streams())
        return await self.events.storage.count(after=after, which=self.which)

    async def streams(self) -> Sequence[str]:
        """Return the names of the streams that it reads."""
        found = list(self.which.streams)
        for category in sorted(self.which.categories):
            page = await self.events.storage.streams(category, archived=True)
            while page:
                found += page
                page = await self.events.storage.streams(category, after=page[-1], archived=True)
        return list(dict.fromkeys(found))

    def reads(self, stream: str) -> bool:
        """Whether it reads the events of a stream."""
        return stream in self.which.streams or category_of(stream) in self.which.categories

    async def read(self, after: Position, limit: int) -> Page:
        """Return events behind a position."""
        return await self.events.storage.read_all(after=after, limit=limit, which=self.which)

    # --------------------------------------------------------------------------------------------------------- batches

    async def handle(
        self,
        record: ProjectionRecord,
        events: Sequence[StoredEvent],
        upto: Position,
        watch: Watch,
    ) -> ProjectionRecord:
        """Handle events of a global projection, in a unit of work of its own with the checkpoint.

        Args:
            record: The version, as it was left.
            events: The events behind its position.
            upto: Where to read on after them.
            watch: Is told how far it has come.

        Raises:
            LeaseLostError: Somebody else runs it by now.
            Exception: What a handler has raised.
        """
        after: ProjectionRecord = await self.unit(lambda: self.within(record, events, upto, watch))
        return after

    async def within(
        self, record: ProjectionRecord, events: Sequence[StoredEvent], upto: Position, watch: Watch
    ) -> ProjectionRecord:
        """Do the same within the unit of work of the calling task."""
        run = watch.run = Run(record, self.load(record.state))
        with self._watched(run, events):
            await self.feed(run, events, watch)
            state, done = self.dump(run.state), record.done + len(events)
            after = replace(record, position=upto, state=state, done=done, halt=None)
            await self.store.save(record, after)
        return after

    async def feed(
        self,
        run: Run,
        events: Sequence[StoredEvent],
        watch: Watch | None = None,
        messages: Sequence[Message[Any]] | None = None,
    ) -> None:
        """Take events to their handlers, and then run `flush`; within a unit of work.

        Args:
            run: What the unit of work is about; it keeps the state.
            events: The events, in order.
            watch: Is told how far it has come.
            messages: What the events say, where that is known.
        """
        scope = current_scope()
        assert scope is not None
        outer = scope.state.get(RUN)
        scope.state[RUN], run.outer = run, outer
        run.emitter = _Emitter(self, run)
        try:
            await self._feed(run, events, scope, watch, messages)
            run.over = True
            if events:
                await self.hook(Hook.FLUSH, run)
        finally:
            scope.state[RUN] = outer

    def _watched(self, run: Run, events: Sequence[StoredEvent]) -> AbstractContextManager[object]:
        watching = self.gateway.watching
        return self._shown(run, events, watching) if watching else nullcontext()

    @contextmanager
    def _shown(self, run: Run, events: Sequence[StoredEvent], watching: Watching) -> Iterator[None]:
        stored = [Message(event.body, StoredHeaders(event)) for event in events]
        with watching.during(Operation.PROCESS, "project", self.name, stored) as work:
            try:
                yield
            except BaseException:
                if run.event is not None and not run.over:
                    work.at, work.endpoint = Message(run.event.body, StoredHeaders(run.event)), run.handler
                raise

    async def _feed(
        self,
        run: Run,
        events: Sequence[StoredEvent],
        scope: Scope,
        watch: Watch | None,
        messages: Sequence[Message[Any]] | None,
    ) -> None:
        known, read, stateful = self._known, self.events.reader.read, self.methods.stateful
        standing_for, watching = self.gateway.standing_for, self.gateway.watching
        if watch is not None:
            watch.handled = 0
        for at, event in enumerate(events):
            run.event, run.handler = event, None
            form = (event.name, revision_in(event))  # upcasters may take each to another class
            handlers = known.get(form)
            if handlers is None or handlers:
                message = read(event) if messages is None else messages[at]
                if handlers is None:
                    handlers = known[form] = self._find(event.name, message.payload)
                run.message = message
                standing_for(message)
                for endpoint, handler in handlers:
                    run.handler = endpoint
                    if not watching.wants_handlers:
                        result = await handler(Call(message, endpoint, None, scope))
                    else:
                        stored = [Message(event.body, StoredHeaders(event))]
                        with watching.during(Operation.HANDLE, "handle", self.name, stored, endpoint=endpoint):
                            result = await handler(Call(message, endpoint, None, scope))
                    if stateful and result is not None:
                        run.state = result
            if watch is not None:
                watch.handled = at + 1

    def _find(self, name: str, payload: Any) -> tuple[tuple[Endpoint, Proceed], ...]:
        cls = type(payload)
        if not any(name == name_of(base) or name in aliases_of(base) for base in cls.__mro__):
            name = name_of(cls)  # an upcaster has renamed it
        by_type = self._routing.find(Kind.EVENT, payload, None)
        by_name = self._routing.find(Kind.EVENT, payload, name)
        distinct = list({one.id: one for one in (*by_type, *by_name)}.values())
        distinct.sort(key=lambda endpoint: -endpoint.priority)
        return tuple((hidden(one, self.described), self.gateway.inner(one.id)) for one in distinct)

    async def hook(self, hook: Hook, run: Run) -> bool:
        """Run a hook, if there is one; within a unit of work. Return whether there is one."""
        endpoint = self.methods.hooks.get(hook)
        scope = current_scope()
        if endpoint is None or scope is None:
            return False
        outer = scope.state.get(RUN)
        scope.state[RUN] = run
        try:
            result = await self.gateway.inner(endpoint.id)(Call(self.gateway.message(None), endpoint, None, scope))
            if self.methods.stateful and result is not None:
                run.state = result
        finally:
            scope.state[RUN] = outer
        return True

    async def empty(self, run: Run) -> None:
        """Run `reset`, or else `delete` and `init`; within a unit of work.

        Raises:
            ProjectionError: It cannot be emptied.
        """
        if not await self.hook(Hook.RESET, run):
            self.check_resettable()
            if await self.hook(Hook.DELETE, run):
                await self.hook(Hook.INIT, run)

    def check_resettable(self) -> None:
        """Make sure that it can be emptied.

        Raises:
            ProjectionError: It cannot.
        """
        hooks = self.methods.hooks
        if Hook.RESET in hooks or self.methods.stateful:
            return
        if self.described.partitioned or not {Hook.DELETE, Hook.INIT} <= set(hooks):
            raise ProjectionError(
                f"the projection {self.name!r} cannot be rebuilt: nothing empties what it has written",
                hint="write a method for that and put @projection.reset above it"
                + (" (for one partition, which it can ask for: partition: Partition)" * self.described.partitioned),
            )

    # ------------------------------------------------------------------------------------------------------ partitions

    async def advance(
        self, record: ProjectionRecord, partition: PartitionRecord, limit: int | None, watch: Watch | None = None
    ) -> PartitionRecord:
        """Handle what is new in a stream; all of it anew when it is to be rebuilt. Within a unit of work.

        Args:
            record: The version.
            partition: The partition, which nobody else has meanwhile.
            limit: How many events at most; a partition that is rebuilt has no limit.
            watch: Is told how far it has come.
        """
        if limit is not None and limit <= 0:
            return partition
        rebuilt = partition.round < record.round
        run = Run(record, self.load(None if rebuilt else partition.state), partition.stream)
        if watch is not None:
            watch.run, watch.handled = run, 0
        if rebuilt:
            await self.empty(run)
            silent = max(partition.silent_until, partition.position)
            partition = replace(partition, position=0, silent_until=silent, round=record.round)
            limit = None
        events = await self.events.storage.read(partition.stream, after=partition.position, limit=limit, archived=True)
        return await self.take(run, partition, events, watch)

    async def take(
        self,
        run: Run,
        partition: PartitionRecord,
        events: Sequence[StoredEvent],
        watch: Watch | None = None,
        messages: Sequence[Message[Any]] | None = None,
    ) -> PartitionRecord:
        """Let a partition handle these events, and what its handlers append to its stream meanwhile.

        Within a unit of work. Return the partition behind them.
        """
        run.silent_until_version, position = partition.silent_until, partition.position
        with self._watched(run, events):
            await self.feed(run, events, watch, messages)
        position = events[-1].version if events else position
        while run.later:
            events, messages = run.later.pop(0)
            if position + 1 != events[0].version:  # there was a limit
                storage, upto = self.events.storage, events[-1].version
                events, messages = await read_between(storage, partition.stream, position, upto), None
            with self._watched(run, events):
                await self.feed(run, events, watch, messages)
            position = events[-1].version
        # A stream that is gone, or shorter than was noted, has nothing more to tell.
        wanted = max(partition.wanted, position) if events else position
        return replace(partition, position=position, wanted=wanted, state=self.dump(run.state), halt=None)

    async def forget(self, stream: str) -> None:
        """Let the partition of a stream that is deleted begin anew; within the unit of work that deletes it."""
        for record in await self.store.versions(self.name):
            if await self.store.partition(self.name, record.version, stream) is not None:
                known = await self.store.hold(record, stream)
                fresh = replace(known, position=0, wanted=0, state=None, silent_until=0, halt=None)
                await self.store.keep(self.name, record.version, [fresh])

    # ----------------------------------------------------------------------------------------------------- synchronous

    async def follow(self, events: Sequence[StoredEvent], messages: Sequence[Message[Any]] | None) -> None:
        """Handle events that are being appended or linked, in the unit of work that does it."""
        await self.unit(lambda: self._follow(events, messages))

    async def _follow(self, events: Sequence[StoredEvent], messages: Sequence[Message[Any]] | None) -> None:
        partitioned = self.described.partitioned
        if not partitioned and (run := self._following()) is not None and run.record.condition is Condition.LIVE:
            _put_off(run, (events, messages))  # behind what it handles: its state is not kept yet
            return
        versions = await self._locked(shared=partitioned or not (self.methods.stateful or self.beside))
        for record in versions:
            if record.revision != self.described.revision:
                await leave(self.store, record, events)
        for record in self.checked(versions):
            if partitioned and (run := self._following(record, events[0].stream)) is not None:
                _put_off(run, (events, messages))
            elif partitioned:
                await self._follow_partition(record, events, messages)
            elif record.condition is Condition.LIVE:
                left = await take_left(self.store, self.events.storage, record) if self.beside else ()
                await self._follow_globally(record, [(left, None), (events, messages)])

    async def _locked(self, *, shared: bool) -> Sequence[ProjectionRecord]:
        """Return the versions, the first one of which is begun if need be, as nobody changes them meanwhile.

        Where code of another revision appends, too, all who follow without partitions do so in turn.
        """
        versions = await self.store.lock(self.name, shared=shared)
        if not any(one.revision == self.described.revision for one in versions):
            await self.begin()
            versions = await self.store.lock(self.name, shared=shared)
        self.beside = any(one.revision != self.described.revision for one in versions)
        if shared and self.beside and not self.described.partitioned:
            versions = await self.store.lock(self.name)
        return versions

    async def _follow_globally(
        self,
        record: ProjectionRecord,
        batches: Iterable[tuple[Sequence[StoredEvent], Sequence[Message[Any]] | None]],
        watch: Watch | None = None,
    ) -> int:
        """Handle batches of events, and what their handlers append meanwhile, one after the other; return how many."""
        run, handled = Run(record, self.load(record.state)), 0
        run.later += [batch for batch in batches if batch[0]]
        if watch is not None:
            watch.run = run
        while run.later:
            events, messages = run.later.pop(0)
            with self._watched(run, events):
                await self.feed(run, events, watch, messages)
            handled += len(events)
        if self.methods.stateful or record.halt is not None:
            done = record.done + handled
            await self.store.change(replace(record, state=self.dump(run.state), done=done, halt=None))
        return handled

    async def settle(self, watch: Watch) -> int:
        """Handle what code of another revision has left to the live version; return how many events there were.

        Args:
            watch: Is told how far it has come.
        """

        async def act() -> int:
            handled = 0
            for record in self.checked(await self.store.lock(self.name)):
                if record.condition is Condition.LIVE:
                    left = await take_left(self.store, self.events.storage, record)
                    if left or record.halt is not None:
                        handled += await self._follow_globally(record, [(left, None)], watch)
            return handled

        settled: int = await self.unit(act)
        return settled

    def _following(self, record: ProjectionRecord | None = None, stream: str | None = None) -> Run | None:
        """Return what this projection handles at this moment, when that has led to events being appended or linked.

        Its own handlers do so, or those of another projection that follows what its handlers append.

        Args:
            record: The version that is meant, if it matters.
            stream: The partition that is meant.
        """
        scope = current_scope()
        run: Run | None = scope.state.get(RUN) if scope is not None else None
        while run is not None:
            mine = run.record.name == self.name and run.partition == stream
            if mine and run.emitter is not None and (record is None or run.record.version == record.version):
                return run  # without an emitter it is a hook, which handles no events
            run = run.outer
        return None

    async def _follow_partition(
        self, record: ProjectionRecord, events: Sequence[StoredEvent], messages: Sequence[Message[Any]] | None
    ) -> None:
        partition = await self.store.hold(record, events[0].stream)
        if partition.position + 1 != events[0].version:
            # It was never built, stands still, or code of another revision has appended.
            storage, upto = self.events.storage, events[-1].version
            events, messages = await read_between(storage, partition.stream, partition.position, upto), None
        run = Run(record, self.load(partition.state), partition.stream)
        partition = await self.take(run, partition, events, None, messages)
        await self.store.keep(self.name, record.version, [partition])

    # ----------------------------------------------------------------------------------------------------------- state

    def load(self, text: str | None) -> Any:
        """Return a state that was written as text; the default when there is none."""
        if not self.methods.stateful:
            return None
        if text is None:
            return deepcopy(self.methods.default)
        return self.gateway.conversion.decode(text.encode(), self.methods.state, JSON)

    def load_of(self, record: ProjectionRecord, text: str | None) -> Any:
        """Return a state of a version, which may be that of another revision.

        Raises:
            ProjectionError: This code cannot read it.
        """
        if record.revision == self.described.revision or not self.methods.stateful:
            return self.load(text)
        found: Exception | None = None
        if ("partitioned" in record.shape) is self.described.partitioned:
            try:
                return self.load(text)
            except ConversionError as error:
                found = error
        raise ProjectionError(
            f"the live state of the projection {self.name!r} is that of revision {record.revision}, which the code of "
            f"revision {self.described.revision} cannot read",
            tried=str(found or f"version {record.version} is {record.shape}").splitlines()[0],
            hint=f"ask a process that has that code, or `ecotone projection switch {self.name}` first",
        ) from found

    def dump(self, state: Any) -> str | None:
        """Return a state as text.

        Raises:
            ConversionError: It has no form as JSON.
        """
        if not self.methods.stateful or state is None:
            return None
        body, content_type = self.gateway.conversion.encode(state)
        if content_type != JSON:
            raise ConversionError(
                f"the state of the projection {self.name!r} is written as {content_type}",
                hint="a state is kept as JSON: use a dataclass, a pydantic model, or plain values",
            )
        return body.decode()


def _put_off(run: Run, batch: tuple[Sequence[StoredEvent], Sequence[Message[Any]] | None]) -> None:
    """Let a run handle what was appended after what it handles now, unless the command fails that has appended it."""
    scope = current_scope()
    assert scope is not None
    run.later.append(batch)
    scope.note_change(lambda: run.later.remove(batch) if batch in run.later else None)


async def _perform(work: Work) -> Any:
    """Do what a unit of work is for."""
    return await work.act()


class _Emitter:
    """Emits for one run."""

    def __init__(self, projector: Projector, run: Run) -> None:
        self._projector = projector
        self._run = run

    async def emit(self, event: Any, *, headers: dict[str, str] | None = None) -> None:
        """Append an event to the stream of the projection, and publish it."""
        if self._is_silent():
            return
        events = self._projector.events
        name, partition = self._run.record.name, self._run.partition
        stream = f"{EMITTED}-{name}" if partition is None else f"{EMITTED}-{name}-{partition}"
        message = events.message(event, headers)
        await events.append_messages(stream, [message], expected=Expected.ANY)
        await self._projector.gateway.dispatch(Kind.EVENT, message)

    async def link(self, stream: str) -> None:
        """Let the event that is handled be read in another stream, too."""
        event = self._run.event
        if event is None:
            raise ConfigurationError("there is no event to link", hint="link while an event is handled")
        if not self._is_silent():
            await self._projector.events.link_stored(stream, [event])

    def _is_silent(self) -> bool:
        run = self._run
        if run.record.silent_until == EVER:
            return True
        if run.event is None:
            return False
        if run.partition is not None:
            return run.event.version <= run.silent_until_version
        return run.event.position is not None and run.event.position <= run.record.silent_until
