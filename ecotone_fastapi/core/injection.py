"""From a signature to a plan: what each parameter is, decided once at start, and walked for every message.

A plan is a flat list of steps. Each step calls one dependency with the values of earlier steps and knows how long its
result lives:

- as long as the application: given objects, and classes and factories that need nothing from a message;
- as long as the unit of work: what `Depends` asks for, shared by nested messages, once per value of the headers it reads;
- as long as the message: what reads the payload or the message itself.

What the markers of a web framework mean is told by resolvers from outside; this module knows none of them.
"""

import contextvars
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ForwardRef, Protocol, TypeVar, get_args, get_origin

import anyio
import anyio.to_thread

from ecotone_fastapi.core.conversion import HeaderReader
from ecotone_fastapi.core.endpoint import Endpoint, Inline, marks_of
from ecotone_fastapi.core.errors import ConfigurationError, HeaderError, UnresolvableParameterError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Call, Exit, Scope, unwind

EMPTY: Any = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class MessageHeader:
    """Marker: this parameter is a header of the message.

    A missing header is a `HeaderError`, unless the parameter has a default.

    Args:
        name: The header; without it, the name of the parameter.

    Example:
        >>> async def handler(command: dict, tenant: Annotated[str, MessageHeader("tenant")]) -> None: ...
    """

    name: str | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a handler or dependency.

    Args:
        name: Its name.
        annotation: Its type, without `Annotated`.
        metadata: What stands in `Annotated` behind the type.
        default: Its default, or `inspect.Parameter.empty`.
        annotated: Its annotation as written, with its metadata.
    """

    name: str
    annotation: Any
    metadata: tuple[Any, ...]
    default: Any
    annotated: Any


# What can supply a parameter.


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value for ever."""

    value: Any


@dataclass(frozen=True, slots=True)
class HeaderValue:
    """A header of the message: the first of these names that it has, compared without regard to case."""

    names: tuple[str, ...]
    read: Callable[[str, str], Any] | None
    default: Any = EMPTY


@dataclass(frozen=True, slots=True)
class FromMessage:
    """Something of the message itself; another one for each message."""

    read: Callable[[Message[Any]], Any]


@dataclass(frozen=True, slots=True)
class FromScope:
    """Something of the unit of work; `key` tells which."""

    key: object
    read: Callable[[Scope], Any]


@dataclass(frozen=True, slots=True)
class FromSecurityScopes:
    """What the security scopes of the dependencies on the way here are made into."""

    make: Callable[[tuple[str, ...]], Any]


@dataclass(frozen=True, slots=True)
class Dependency:
    """The result of a callable whose own parameters are supplied in the same way.

    Args:
        call: A function, coroutine function, generator function of one `yield`, class, or callable object.
        use_cache: Whether the result is shared within its lifetime.
        scopes: Security scopes that hold for it and for everything below it.
        limit: How many calls may run at the same time, with `limited_by` to tell one limit from another.
        shared: Whether it may live as long as the application when nothing that it needs lives shorter.
    """

    call: Callable[..., Any]
    use_cache: bool = True
    scopes: tuple[str, ...] = ()
    limit: int | None = None
    limited_by: object = None
    shared: bool = False


Supplier = Constant | HeaderValue | FromMessage | FromScope | FromSecurityScopes | Dependency


class Wanted(Protocol):
    """Where a resolver is asked from."""

    @property
    def asynchronous(self) -> bool:
        """Whether the handler runs in a consumer, far from any HTTP request."""
        ...

    def offered(self, key: object) -> Supplier | None:
        """What the framework itself supplies for this type or dependency."""
        ...

    def error(self, what: str, *, hint: str = "") -> UnresolvableParameterError:
        """Make the error that names handler and chain."""
        ...


class ParameterResolver(Protocol):
    """Knows some markers or types."""

    def resolve(self, parameter: Parameter, wanted: Wanted) -> Supplier | None:
        """Say what supplies the parameter; `None` leaves it to the next resolver.

        Raises:
            UnresolvableParameterError: The parameter is known, and can never be supplied here.
        """
        ...


def label(call: Any) -> str:
    """Return the name of a callable as people write it."""
    while isinstance(call, functools.partial):
        call = call.func
    name = getattr(call, "__qualname__", None) or getattr(type(call), "__qualname__", repr(call))
    return str(name).rpartition("<locals>.")[2]


