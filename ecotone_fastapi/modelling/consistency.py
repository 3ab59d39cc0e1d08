"""Dynamic consistency boundaries: a decision holds as long as nothing has happened that it was made on.

    class EmailInUse:
        def __init__(self) -> None:
            self.by: str | None = None

        @applies
        def when_registered(self, event: UserWasRegistered) -> None:
            self.by = event.user_id

    @command_handler
    async def register(command: RegisterUser, decisions: Decisions) -> None:
        in_use = await decisions.load(EmailInUse, email=command.email)
        if in_use.state.by is not None:
            raise EmailInUseError(command.email)
        await decisions.append(UserWasRegistered(command.user_id, command.email), given=[in_use])

What an event is about is told by its fields: `email: Annotated[str, Tag()]`. The rule needs no aggregate that holds all
addresses, and registrations of different addresses do not get in each other's way.

The pattern is Sara Pellegrini's and Milan Savić's, https://dcb.events.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ecotone_fastapi.core.endpoint import Kind
from ecotone_fastapi.core.errors import ConversionError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import new_id
from ecotone_fastapi.modelling.applying import Applying
from ecotone_fastapi.modelling.event_storage import (
    START,
    AppendCondition,
    EventFilter,
    Expected,
    Position,
)
from ecotone_fastapi.modelling.event_store import EventStore
from ecotone_fastapi.modelling.event_types import EventTypes
from ecotone_fastapi.modelling.stream_names import stream_of
from ecotone_fastapi.modelling.tags import tag_names, tag_of

S = TypeVar("S")

_CATEGORY = "decision"  # of the streams of what is appended without saying where
_PAGE = 500  # events that are read at a time


@dataclass(frozen=True, slots=True)
class Known(Generic[S]):
    """What a decision can be made on.

    Args:
        state: The model to which all events that it is about have been applied.
        which: These events.
        upto: Up to where all of them are known.
        positions: Where those stand that were applied.
    """

    state: S
    which: EventFilter
    upto: Position
    positions: Sequence[Position]


class Decisions:
    """Loads what decisions depend on, and appends what they lead to; for handlers that ask for it by its type.

    What the handler itself has appended in the same transaction is not seen, and excluded by a condition: decide once.

    Args:
        events: The store.
        types: Which events there are.
        gateway: Publishes what was appended.

    Example:
        >>> async def rename(command: object, decisions: Decisions) -> None: ...
    """

    def __init__(self, events: EventStore, types: EventTypes, gateway: Gateway) -> None:
        self._events = events
        self._types = types
        self._gateway = gateway
        self._models: dict[type, Applying] = {}

    async def load(self, model: type[S], /, **tags: Any) -> Known[S]:
        """Apply all events with these tags to a new object of a class with `@applies` methods.

        Args:
            model: The class; the events that its methods apply are the ones that count.
            tags: Names and values; events that have all of these tags count.

        Raises:
            ConversionError: No tag is given.
            UnknownEventError: An event has a name or a revision that nothing here knows.

        Example:
            >>> async def enroll(command: dict, decisions: Decisions) -> None:
            ...     seats = await decisions.load(object, course=command["course"])
        """
        if not tags:
            raise ConversionError(
                f"the decision model {model.__qualname__} would depend on all events",
                hint="say what it is about, by a tag of its events: load(EmailInUse, email=command.email)",
            )
        applying = self._model(model)
        self._check_tags(model, applying, tags)
        # Classes that were made since the last time count, too.
        names = self._types.names_of(applying.events)
        which = EventFilter(names=names, tags=frozenset(tag_of(name, value) for name, value in tags.items()))
        state, upto, positions = applying.new(), START, list[Position]()
        # What is committed behind a transaction that is still open counts, too: it will not be excluded by it.
        for settled in (False, True):
            after, more = upto, True
            while more:
                page = await self._events.storage.read_all(after=after, limit=_PAGE, which=which, settled=settled)
                for event in page.events:
                    message = self._events.reader.read(event)
                    applying.apply(state, message.payload, message.headers)
                    if event.position is not None:
                        positions.append(event.position)
                after, more = page.upto, page.more
            if not settled:
                upto = after
        return Known(state, which, upto, positions)

    async def append(
        self,
        *events: Any,
        given: Sequence[Known[Any]],
        stream: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Append and publish events, if nothing has happened since what the decision was made on was loaded.

        Args:
            events: What was decided: payloads, or `Message`s with headers of their own.
            given: What the decision was made on.
            stream: The stream that they are appended to; by default one of their own.
            headers: What is written with each event.

        Raises:
            ConcurrencyError: Something has happened. With a database, the whole command is run again by itself.
        """
        if not given:
            raise ConversionError(
                "a decision that depends on nothing was to be appended",
                hint="name what it was made on, append(..., given=[known]), or use EventStore.append",
            )
        after = min(one.upto for one in given)
        known = frozenset(place.number for one in given for place in one.positions if place > after)
        condition = AppendCondition(tuple(one.which for one in given), after, known)
        messages = [self._events.message(event, headers) for event in events]
        home = stream or stream_of(_CATEGORY, new_id())
        await self._events.append_messages(home, messages, expected=Expected.ANY, condition=condition)
        for message in messages:
            await self._gateway.dispatch(Kind.EVENT, message)

    def _model(self, model: type) -> Applying:
        known = self._models.get(model)
        if known is None:
            known = Applying(model)
            known.check()
            for event in known.events:
                self._types.add(event)
            self._models[model] = known
        return known

    def _check_tags(self, model: type, applying: Applying, tags: Mapping[str, Any]) -> None:
        """Refuse tags that no event of a model has: a decision on none of them would always hold."""
        named = {name for cls in applying.events for name in tag_names(cls)}
        unknown = [name for name in tags if name not in named]
        if named and unknown:  # without any, events are tagged by their header
            raise ConversionError(
                f"no event that {model.__qualname__} applies has the tag {', '.join(map(repr, unknown))}",
                tried=", ".join(sorted(named)),
                hint="mark the field of the event, Annotated[str, Tag()], or mend the name",
            )
