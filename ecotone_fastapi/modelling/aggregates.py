"""Aggregates: handlers are methods of the thing that they change; it is loaded before, and saved after.

    @aggregate(identifier="order_id")
    @dataclass
    class Order:
        order_id: str
        status: str

        @classmethod
        @command_handler
        def place(cls, command: PlaceOrder) -> "Order":
            order = cls(command.order_id, "placed")
            record(order, OrderWasPlaced(command.order_id))
            return order

        @command_handler
        def cancel(self, command: CancelOrder) -> None:
            self.status = "cancelled"

What was recorded is published when everything is saved, in the same transaction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.endpoint import Endpoint, Inline, Kind, mark
from ecotone_fastapi.core.errors import (
    AggregateError,
    AggregateNotFoundError,
    ConcurrencyError,
    ConfigurationError,
)
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.pipeline import Call, Order, Proceed, Stage
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.modelling.factories import Factory, is_of_aggregate, pair
from ecotone_fastapi.modelling.fetching import AggregateParameters, with_payload_type
from ecotone_fastapi.modelling.identification import Identified
from ecotone_fastapi.modelling.keeping import Aggregate, Keeping, Kept, Outcome, kept_of
from ecotone_fastapi.modelling.publishing import holding, publish
from ecotone_fastapi.modelling.repository import (
    UNVERSIONED,
    AggregateStore,
    ConvertsAggregates,
    Identifier,
    Versioned,
)

C = TypeVar("C", bound=type)


# ------------------------------------------------------------------------------------------------- marks and decorators


def aggregate(
    *, identifier: str | Sequence[str], version: str | None = None, events: str | None = None
) -> Callable[[C], C]:
    """Keep instances of a class: its handlers are called on the one that a message is for.

    A handler that is a class method or static method returns a new aggregate. A message may have one of each kind: then
    the method is called on the aggregate, if there is one, and else the class method makes it.

    A database keeps the attributes as JSON and reads them by their annotations. Where these say `Any`, only what JSON
    gives back as it was can be saved: texts, numbers, booleans, `None`, and lists and dicts of them. That is not
    checked for the fields of pydantic models, nor within the values that an aggregate holds. What a converter of the
    application handles, the class or the type of an attribute, is written by that, as JSON; also in sequences, sets and
    mappings and where it may be `None`, but not in other unions, nor within the values that an aggregate holds.

    Args:
        identifier: The attribute that identifies one, or several that do so together.
        version: An attribute that is set to the version when the aggregate is loaded and saved.
        events: An attribute with a list of recorded events, or a method that returns them, where you have one already.
            It is emptied.

    Example:
        >>> @aggregate(identifier="order_id")
        ... class Order:
        ...     def __init__(self, order_id: str) -> None:
        ...         self.order_id = order_id
    """
    names = (identifier,) if isinstance(identifier, str) else tuple(identifier)
    return attach(Aggregate(names, version, events, StateStored()))


def attach(described: Aggregate) -> Callable[[C], C]:
    """Put the marks of an aggregate on a class."""
    if not described.identifier:
        raise ConfigurationError("an aggregate has an identifier", hint='write @aggregate(identifier="order_id")')

    def decorate(cls: C) -> C:
        return mark(described)(mark(Inline())(cls))

    return decorate


class StateStored:
    """The state is saved; what a method returns is the answer, unless it is another aggregate.

    One with the same identifier takes the place of the aggregate: a frozen one changes like that.
    """

    def choose(self, stores: Sequence[AggregateStore]) -> AggregateStore | None:
        """Choose the first one."""
        return next(iter(stores), None)

    def when_recorded(self, aggregate: Any, event: Any) -> None:
        """Do nothing: the method that records has changed the state."""

    def outcome(self, kept: Kept, instance: Any, result: Any, known: Mapping[type, Kept]) -> Outcome:
        """Save the aggregate, and those that were returned."""
        returned = list(result) if isinstance(result, list | tuple) and result else [result]
        made = [one for one in returned if kept_of(one, known) is not None]
        all_made = len(made) == len(returned)
        if instance is None:
            if not all_made:
                raise AggregateError(
                    f"a factory of {kept.label} has returned {result!r}",
                    hint="return the new aggregate, or a list of several",
                )
            return Outcome(made, identify=True)
        if not all_made:  # a list of this and that is an answer
            return Outcome([instance], answer=result)
        others = []
        for one in made:
            if one is instance:
                continue
            if type(one) is type(instance) and kept.identifier_of(one) == kept.identifier_of(instance):
                kept.succeed(instance, one)
                instance = one
            else:
                others.append(one)
        return Outcome([instance, *others])

    def __repr__(self) -> str:
        return "StateStored()"


# ----------------------------------------------------------------------------------------------------------- the plugin


@runtime_checkable
class KeepsAggregates(Protocol):
    """A plugin with stores of aggregates."""

    @property
    def aggregate_stores(self) -> Sequence[AggregateStore]:
        """The stores; the first one that serves a class has its aggregates."""
        ...


class Aggregates:
    """The plugin behind `@aggregate`; installed by default.

    Args:
        stores: Your own stores of aggregates; they are asked before all others.

    Example:
        >>> plugin = Aggregates()
    """

    def __init__(self, stores: Sequence[AggregateStore] = ()) -> None:
        self._stores = tuple(stores)
        self._keeping: Keeping | None = None

    def install(self, assembly: Assembly) -> None:
        """Load and save around the handlers of aggregates, and offer repositories.

        Raises:
            ConfigurationError: A factory and a method do not fit together, or a class has not what it needs.
            MissingServiceError: Nothing keeps aggregates of a class.
        """
        own, others = [*self._stores], list[AggregateStore]()
        if AggregateStore in assembly.services:
            own.append(cast("AggregateStore", assembly.services[AggregateStore]))
        for plugin in assembly.plugins:
            if isinstance(plugin, KeepsAggregates):
                others += plugin.aggregate_stores
        gateway = assembly.gateway
        converting = partial(_converting, conversion=gateway.conversion)
        keeping = self._keeping = Keeping([*map(converting, own)], [*map(converting, others)], gateway)
        problems: list[ConfigurationError] = []
        for owner in dict.fromkeys(one.owner for one in assembly.endpoints if is_of_aggregate(one)):
            try:
                keeping.kept(cast("type", owner))
            except ConfigurationError as problem:
                problems.append(problem)
        assembly.endpoints = [with_payload_type(one) for one in assembly.endpoints]
        factories, misfits = pair(assembly)
        problems += misfits
        makers = {method: ", ".join(one.label for one in beside) for method, beside in factories.items()}
        parameters = AggregateParameters(keeping, makers)
        flow = _Flow(keeping, parameters, factories)

        async def find_out(call: Call, proceed: Proceed) -> Any:
            """Let the sender of a command know at once when it does not tell which aggregate it is for."""
            if call.channel is None:
                flow.identify(call)
            return await proceed(call)

        async def act(call: Call, proceed: Proceed) -> Any:
            """Load the aggregate, let it handle the message, save it, publish what it has recorded."""
            return await flow.act(call, proceed)

        async def publish_saved(call: Call, proceed: Proceed) -> Any:
            """Publish what aggregates have recorded that the handler has saved."""
            with holding() as events:
                result = await proceed(call)
            await publish(gateway, events)
            return result

        assembly.add_interceptor(
            find_out,
            stage=Stage.HANDLE,
            order=Order.ASYNCHRONOUS - 1,
            when=lambda one: one.kind is Kind.COMMAND and one.id in parameters.asynchronous and one.id not in factories,
        )
        assembly.add_interceptor(act, stage=Stage.HANDLE, order=Order.STATE, when=is_of_aggregate)
        assembly.add_interceptor(
            publish_saved,
            stage=Stage.HANDLE,
            order=Order.STATE,
            when=lambda one: one.id in parameters.saving and not is_of_aggregate(one),
        )
        assembly.add_resolver(parameters)
        ConfigurationError.raise_all(problems)

    def kept(self, cls: type) -> Kept:
        """Return what is known of a class of aggregates, for tools.

        Raises:
            ConfigurationError: It is none, or this plugin was not installed.
        """
        if self._keeping is None:
            raise ConfigurationError("aggregates are known when the application was put together", hint="start it")
        return self._keeping.kept(cls)


def _converting(store: AggregateStore, conversion: Conversion) -> AggregateStore:
    return store.converting(conversion) if isinstance(store, ConvertsAggregates) else store


class _Flow:
    """What happens around a handler of an aggregate."""

    def __init__(
        self, keeping: Keeping, parameters: AggregateParameters, factories: Mapping[str, Sequence[Factory]]
    ) -> None:
        self._known = keeping.known
        self._gateway: Gateway = keeping.gateway
        self._finders = parameters.finders
        self._factories = factories

    async def act(self, call: Call, proceed: Proceed) -> Any:
        endpoint = cast("Endpoint", call.endpoint)
        kept = self._known[cast("type", endpoint.owner)]
        instance: Any = None
        expected: int | None = None
        if endpoint.needs_instance:
            expected = self._finders[endpoint.id].expected_version(call.message)
            loaded = await self._load(kept, call, expected)
            if loaded is not None:
                instance = loaded.state
                call = replace(call, instance=instance)
            else:
                factory = self._factory(endpoint, call.message)
                if factory is None:
                    return None
                proceed = self._gateway.inner(factory)
        with holding() as events:
            result = await proceed(call)
            if endpoint.kind is Kind.QUERY:
                return result
            outcome = kept.described.model.outcome(kept, instance, result, self._known)
            try:
                first = await self._save(outcome, events)
            except ConcurrencyError as error:
                # The next time, the version will not be the expected one either.
                error.passing = error.passing and expected is None
                raise
        await publish(self._gateway, events)
        return first.value if outcome.identify and first is not None else outcome.answer

    async def _save(self, outcome: Outcome, events: list[Message[Any]]) -> Identifier | None:
        first: Identifier | None = None
        for changed in outcome.changed:
            kept = cast("Kept", kept_of(changed, self._known))
            identifier, saved = kept.remains(changed) if kept.is_deleted(changed) else await kept.save(changed)
            first = first or identifier
            events += saved.events
        return first

    def identify(self, call: Call) -> Identifier:
        """Return the identifier that a message tells.

        Raises:
            AggregateNotFoundError: It tells none.
        """
        endpoint = cast("Endpoint", call.endpoint)
        kept = self._known[cast("type", endpoint.owner)]
        told = self._finders[endpoint.id].find(call.message)
        identifier = kept.identifier(told) if told is not None else None
        if identifier is not None:
            return identifier
        raise AggregateNotFoundError(
            f"{endpoint.label}: the message does not tell which {kept.label} it is for",
            tried=self._finders[endpoint.id].described,
            hint=f"send it with headers={{{HeaderName.aggregate_id!r}: …}}, mark a field with TargetIdentifier, or "
            "write @identified(by=…) above the handler",
        )

    async def _load(self, kept: Kept, call: Call, expected: int | None) -> Versioned[Any] | None:
        endpoint = cast("Endpoint", call.endpoint)
        may_create = self._factory(endpoint, call.message) is not None
        try:
            identifier = self.identify(call)
        except AggregateNotFoundError:
            if may_create:
                return None
            raise
        loaded = await kept.load(identifier)
        actual = 0 if loaded is None else loaded.version
        if loaded is None and not may_create:
            told = endpoint.find(Identified)
            if told is not None and told.missing == "ignore" and endpoint.kind is not Kind.QUERY:
                return None
            raise kept.not_found(identifier)
        if expected is not None and expected != actual:
            if actual == UNVERSIONED:
                raise AggregateError(
                    f"the message expects a version, and those of {kept.label} are not counted",
                    hint="give the mapped class a version_id_col",
                )
            raise ConcurrencyError(
                f"the {kept.label} {identifier.value!r} is not as its sender knows it",
                expected=expected,
                actual=actual,
                passing=False,
                hint="load it again, and decide anew",
            )
        return loaded

    def _factory(self, endpoint: Endpoint, message: Message[Any]) -> str | None:
        """Return the id of the handler that makes an aggregate when there is none."""
        return next((one.id for one in self._factories.get(endpoint.id, ()) if one.takes(message.payload)), None)