def parameters_of(call: Any, names: Mapping[str, Any]) -> list[Parameter]:
    """Return the parameters of a callable with evaluated annotations; `*args` and `**kwargs` are nobody's.

    Args:
        call: The callable.
        names: Local names that string annotations may use.

    Raises:
        ConfigurationError: An annotation that matters cannot be evaluated.
    """
    try:
        signature = inspect.signature(call)
    except ValueError:  # a builtin that does not tell
        return []
    found = []
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = _evaluated(parameter.annotation, call, names, parameter)
        base, metadata = annotation, []
        if get_origin(annotation) is Annotated:
            base, *metadata = get_args(annotation)
            base = _evaluated(base, call, names, parameter)
        found.append(Parameter(parameter.name, base, tuple(metadata), parameter.default, annotation))
    return found


def _evaluated(annotation: Any, call: Any, names: Mapping[str, Any], parameter: inspect.Parameter) -> Any:
    """An annotation with its text evaluated and its alias followed (`type X = ...` since Python 3.12)."""
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        annotation = _evaluate(annotation, call, names, parameter)
    if type(annotation).__name__ == "TypeAliasType":
        annotation = annotation.__value__
    return annotation


def _evaluate(annotation: str, call: Any, names: Mapping[str, Any], parameter: inspect.Parameter) -> Any:
    function = _function_of(call)
    scope = {**names, **getattr(function, "__globals__", {})}
    variables = getattr(getattr(function, "__code__", None), "co_freevars", ())
    for name, cell in zip(variables, getattr(function, "__closure__", None) or (), strict=False):
        try:
            scope[name] = cell.cell_contents
        except ValueError:  # the variable is not assigned yet
            continue
    try:
        return eval(annotation, scope, dict(names))  # noqa: S307  the program's own annotation
    except Exception as error:
        if parameter.default is not EMPTY:
            return EMPTY
        raise ConfigurationError(
            f"{label(call)}: annotation {annotation!r} of {parameter.name!r} cannot be evaluated ({error})",
            hint="the name must be importable at run time, not only under TYPE_CHECKING",
        ) from error


def _function_of(call: Any) -> Any:
    """The plain function whose module and closure the annotations of a callable refer to."""
    while True:
        if isinstance(call, functools.partial):
            call = call.func
        elif hasattr(call, "__wrapped__"):
            call = call.__wrapped__
        elif inspect.ismethod(call):
            call = call.__func__
        else:
            break
    call = get_origin(call) or call
    if isinstance(call, type):
        return inspect.getattr_static(call, "__init__", call)
    return call if inspect.isfunction(call) else getattr(type(call), "__call__", call)


_COROUTINE, _INLINE, _THREAD, _ASYNC_GENERATOR, _GENERATOR, _SUPPLY = range(6)


def _kind_of(call: Any) -> int:
    """How a callable is to be called."""
    candidates = []
    while not any(call is candidate for candidate in candidates):
        candidates.append(call)
        if isinstance(call, functools.partial):
            call = call.func
        elif hasattr(call, "__wrapped__"):
            call = call.__wrapped__
        elif not (inspect.isroutine(call) or isinstance(get_origin(call) or call, type)):
            call = type(call).__call__
    if isinstance(get_origin(candidates[0]) or candidates[0], type):
        return _INLINE
    for test, kind in (
        (inspect.isasyncgenfunction, _ASYNC_GENERATOR),
        (inspect.iscoroutinefunction, _COROUTINE),
        (inspect.isgeneratorfunction, _GENERATOR),
    ):
        if any(test(candidate) for candidate in candidates):
            return kind
    inline = any(isinstance(value, Inline) for candidate in candidates for value in marks_of(candidate))
    return _INLINE if inline else _THREAD


# How long a result lives: until the application ends; for the unit of work and these slots; for one message.
_APPLICATION = "application"
_MESSAGE = None
_Life = frozenset[int] | str | None


def _shorter(lives: Iterable[_Life]) -> _Life:
    slots: frozenset[int] = frozenset()
    unit = False
    for life in lives:
        if life is _MESSAGE:
            return _MESSAGE
        if isinstance(life, frozenset):
            unit = True
            slots |= life
    return slots if unit else _APPLICATION


