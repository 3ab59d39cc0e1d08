"""An endpoint, ready to be called: its payload is read, interceptors stand around it, its plan resolves the rest."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.endpoint import Endpoint
from ecotone_fastapi.core.errors import ConversionError, UnknownEndpointError
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.pipeline import Around, Call, Order, Proceed, compose
from ecotone_fastapi.core.plan import Plan
from ecotone_fastapi.core.routing import Routing, is_typed_dict, members_of

_RAW = (bytes, str)  # what may be the payload in the form of a wire

Overrides = Mapping[Callable[..., Any], Callable[..., Any]]
"""What replaces dependencies, by what is replaced."""


class Handler:
    """An endpoint, ready to be called.

    Args:
        endpoint: The endpoint.
        plan: Makes its plan under some overrides.
        overrides: Tells the overrides of just now.
        conversion: Reads its payload.
        routing: Knows the types that payloads may be of.
        arounds: Tells who stands around it; asked when there is a plan, for what it is given may decide that.

    Attributes:
        plan: How it is called, without overrides.
        handle: Runs it with a message that was sent in this process.
        handle_within: Runs it within a unit of work, with nothing around it that opens one.
        handle_received: Runs it with a message from a channel.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        plan: Callable[[Overrides], Plan],
        overrides: Callable[[], Overrides],
        conversion: Conversion,
        routing: Routing,
        arounds: Callable[[], Sequence[Around]],
    ) -> None:
        self.endpoint: Endpoint = endpoint
        self._make_plan = plan
        self._overrides = overrides
        self._conversion = conversion
        self._routing = routing
        self._first_overrides = dict(overrides())
        self.plan: Plan = plan(self._first_overrides)
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._wanted = self.plan.payload_type
        # Exactly these can be told by `isinstance`; constrained, generic and typed-dict payloads are validated.
        self._classes: tuple[type, ...] | None = None
        if _is_plain(self._wanted) or not conversion.validates(self._wanted):
            classes = [member for member in members_of(self._wanted) if isinstance(member, type)]
            self._classes = tuple(dict if is_typed_dict(cls) else cls for cls in classes)
        # Types of payloads that were let through as they are; `isinstance` need not be asked again.
        self._accepted: set[type] = set()
        self._arounds = arounds
        self.surround()

    def surround(self) -> None:
        """Put all interceptors around the handler that are to stand there by now."""
        around_it = self._arounds()
        outer = [around.interceptor for around in around_it if around.order <= Order.ASYNCHRONOUS]
        inner = [around.interceptor for around in around_it if around.order > Order.ASYNCHRONOUS]
        users = [around.interceptor for around in around_it if Order.OUTGOING < around.order < Order.STATE]
        self.handle: Proceed = compose([*outer, *inner], self._run)
        self.handle_within: Proceed = self._reading(compose(users, self._run))
        # What only crosses a channel is never read: bytes become a payload inside the asynchronous interceptor.
        self.handle_received: Proceed = compose(outer, self._reading(compose(inner, self._run)))

    def _reading(self, proceed: Proceed) -> Proceed:
        return lambda call: proceed(call.saying(self.accept(call.message)))

    def _run(self, call: Call) -> Awaitable[Any]:
        overrides = self._overrides()
        plan = self.plan if not overrides and not self._first_overrides else self._plan_under(overrides)
        return plan.run(call)

    def _plan_under(self, overrides: Overrides) -> Plan:
        key = tuple(overrides.items())
        if key not in self._plans:
            self._plans[key] = self._make_plan(dict(key))
        return self._plans[key]

    def accept(self, message: Message[Any]) -> Message[Any]:
        """Return the message with a payload of the type that the handler wants.

        Raises:
            ConversionError: They do not fit.
        """
        payload, wanted = message.payload, self._wanted
        if wanted is None or type(payload) in self._accepted:
            return message
        try:
            if isinstance(payload, _RAW):
                content_type = message.headers.get(HeaderName.content_type)
                if content_type is not None:
                    data = payload.encode() if isinstance(payload, str) else payload
                    value = self._conversion.decode(data, self._concrete(message), content_type)
                    return message.without_headers([HeaderName.content_type]).with_payload(value)
            if wanted is Any or (self._classes is not None and isinstance(payload, self._classes)):
                if not isinstance(payload, _RAW):
                    self._accepted.add(type(payload))
                return message
            return message.with_payload(self._conversion.convert(payload, wanted))
        except ConversionError as error:
            error.add_note(f"while reading the payload for {self.endpoint.label}")
            raise

    def _concrete(self, message: Message[Any]) -> Any:
        """The type to read: the one that the sender named, when the handler takes it, else what the handler says."""
        name = message.headers.get(HeaderName.type)
        named = self._routing.types.find(name) if name is not None else None
        if named is not None and self._classes is not None and issubclass(named, self._classes):
            return named
        if name is not None and named is None and self._wanted is object:
            raise ConversionError(
                f"nothing here is known by the message name {name!r}",
                tried="payload types of all handlers and their subclasses",
                hint="import its class here, or tell the old name: @message_name(..., aliases=[...])",
            )
        return self._wanted


def handler_of(handlers: Mapping[str, Handler], endpoint_id: str) -> Handler:
    """Return the handler with this id.

    Raises:
        UnknownEndpointError: There is none.
    """
    try:
        return handlers[endpoint_id]
    except KeyError:
        raise UnknownEndpointError(
            f"there is no handler {endpoint_id!r} here",
            tried=", ".join(sorted(handlers)[:20]),
            hint="give a handler that was moved or renamed its former id: @event_handler(id=...)",
        ) from None


def _is_plain(type_: Any) -> bool:
    """Whether values of a type can be told by `isinstance` alone."""
    if isinstance(type_, UnionType) or get_origin(type_) is Union:
        return all(_is_plain(member) for member in get_args(type_))
    return isinstance(type_, type) and get_origin(type_) is None and not is_typed_dict(type_)
