"""From a signature to a plan: what each parameter is, decided once at start.

First match wins: a resolver's marker (`Depends`, …), `MessageHeader`, `Message`, what the framework offers (buses, …),
a service given by type, the payload (the handler's first parameter that is left), the default value. If none answers,
start fails and says which parameter of which handler through which chain.

What is made for a parameter lives:

- as long as the application: given objects, and classes and functions that need nothing from a message;
- as long as the unit of work: what `Depends` asks for, and what has a `yield`; shared by nested messages, once per
  value of the headers it reads;
- as long as the message: what reads the payload or the message itself.

What the markers of a web framework mean is told by resolvers from outside; this module knows none of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import isroutine
from typing import Any, Literal, TypeVar, get_args, get_origin

from ecotone_fastapi.core.endpoint import Endpoint, Inline
from ecotone_fastapi.core.errors import ConfigurationError, UnresolvableParameterError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.core.plan import FIRST_FREE, PAYLOAD, WHOLE_MESSAGE, Lasting, Plan, Step, invoking, picking
from ecotone_fastapi.core.signatures import EMPTY, Parameter, Way, is_hashable, label, parameters_of, way_of
from ecotone_fastapi.core.suppliers import (
    MESSAGE_ITSELF,
    PAYLOAD_ITSELF,
    Constant,
    Dependency,
    FromMessage,
    FromScope,
    FromSecurityScopes,
    HeaderValue,
    MessageHeader,
    ParameterResolver,
    Supplier,
    header_reader,
    in_words,
    read_header,
    type_shown,
)


def cache_key(call: object, scopes: Iterable[str] = ()) -> object:
    """Return the key under which `Scope.cache` keeps the result of a dependency.

    Args:
        call: The dependency as it was asked for, before overrides.
        scopes: The security scopes it was asked for with, when it or anything below it reads any.
    """
    return ("call", _identity(call), tuple(sorted(set(scopes))))


class Injector:
    """Makes plans, and keeps what lives as long as the application.

    Args:
        resolvers: Who is asked for each parameter, in this order, before anything else.
        offers: What the framework itself supplies, by type or by the dependency that asks for it.
        services: What else is supplied by type: an object, or a class or function that makes it.
        instances: Objects that were given instead of their handler classes.
    """

    def __init__(
        self,
        *,
        resolvers: Sequence[ParameterResolver] = (),
        offers: Mapping[object, object] | None = None,
        services: Mapping[Any, Any] | None = None,
        instances: Mapping[type, object] | None = None,
    ) -> None:
        self.resolvers: tuple[ParameterResolver, ...] = tuple(resolvers)
        self.offers: Mapping[object, object] = offers or {}
        self.services: Mapping[Any, Any] = services or {}
        self.instances: Mapping[type, object] = instances or {}
        self.lasting: Lasting = Lasting()

    def plan(
        self, endpoint: Endpoint, *, asynchronous: bool, overrides: Mapping[Callable[..., Any], Callable[..., Any]]
    ) -> Plan:
        """Make the plan for a handler.

        Args:
            endpoint: The handler.
            asynchronous: Whether it runs in a consumer.
            overrides: Dependencies and classes that are replaced, as `app.dependency_overrides` does.

        Raises:
            ConfigurationError: A parameter of it, or of something that it depends on, cannot be supplied.
        """
        return _Planner(self, endpoint, asynchronous=asynchronous, overrides=overrides).plan()

    def payload_type(self, endpoint: Endpoint) -> Any:
        """Return the type of a handler's payload: that of its first parameter which nothing else supplies.

        Raises:
            ConfigurationError: A parameter before it can never be supplied.
        """
        # Resolvers are not to take for granted what is being found out.
        return _Planner(
            self, replace(endpoint, payload_type=None), asynchronous=False, overrides={}
        ).find_payload_type()


_Life = frozenset[int] | Literal["application", "message"]
"""How long a result lives: with the application, with the message, or with the unit of work and the values of slots."""


def _shortest(lives: Sequence[_Life]) -> _Life:
    """How long something lives that is made of things with these lives."""
    if "message" in lives:
        return "message"
    in_unit = [life for life in lives if isinstance(life, frozenset)]
    return frozenset[int]().union(*in_unit) if in_unit else "application"


@dataclass
class _Planner:
    """Makes one plan."""

    injector: Injector
    endpoint: Endpoint
    asynchronous: bool
    overrides: Mapping[Callable[..., Any], Callable[..., Any]]
    # Where we are: the dependencies on the way from the handler to here, and their security scopes.
    path: list[Any] = field(default_factory=list)
    scopes: tuple[str, ...] = ()
    # What is known so far of signatures, and what was found in the handler's.
    inspected: dict[tuple[object, bool], list[tuple[Parameter, Supplier | None]]] = field(default_factory=dict)
    reading_scopes: dict[object, bool] = field(default_factory=dict)
    payload: Parameter | None = None
    said: Any = None
    # What becomes of it: slots with their first values and lives, what fills them, and words for it.
    template: list[Any] = field(default_factory=lambda: [None] * FIRST_FREE)
    lives: list[_Life] = field(default_factory=lambda: ["message"] * FIRST_FREE)
    steps: list[Step] = field(default_factory=list)
    once: list[Step] = field(default_factory=list)
    slots: dict[object, int] = field(default_factory=dict)
    identities: dict[int, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def plan(self) -> Plan:
        endpoint = self.endpoint
        first = [self._slot(*self._first(one)) for one in endpoint.dependencies]
        way = way_of(endpoint.function)
        if way in (Way.GENERATOR, Way.ASYNC_GENERATOR):
            raise self.error("a message handler cannot use yield", hint="return the result, or publish events")
        if way is Way.THREAD and endpoint.find(Inline) is not None:
            way = Way.INLINE
        instance = self._slot(*self._owner(endpoint.owner)) if endpoint.needs_instance else None
        positional, keywords = self._arguments(endpoint.function, handler=True)
        if instance is not None:
            positional = (instance, *positional)
        return Plan(
            endpoint=endpoint,
            payload_type=self._payload_type(),
            way=way,
            invoke=invoking(endpoint.function, positional, keywords),
            instance=instance,
            needs=(*first, *positional, *(slot for _, slot in keywords)),
            steps=tuple(self.steps),
            once=self.once,
            template=self.template,
            lines=tuple(self.lines),
            lasting=self.injector.lasting,
        )

    def find_payload_type(self) -> Any:
        try:
            self._parameters(self.endpoint.function, handler=True)
        except ConfigurationError:
            if self.payload is None:
                raise
        return self._payload_type()

    def _payload_type(self) -> Any:
        if self.payload is None:
            return self.said
        return Any if self.payload.annotated is EMPTY else self.payload.annotated

    def error(self, what: str, *, tried: str = "", hint: str = "") -> UnresolvableParameterError:
        chain = " -> ".join([self.endpoint.label, *map(label, self.path)])
        return UnresolvableParameterError(f"{chain}: {what}", tried=tried, hint=hint)

    # What a parameter is

    def _first(self, dependency: object) -> tuple[Supplier, Parameter]:
        parameter = Parameter("dependencies", EMPTY, (dependency,), EMPTY, EMPTY)
        supplier = self._ask_resolvers(parameter)
        if supplier is None:
            raise self.error(f"{dependency!r} in dependencies= is no dependency", hint="write Depends(...)")
        return supplier, parameter

    def _owner(self, owner: Any) -> tuple[Supplier, Parameter]:
        parameter = Parameter("self", owner, (), EMPTY, owner)
        if owner in self.injector.instances and owner not in self.overrides:
            return Constant(self.injector.instances[owner]), parameter
        return self._ask_resolvers(parameter) or Dependency(owner, shared=True), parameter

    def _parameters(self, call: Any, *, handler: bool = False) -> list[tuple[Parameter, Supplier | None]]:
        """The parameters of a callable with what supplies them; `None` leaves one to its default."""
        key = (_identity(call), handler)
        if key not in self.inspected:
            try:
                parameters = parameters_of(call, self.endpoint.known_names)
                if handler and self.endpoint.needs_instance:
                    parameters = parameters[1:]
                self.inspected[key] = [(one, self._supplier(one, handler=handler)) for one in parameters]
            except UnresolvableParameterError:
                raise
            except ConfigurationError as error:
                raise self.error(error.what, tried=error.tried, hint=error.hint) from error
        return self.inspected[key]

    def _supplier(self, parameter: Parameter, *, handler: bool) -> Supplier | None:
        """What supplies one parameter. The order of the rules matters."""
        supplier = self._ask_resolvers(parameter) or self._header(parameter)
        if supplier is not None:
            return supplier
        if (get_origin(parameter.annotation) or parameter.annotation) is Message:
            if handler:
                self.said = next((one for one in get_args(parameter.annotation) if not isinstance(one, TypeVar)), None)
            return MESSAGE_ITSELF
        supplier = self.offered(parameter.annotation) or self._replacement(parameter.annotation)
        if supplier is not None:
            return supplier
        if handler and self.payload is None:
            self.payload = parameter
            return PAYLOAD_ITSELF
        if parameter.default is not EMPTY:
            return None
        shown = type_shown(parameter.annotation)
        raise self.error(
            f"nothing supplies '{parameter.name}{': ' if shown else ''}{shown}'",
            tried="Depends and other markers, headers, message, buses, services "
            f"({len(self.injector.services)} known), payload, default.",
            hint=f"give Ecotone(services={{{shown}: ...}}) or annotate it: Annotated[{shown}, Depends(...)]"
            if shown
            else "annotate it: Annotated[..., Depends(...)]",
        )

    def _ask_resolvers(self, parameter: Parameter) -> Supplier | None:
        for resolver in self.injector.resolvers:
            supplier = resolver.resolve(parameter, self)
            if supplier is not None:
                return supplier
        return None

    def _header(self, parameter: Parameter) -> Supplier | None:
        if isinstance(parameter.default, MessageHeader) or MessageHeader in parameter.metadata:
            raise self.error(
                f"MessageHeader of {parameter.name!r} is not where it is found",
                hint=f"write {parameter.name}: Annotated[{type_shown(parameter.annotation)}, MessageHeader(...)]",
            )
        for marker in parameter.metadata:
            if isinstance(marker, MessageHeader):
                others = [one for one in parameter.metadata if one is not marker]
                return HeaderValue(
                    (marker.name or parameter.name,), header_reader(parameter.annotation, others), parameter.default
                )
        return None

    def offered(self, key: object) -> Supplier | None:
        if not self._is_known(key) or key in self.overrides:
            return None
        if key in self.injector.offers:
            return Constant(self.injector.offers[key])
        provider = self.injector.services[key]
        made = isinstance(provider, type) or (callable(provider) and not _is_instance(provider, key))
        return Dependency(provider, shared=True) if made else Constant(provider)

    def _replacement(self, key: Any) -> Supplier | None:
        """What replaces something that would be supplied by type."""
        return Dependency(key, shared=True) if self._is_known(key) and key in self.overrides else None

    def _is_known(self, key: object) -> bool:
        return is_hashable(key) and (key in self.injector.offers or key in self.injector.services)

    # Where it comes from

    def _arguments(self, call: Any, *, handler: bool = False) -> tuple[tuple[int, ...], tuple[tuple[str, int], ...]]:
        positional: list[int] = []
        keywords: list[tuple[str, int]] = []
        by_place = True
        for parameter, supplier in self._parameters(call, handler=handler):
            if supplier is None:
                self._tell(parameter, f"its default {parameter.default!r}")
                by_place = False
                continue
            slot = self._slot(supplier, parameter)
            by_place = by_place and parameter.positional
            if by_place:
                positional.append(slot)
            else:
                keywords.append((parameter.name, slot))
        return tuple(positional), tuple(keywords)

    def _slot(self, supplier: Supplier, parameter: Parameter) -> int:
        """Where the value of a parameter will be."""
        if isinstance(supplier, Dependency):
            return self._dependency(supplier, parameter)
        self._tell(parameter, in_words(supplier))
        if supplier is PAYLOAD_ITSELF:
            return PAYLOAD
        if supplier is MESSAGE_ITSELF:
            return WHOLE_MESSAGE
        match supplier:
            case Constant(value):
                slot = self._new_slot("application", value)
                self.identities[slot] = id(value)
                return slot
            case FromMessage(read):
                return self._reading(("message", read), lambda message, scope: read(message), "message")
            case FromScope(key, read_scope):
                return self._reading(("scope", key), lambda message, scope: read_scope(scope), frozenset())
            case FromSecurityScopes(make):
                return self._new_slot(frozenset(), make(tuple(dict.fromkeys(self.scopes))))
            case header:
                # What is made with a header differs with its value, which will be in this very slot.
                own = frozenset([len(self.template)])
                slot = self._reading(("header", id(header)), partial(read_header, header), own)
                self.identities[slot] = header.names
                return slot

    def _new_slot(self, life: _Life, value: Any = None) -> int:
        self.template.append(value)
        self.lives.append(life)
        return len(self.template) - 1

    def _reading(self, memo: object, read: Callable[[Message[Any], Scope], Any], life: _Life) -> int:
        if memo not in self.slots:
            self.slots[memo] = self._new_slot(life)
            self.steps.append(Step(slot=self.slots[memo], read=read))
        return self.slots[memo]

    def _dependency(self, wanted: Dependency, parameter: Parameter) -> int:
        call = self._target(wanted)
        line, outer = len(self.lines), self.scopes
        self._enter(call)
        self.scopes = (*outer, *wanted.scopes)
        asks_for_scopes = self._reads_scopes(call) or bool(wanted.scopes)
        key = cache_key(wanted.call, self.scopes if asks_for_scopes else ())
        if wanted.use_cache and key in self.slots:
            slot, life = self.slots[key], "the same as above"
        else:
            slot = self._called(wanted, call, key)
            self.slots.setdefault(key, slot)
            cached = wanted.use_cache or self.lives[slot] == "application"
            life = _life_in_words(self.lives[slot]) if cached else "once per use"
        self.scopes = outer
        self.path.pop()
        self._tell(parameter, ", ".join(_call_in_words(wanted, call, parameter, life)), at=line)
        return slot

    def _called(self, wanted: Dependency, call: Callable[..., Any], key: object) -> int:
        """Add the step that calls a dependency; return where its result will be."""
        way = way_of(call)
        positional, keywords = self._arguments(call)
        needs = (*positional, *(slot for _, slot in keywords))
        life = _shortest([self.lives[slot] for slot in needs])
        generator = way in (Way.GENERATOR, Way.ASYNC_GENERATOR)
        if life == "application" and (generator or not wanted.shared):
            life = frozenset()
        opened: Callable[..., Any] = call
        if generator:
            opened = contextmanager(call) if way is Way.GENERATOR else asynccontextmanager(call)
        slot = self._new_slot(life)
        step = Step(
            slot=slot,
            needs=needs,
            invoke=invoking(opened, positional, keywords),
            way=way,
            per_message=life == "message",
            name=label(call),
            limit=None if wanted.limit is None else self.injector.lasting.limit(wanted.limit, wanted.limited_by),
        )
        if life == "application":
            # Two plans share an object only when everything that it is made of is the same under their overrides.
            step.key = self.identities[slot] = (_identity(call), *[self.identities[one] for one in needs])
            self.once.append(step)
            return slot
        if wanted.use_cache and life != "message":
            step.key = key
            # In the same order in the plans of all handlers.
            step.varies = picking(sorted(life, key=lambda one: (self.identities[one], one))) if life else None
        self.steps.append(step)
        return slot

    def _reads_scopes(self, call: Callable[..., Any]) -> bool:
        """Whether the dependency at the end of the path, or anything below it, asks for security scopes."""
        key = _identity(call)
        if key not in self.reading_scopes:
            found = False
            for _, supplier in self._parameters(call):
                if isinstance(supplier, Dependency):
                    below = self._target(supplier)
                    self._enter(below)
                    found |= self._reads_scopes(below) or bool(supplier.scopes)
                    self.path.pop()
                found |= isinstance(supplier, FromSecurityScopes)
            self.reading_scopes[key] = found
        return self.reading_scopes[key]

    def _enter(self, call: Any) -> None:
        """Go down to a dependency."""
        if not callable(call):
            raise self.error(f"{call!r} cannot be called", hint="name a function or class: Depends(get_it)")
        if call in self.path:
            circle = " -> ".join(label(one) for one in (*self.path[self.path.index(call) :], call))
            raise self.error(f"circular dependency {circle}", hint="take one of them out of the circle")
        self.path.append(call)

    def _target(self, wanted: Dependency) -> Callable[..., Any]:
        return self.overrides.get(wanted.call, wanted.call) if is_hashable(wanted.call) else wanted.call

    def _tell(self, parameter: Parameter, what: str, *, at: int | None = None) -> None:
        """Note for people what a parameter is."""
        shown = type_shown(parameter.annotation)
        line = f"{'  ' * len(self.path)}{parameter.name}{': ' if shown else ''}{shown}, {what}"
        self.lines.insert(len(self.lines) if at is None else at, line)


def _is_instance(value: object, type_: Any) -> bool:
    try:
        return isinstance(value, type_)
    except TypeError:  # a protocol that cannot be checked at run time: only functions are taken for factories
        return not isroutine(value)


def _identity(call: object) -> object:
    return call if is_hashable(call) else id(call)


def _call_in_words(wanted: Dependency, call: Callable[..., Any], parameter: Parameter, life: str) -> list[str]:
    words = [] if call is parameter.annotation else [wanted.described or f"from {label(call)}"]
    if call is not wanted.call:
        words.append(f"in place of {label(wanted.call)}")
    words.append(life)
    if wanted.scopes:
        words.append(f"security scopes {' '.join(wanted.scopes)}")
    if wanted.limit is not None:
        words.append(f"at most {wanted.limit} at a time")
    way = way_of(call)
    if way in (Way.THREAD, Way.GENERATOR):
        words.append("in a worker thread")
    if way in (Way.GENERATOR, Way.ASYNC_GENERATOR):
        words.append("torn down after it")
    return words


def _life_in_words(life: _Life) -> str:
    if life == "application":
        return "once per application"
    if life == "message":
        return "once per message"
    return "once per unit of work and header value" if life else "once per unit of work"