@dataclass(slots=True)
class Step:
    """One call of a plan: where its arguments come from and where its result goes."""

    slot: int
    kind: int
    call: Callable[..., Any]
    positional: tuple[int, ...] = ()
    keywords: tuple[tuple[str, int], ...] = ()
    key: object = None
    varies: tuple[int, ...] = ()
    name: str = ""
    limit: anyio.Semaphore | None = None


_PAYLOAD, _WHOLE_MESSAGE, _FIRST_FREE = 0, 1, 2


@dataclass
class Plan:
    """How to call one handler. Made by `Injector.plan`.

    Attributes:
        payload_type: The type of the payload parameter; `None` when the handler takes none.
        lines: What is resolved, in order, one line each, for people.
    """

    endpoint: Endpoint
    kind: int
    takes_instance: bool
    payload_type: Any
    positional: tuple[int, ...]
    keywords: tuple[tuple[str, int], ...]
    steps: tuple[Step, ...]
    once: list[Step]
    template: list[Any]
    lines: tuple[str, ...]
    injector: "Injector"

    async def run(self, call: Call) -> Any:
        """Resolve what the handler asks for, and call it.

        Dependencies of this message alone are torn down before this returns, the others when the scope ends.
        """
        if self.once:
            await self.injector.build(self)
        exits: list[tuple[Exit, str]] = []
        try:
            result = await self._resolve_and_call(call, exits)
        except BaseException as error:
            if exits:
                failure = await unwind(exits, error)
                if failure is not error and failure is not None:
                    raise failure from error
            raise
        if exits:
            failure = await unwind(exits, None)
            if failure is not None:
                raise failure
        return result

    async def _resolve_and_call(self, call: Call, exits: list[tuple[Exit, str]]) -> Any:
        values = self.template.copy()
        message, scope = call.message, call.scope
        values[_PAYLOAD] = message.payload
        values[_WHOLE_MESSAGE] = message
        for step in self.steps:
            key = step.key
            if key is not None:
                if step.varies and key not in scope.cache:  # under its plain key stands what a caller has shared
                    key = (key, *[values[slot] for slot in step.varies])
                try:
                    values[step.slot] = scope.cache[key]
                    continue
                except KeyError:
                    pass
                except TypeError:  # a header value that is not hashable cannot tell results apart
                    key = None
            if step.kind == _SUPPLY:
                value = step.call(message, scope)
            else:
                value = await _take(step, values, scope, exits if key is None else scope.exits)
            values[step.slot] = value
            if key is not None:
                scope.cache[key] = value
        if self.takes_instance and call.instance is not None:
            values[self.positional[0]] = call.instance
        handler = self.endpoint.function
        if self.kind == _COROUTINE:
            if self.keywords:
                return await handler(
                    *[values[slot] for slot in self.positional], **{name: values[slot] for name, slot in self.keywords}
                )
            return await handler(*[values[slot] for slot in self.positional])
        bound = functools.partial(
            handler, *[values[slot] for slot in self.positional], **{name: values[slot] for name, slot in self.keywords}
        )
        return bound() if self.kind == _INLINE else await _in_thread(bound, scope)


async def _take(step: Step, values: list[Any], scope: Scope, exits: list[tuple[Exit, str]]) -> Any:
    """Call one dependency."""
    arguments = [values[slot] for slot in step.positional]
    named = {name: values[slot] for name, slot in step.keywords} if step.keywords else {}
    if step.limit is not None:
        return await _take_limited(step, arguments, named, scope, exits)
    return await _call(step, arguments, named, scope, exits)


async def _call(
    step: Step, arguments: list[Any], named: dict[str, Any], scope: Scope, exits: list[tuple[Exit, str]]
) -> Any:
    if step.kind == _COROUTINE:
        return await step.call(*arguments, **named)
    if step.kind == _INLINE:
        return step.call(*arguments, **named)
    if step.kind == _THREAD:
        return await _in_thread(functools.partial(step.call, *arguments, **named), scope)
    manager = step.call(*arguments, **named)
    if step.kind == _ASYNC_GENERATOR:
        value = await manager.__aenter__()
        exits.append((manager.__aexit__, step.name))
        return value
    # Both halves of a generator run in one context, so that it can reset a ContextVar that it has set; and its second
    # half never waits for a worker that a handler may be holding.
    context, limiter = contextvars.copy_context(), anyio.CapacityLimiter(1)
    value = await _in_thread(functools.partial(context.run, manager.__enter__), scope)

    async def leave(*failure: Any) -> object:
        return await anyio.to_thread.run_sync(
            functools.partial(context.run, manager.__exit__, *failure), limiter=limiter
        )

    exits.append((leave, step.name))
    return value


async def _take_limited(
    step: Step, arguments: list[Any], named: dict[str, Any], scope: Scope, exits: list[tuple[Exit, str]]
) -> Any:
    limit = step.limit
    assert limit is not None
    await limit.acquire()
    if step.kind not in (_ASYNC_GENERATOR, _GENERATOR):
        try:
            return await _call(step, arguments, named, scope, exits)
        finally:
            limit.release()

    async def release(*failure: Any) -> None:
        limit.release()

    # A generator holds its place until it is torn down, as in FastAPI.
    exits.append((release, f"limit of {step.name}"))
    return await _call(step, arguments, named, scope, exits)


async def _in_thread(call: Callable[[], Any], scope: Scope) -> Any:
    """Run in a worker thread.

    A thread that waits for a nested message must not hold the last worker that this message needs: nested calls of one
    unit of work get a worker beside the pool's limit.
    """
    limiter = anyio.CapacityLimiter(1) if scope.threads else None
    scope.threads += 1
    try:
        return await anyio.to_thread.run_sync(call, limiter=limiter)
    finally:
        scope.threads -= 1


class Injector:
    """Makes plans, and keeps what lives as long as the application.

    Args:
        resolvers: Who is asked for each parameter, in this order, before the payload is considered.
        offers: What the framework itself supplies, by type or by the dependency that asks for it.
        services: What else is supplied by type: an object, or a class or function that makes it.
        instances: Objects that were given instead of their handler classes.
    """

    def __init__(
        self,
        *,
        resolvers: Sequence[ParameterResolver] = (),
        offers: Mapping[object, object] | None = None,
        services: Mapping[object, object] | None = None,
        instances: Mapping[type, object] | None = None,
    ) -> None:
        self.resolvers = tuple(resolvers)
        self.offers = offers or {}
        self.services = services or {}
        self.instances = instances or {}
        self._built: dict[object, Any] = {}
        self._limits: dict[int, tuple[object, anyio.Semaphore]] = {}
        self._building = anyio.Lock()

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
        return _Planner(self, endpoint, asynchronous=False, overrides={}).find_payload_type()

    async def build(self, plan: Plan) -> None:
        """Make what lives as long as the application and is not there yet, once, for all plans."""
        async with self._building:
            while plan.once:
                step = plan.once[0]
                if step.key not in self._built:
                    scope = Scope()
                    self._built[step.key] = await _take(step, plan.template, scope, scope.exits)
                plan.template[step.slot] = self._built[step.key]
                plan.once.pop(0)

    def limit(self, size: int, limited_by: object) -> anyio.Semaphore:
        """Return the one semaphore for this declaration."""
        if id(limited_by) not in self._limits:
            self._limits[id(limited_by)] = (limited_by, anyio.Semaphore(size))
        return self._limits[id(limited_by)][1]


@dataclass
class _Planner:
    injector: Injector
    endpoint: Endpoint
    asynchronous: bool
    overrides: Mapping[Callable[..., Any], Callable[..., Any]]
    scopes: tuple[str, ...] = ()
    steps: list[Step] = field(default_factory=list)
    once: list[Step] = field(default_factory=list)
    lives: dict[int, _Life] = field(default_factory=lambda: {_PAYLOAD: _MESSAGE, _WHOLE_MESSAGE: _MESSAGE})
    identities: dict[int, object] = field(default_factory=dict)
    template: list[Any] = field(default_factory=lambda: [None] * _FIRST_FREE)
    memo: dict[object, int] = field(default_factory=dict)
    sources: dict[tuple[int, bool], list[tuple[str, Supplier | None]]] = field(default_factory=dict)
    uses_scopes: dict[object, bool] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    payload: Parameter | None = None

    def plan(self) -> Plan:
        endpoint = self.endpoint
        for dependency in endpoint.dependencies:
            parameter = Parameter("dependencies", EMPTY, (dependency,), EMPTY, EMPTY)
            supplier = self._ask_resolvers(parameter)
            if supplier is None:
                raise self.error(f"{dependency!r} in dependencies= is no dependency", hint="write Depends(...)")
            self._slot(supplier)
        positional: list[int] = []
        if endpoint.needs_instance:
            assert endpoint.owner is not None
            positional.append(self._owner(endpoint.owner))
        kind = _kind_of(endpoint.function)
        if kind in (_GENERATOR, _ASYNC_GENERATOR):
            raise self.error("a message handler cannot use yield", hint="return the result, or publish events")
        if kind == _THREAD and endpoint.find(Inline):
            kind = _INLINE
        arguments, keywords = self._arguments(endpoint.function, handler=True)
        return Plan(
            endpoint=endpoint,
            kind=kind,
            takes_instance=endpoint.needs_instance,
            payload_type=None if self.payload is None else self._payload_type(self.payload),
            positional=(*positional, *arguments),
            keywords=keywords,
            steps=tuple(self.steps),
            once=self.once,
            template=self.template,
            lines=tuple(self.lines),
            injector=self.injector,
        )

    def find_payload_type(self) -> Any:
        try:
            self._inspected(self.endpoint.function, handler=True)
        except ConfigurationError:
            if self.payload is None:
                raise
        return None if self.payload is None else self._payload_type(self.payload)

    def error(self, what: str, *, hint: str = "") -> UnresolvableParameterError:
        chain = " -> ".join([self.endpoint.label, *self.path])
        return UnresolvableParameterError(f"{chain}: {what}", hint=hint)

    def offered(self, key: object) -> Supplier | None:
        try:
            known = key in self.injector.offers and key not in self.overrides
        except TypeError:
            return None
        return Constant(self.injector.offers[key]) if known else None

    @staticmethod
    def _payload_type(parameter: Parameter) -> Any:
        return Any if parameter.annotated is EMPTY else parameter.annotated

    def _owner(self, owner: type) -> int:
        if owner in self.injector.instances and owner not in self.overrides:
            return self._slot(Constant(self.injector.instances[owner]))
        return self._slot(Dependency(owner, shared=True))

    def _ask_resolvers(self, parameter: Parameter) -> Supplier | None:
        for resolver in self.injector.resolvers:
            supplier = resolver.resolve(parameter, self)
            if supplier is not None:
                return supplier
        return None

    def _supplier(self, parameter: Parameter, *, handler: bool) -> Supplier | None:
        """What supplies one parameter; `None` leaves it to its default. The order of the rules matters."""
        supplier = self._ask_resolvers(parameter)
        if supplier is not None:
            return supplier
        header = next((one for one in parameter.metadata if isinstance(one, MessageHeader)), None)
        if header is not None:
            annotated = Annotated[parameter.annotation, *[m for m in parameter.metadata if m is not header]]  # type: ignore[valid-type]
            plain_text = parameter.annotation is str and len(parameter.metadata) == 1
            return HeaderValue(
                (header.name or parameter.name,), None if plain_text else HeaderReader(annotated), parameter.default
            )
        if (get_origin(parameter.annotation) or parameter.annotation) is Message:
            said = get_args(parameter.annotation)
            if handler and self.payload is None and said and not isinstance(said[0], TypeVar):
                self.payload = Parameter(parameter.name, said[0], (), EMPTY, said[0])
            return FromMessage(_whole)
        offer = self.offered(parameter.annotation)
        if offer is not None:
            return offer
        service = self._service(parameter.annotation)
        if service is not None:
            return service
        if handler and self.payload is None:
            self.payload = parameter
            return FromMessage(_payload)
        if parameter.default is not EMPTY:
            return None
        raise self._unresolvable(parameter)

    def _service(self, type_: object) -> Supplier | None:
        try:
            if type_ in self.overrides:
                return Dependency(type_, shared=True)  # type: ignore[arg-type]
            provider = self.injector.services[type_]
        except (KeyError, TypeError):
            return None
        if isinstance(provider, type) or (callable(provider) and not _is_instance(provider, type_)):
            return Dependency(provider, shared=True)
        return Constant(provider)

    def _unresolvable(self, parameter: Parameter) -> UnresolvableParameterError:
        shown = getattr(parameter.annotation, "__name__", None) or str(parameter.annotation)
        if parameter.annotation is EMPTY:
            shown = "no annotation"
        error = self.error(
            f"nothing supplies {parameter.name!r}: {shown}",
            hint=f"give Ecotone(services={{{shown}: ...}}) or annotate it: Annotated[{shown}, Depends(...)]",
        )
        error.tried = (
            f"Depends and other markers, headers, message, buses, payload, services ({len(self.injector.services)} "
            "known), default."
        )
        return error

    def _inspected(self, call: Any, *, handler: bool) -> list[tuple[str, Supplier | None]]:
        key = (id(call), handler)
        if key not in self.sources:
            try:
                parameters = parameters_of(call, self.endpoint.names)
            except ConfigurationError as error:
                raise self.error(error.what, hint=error.hint) from error
            if handler and self.endpoint.needs_instance:
                parameters = parameters[1:]
            self.sources[key] = [(one.name, self._supplier(one, handler=handler)) for one in parameters]
        return self.sources[key]

    def _arguments(self, call: Any, *, handler: bool = False) -> tuple[tuple[int, ...], tuple[tuple[str, int], ...]]:
        by_position = {
            parameter.name
            for parameter in _signature_parameters(call)
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        }
        # A partial that was given arguments by keyword wants everything behind them by keyword, too.
        still_positional = not isinstance(call, functools.partial)
        positional: list[int] = []
        keywords: list[tuple[str, int]] = []
        for name, supplier in self._inspected(call, handler=handler):
            if supplier is None:
                still_positional = False
                continue
            slot = self._slot(supplier)
            if still_positional and name in by_position:
                positional.append(slot)
            else:
                keywords.append((name, slot))
        return tuple(positional), tuple(keywords)

    def _slot(self, supplier: Supplier) -> int:
        match supplier:
            case Constant(value):
                slot = self._new_slot(_APPLICATION, value)
                self.identities[slot] = id(value)
                return slot
            case FromMessage(read) if read is _payload:
                return _PAYLOAD
            case FromMessage(read) if read is _whole:
                return _WHOLE_MESSAGE
            case FromMessage(read):
                return self._supply(("message", read), lambda message, scope: read(message), _MESSAGE)
            case FromScope(key, read):
                return self._supply(("scope", key), lambda message, scope: read(scope), frozenset())
            case FromSecurityScopes(make):
                slot = self._new_slot(frozenset())
                self.template[slot] = make(tuple(dict.fromkeys(self.scopes)))
                return slot
            case HeaderValue():
                memo = ("header", supplier.names, supplier.read and id(supplier.read), id(supplier.default))
                return self._supply(memo, functools.partial(_read_header, supplier), "itself")
            case Dependency():
                return self._dependency(supplier)

    def _new_slot(self, life: _Life, value: Any = None) -> int:
        self.template.append(value)
        slot = len(self.template) - 1
        self.lives[slot] = life
        return slot

    def _supply(self, memo: object, read: Callable[[Message[Any], Scope], Any], life: _Life) -> int:
        if memo not in self.memo:
            slot = self._new_slot(life)
            if life == "itself":
                self.lives[slot] = frozenset([slot])
            self.steps.append(Step(slot, _SUPPLY, read))
            self.memo[memo] = slot
        return self.memo[memo]

    def _dependency(self, wanted: Dependency) -> int:
        call = self._target(wanted)
        self.path.append(label(call))
        outer, self.scopes = self.scopes, (*self.scopes, *wanted.scopes)
        distinct = tuple(sorted(set(self.scopes))) if self._needs_scopes(wanted, call, ()) else ()
        memo = cache_key(wanted.call, distinct)
        if wanted.use_cache and memo in self.memo:
            slot = self.memo[memo]
        else:
            slot = self._call_step(wanted, call, memo)
            self.memo.setdefault(memo, slot)
        self.scopes = outer
        self.path.pop()
        return slot

    def _call_step(self, wanted: Dependency, call: Callable[..., Any], memo: object) -> int:
        kind = _kind_of(call)
        positional, keywords = self._arguments(call)
        arguments = [*positional, *(slot for _, slot in keywords)]
        life = _shorter([self.lives[slot] for slot in arguments])
        generator = kind in (_GENERATOR, _ASYNC_GENERATOR)
        if life == _APPLICATION and (not wanted.shared or generator):
            life = frozenset()
        slot = self._new_slot(life)
        step = Step(slot, kind, call, positional, keywords, name=label(call))
        if kind == _ASYNC_GENERATOR:
            step.call = asynccontextmanager(call)
        elif kind == _GENERATOR:
            step.call = contextmanager(call)
        if wanted.limit is not None:
            step.limit = self.injector.limit(wanted.limit, wanted.limited_by)
        if life == _APPLICATION:
            # Two plans share an object only when everything that it is made of is the same under their overrides.
            step.key = (_key_of(call), *[self.identities[one] for one in arguments])
            self.identities[slot] = step.key
            self.once.append(step)
        else:
            if wanted.use_cache and isinstance(life, frozenset):
                step.key = memo
                step.varies = tuple(sorted(life))
            self.steps.append(step)
        self.lines.append(f"{'  ' * (len(self.path) - 1)}{label(call)} ({_life_in_words(life)})")
        return slot

    def _needs_scopes(self, wanted: Dependency, call: Callable[..., Any], above: tuple[object, ...]) -> bool:
        """Whether a dependency, or anything below it, asks for security scopes; finds circles on its way."""
        if wanted.scopes:
            return True
        if call in above:
            circle = " -> ".join(label(one) for one in (*above[above.index(call) :], call))
            raise self.error(f"circular dependency {circle}", hint="take one of them out of the circle")
        key = _key_of(call)
        if key not in self.uses_scopes:
            found = False
            for _, supplier in self._inspected(call, handler=False):
                if isinstance(supplier, Dependency):
                    target = self._target(supplier)
                    self.path.append(label(target))
                    found |= self._needs_scopes(supplier, target, (*above, call))
                    self.path.pop()
                found |= isinstance(supplier, FromSecurityScopes)
            self.uses_scopes[key] = found
        return self.uses_scopes[key]

    def _target(self, wanted: Dependency) -> Callable[..., Any]:
        return self.overrides.get(wanted.call, wanted.call) if _hashable(wanted.call) else wanted.call


def _read_header(wanted: HeaderValue, message: Message[Any], scope: Scope) -> Any:
    for name in wanted.names:
        text = message.headers.get(name)
        if text is None:
            folded = name.lower()
            text = next((value for key, value in message.headers.items() if key.lower() == folded), None)
        if text is not None:
            return text if wanted.read is None else wanted.read(name, text)
    if wanted.default is EMPTY:
        raise HeaderError(
            f"the message has no header {wanted.names[0]!r}",
            tried=", ".join(sorted(message.headers)),
            hint=f"send it with headers={{{wanted.names[0]!r}: ...}}, or give the parameter a default",
        )
    return wanted.default


def cache_key(call: object, scopes: tuple[str, ...] = ()) -> object:
    """Return the key under which `Scope.cache` keeps the result of a dependency.

    Args:
        call: The dependency as it was asked for, before overrides.
        scopes: The security scopes it was asked for with, sorted, when it reads any.
    """
    return ("call", _key_of(call), scopes)


def _payload(message: Message[Any]) -> Any:
    return message.payload


def _whole(message: Message[Any]) -> Any:
    return message


def _signature_parameters(call: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(call).parameters.values())
    except ValueError:
        return []


def _is_instance(value: object, type_: object) -> bool:
    try:
        return isinstance(value, type_)  # type: ignore[arg-type]
    except TypeError:  # a protocol that cannot be checked at run time: only functions are taken for factories
        return not inspect.isroutine(value)


def _hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _key_of(call: object) -> object:
    return call if _hashable(call) else id(call)


def _life_in_words(life: _Life) -> str:
    if life == _APPLICATION:
        return "once per application"
    if life is _MESSAGE:
        return "once per message"
    return "once per unit of work and header value" if life else "once per unit of work"
