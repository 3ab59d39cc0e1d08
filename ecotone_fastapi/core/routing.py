"""Which handlers a message reaches.

- By type: handlers of the class, of its bases, and of a union that has it as a member. Commands and queries take the
  handler of the nearest class; an event reaches all.
- By key: handlers of the key, and for events those whose glob fits (`order.*`, without regard to case).
- A type with a `message_name` is reached by both.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.errors import ConfigurationError, DuplicateHandlerError, HandlerNotFoundError
from ecotone_fastapi.core.message import MessageTypes, explicit_name_of, name_of


class Routing:
    """Finds the endpoints of a message.

    Args:
        endpoints: All handlers, with their payload types.

    Raises:
        ConfigurationError: Two handlers want one command, query or id; a command has a glob; a handler has no route.
    """

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.types: MessageTypes = MessageTypes()
        self._by_type: dict[tuple[Kind, type], list[Endpoint]] = defaultdict(list)
        self._by_key: dict[tuple[Kind, str], list[Endpoint]] = defaultdict(list)
        self._globs: list[tuple[re.Pattern[str], Endpoint]] = []
        self._found: dict[tuple[Kind, object], tuple[Endpoint, ...]] = {}
        problems: list[ConfigurationError] = []
        for endpoint in endpoints:
            try:
                self._add(endpoint)
            except ConfigurationError as problem:
                problems.append(problem)
        ConfigurationError.raise_all([*problems, *_untold(self._by_type)])

    def find(self, kind: Kind, payload: Any, key: str | None) -> tuple[Endpoint, ...]:
        """Return the endpoints of a message: one for a command or query, any number for an event.

        Args:
            kind: What is sent.
            payload: What it says; its class is the route when there is no key.
            key: The key it is sent to.

        Raises:
            HandlerNotFoundError: Nobody handles this command or query.
        """
        wanted = (kind, type(payload) if key is None else key)
        found = self._found.get(wanted)
        if found is None:
            found = self._search(*wanted)
            if found or key is None:
                # Keys are the caller's text: remembering those that nobody handles would fill the memory.
                self._found[wanted] = found
        if found or kind is Kind.EVENT:
            return found
        raise self._not_found(kind, wanted[1])

    def _add(self, endpoint: Endpoint) -> None:
        known = self.endpoints.setdefault(endpoint.id, endpoint)
        if known is not endpoint:
            raise DuplicateHandlerError(
                f"{known.label} and {endpoint.label} have the same id {endpoint.id!r}",
                hint="give one of them another id=",
            )
        # `list[int] | list[str]` has one member only, as far as a class can tell.
        members = list(dict.fromkeys(one for one in members_of(endpoint.payload_type) if isinstance(one, type)))
        for member in members:
            self.types.add(member)
        if endpoint.route is None:
            if not members or any(is_typed_dict(member) for member in members):
                raise ConfigurationError(
                    f"{endpoint.label} has no route: its payload is {_shown(endpoint.payload_type)}",
                    hint=f"annotate its first parameter with a class, or name a key: "
                    f'@{endpoint.kind}_handler("some.key")',
                )
            for member in members:
                _check_tellable(member, endpoint)
                self._claim(self._by_type[endpoint.kind, member], endpoint, member.__qualname__, member)
                if explicit_name_of(member):
                    self._claim(self._by_key[endpoint.kind, name_of(member)], endpoint, name_of(member))
        elif "*" not in endpoint.route:
            self._claim(self._by_key[endpoint.kind, endpoint.route], endpoint, endpoint.route)
        elif endpoint.kind is Kind.EVENT:
            pattern = ".*".join(map(re.escape, endpoint.route.split("*")))
            self._globs.append((re.compile(pattern, re.IGNORECASE), endpoint))
        else:
            raise ConfigurationError(
                f"{endpoint.label} handles {endpoint.kind} {endpoint.route!r}: only events may have a glob",
                hint="name one key",
            )

    @staticmethod
    def _claim(claims: list[Endpoint], endpoint: Endpoint, what: str, cls: type | None = None) -> None:
        if claims and endpoint.kind is not Kind.EVENT:
            of_one_generic = cls and _forms_of(claims[0].payload_type, cls) != _forms_of(endpoint.payload_type, cls)
            raise DuplicateHandlerError(
                f"{claims[0].label} and {endpoint.label} both handle the {endpoint.kind} {what}",
                hint=f"an object does not know its type parameters: {_GENERIC_HINT}"
                if of_one_generic
                else "a command or query has exactly one handler; make it an event, or take one away",
            )
        claims.append(endpoint)

    def _search(self, kind: Kind, wanted: object) -> tuple[Endpoint, ...]:
        if isinstance(wanted, str):
            found = self._of_key(kind, wanted)
            cls = self.types.find(wanted)
            if cls is not None and explicit_name_of(cls):
                found += self._of_type(kind, cls)
        else:
            assert isinstance(wanted, type)
            found = self._of_type(kind, wanted)
            name = explicit_name_of(wanted)
            if name is not None:
                found += self._of_key(kind, name)
        distinct = list(dict.fromkeys(endpoint.id for endpoint in found))
        if kind is not Kind.EVENT:
            return tuple(self.endpoints[one] for one in distinct[:1])
        in_order = sorted((self.endpoints[one] for one in distinct), key=lambda endpoint: -endpoint.priority)
        return tuple(in_order)

    def _of_key(self, kind: Kind, key: str) -> list[Endpoint]:
        found = list(self._by_key.get((kind, key), ()))
        if kind is Kind.EVENT:
            found += [endpoint for pattern, endpoint in self._globs if pattern.fullmatch(key)]
        return found

    def _of_type(self, kind: Kind, cls: type) -> list[Endpoint]:
        found = [endpoint for base in cls.__mro__ for endpoint in self._by_type.get((kind, base), ())]
        for (known_kind, known), endpoints in self._by_type.items():
            # A protocol or a virtual base class is not among the bases that a class names.
            if known_kind is kind and known not in cls.__mro__ and issubclass(cls, known):
                found += endpoints
        return found

    def _not_found(self, kind: Kind, wanted: object) -> HandlerNotFoundError:
        known = [_shown(cls) for known_kind, cls in self._by_type if known_kind is kind]
        known += [key for known_kind, key in self._by_key if known_kind is kind]
        shown = repr(wanted) if isinstance(wanted, str) else name_of(wanted)
        listed = ", ".join(sorted(set(known))[:20]) or "there are none"
        return HandlerNotFoundError(
            f"no handler for the {kind} {shown}",
            tried=f"handlers of this kind: {listed}",
            hint="is the class or module of the handler given to Ecotone([...])?",
        )


def members_of(payload_type: Any) -> Sequence[Any]:
    """Return what a payload annotation subscribes to: the members of a union, or the type itself."""
    if payload_type is None or payload_type is Any:
        return ()
    origin = get_origin(payload_type)
    if origin is Annotated:
        return members_of(get_args(payload_type)[0])
    if origin is Union or origin is UnionType:
        return [member for one in get_args(payload_type) for member in members_of(one) if member is not type(None)]
    return (origin or payload_type,)


def is_typed_dict(type_: type) -> bool:
    """Whether a class is a TypedDict, whose values are plain dicts; also one of `typing_extensions`."""
    return issubclass(type_, dict) and hasattr(type_, "__total__")


def _untold(by_type: Mapping[tuple[Kind, type], Sequence[Endpoint]]) -> Iterator[ConfigurationError]:
    """Find handlers whose events differ in type parameters alone, which no object knows of: each would get all."""
    for (_, cls), endpoints in by_type.items():
        told_by: dict[frozenset[Any], Endpoint] = {}
        for endpoint in endpoints:
            forms = _forms_of(endpoint.payload_type, cls)
            if forms:
                told_by.setdefault(forms, endpoint)
        if len(told_by) > 1:
            several = " and ".join(
                f"{endpoint.label} ({' | '.join(sorted(map(str, forms)))})" for forms, endpoint in told_by.items()
            )
            yield ConfigurationError(
                f"{several} would each be called for every {cls.__qualname__}: an object does not know its parameters",
                hint=_GENERIC_HINT,
            )


_GENERIC_HINT = "make it a pydantic.BaseModel, whose forms are classes, or a subclass for each, or name a key for each"


def _forms_of(payload_type: Any, cls: type) -> frozenset[Any]:
    """The forms of a generic class in an annotation: those with parameters that narrow it."""
    origin, arguments = get_origin(payload_type), get_args(payload_type)
    if origin is Annotated:
        return _forms_of(arguments[0], cls)
    if origin is Union or origin is UnionType:
        return frozenset(form for one in arguments for form in _forms_of(one, cls))
    narrows = any(one is not Any and not isinstance(one, TypeVar) for one in arguments)
    return frozenset({payload_type} if origin is cls and narrows else ())


def _check_tellable(base: type, endpoint: Endpoint) -> None:
    try:
        issubclass(object, base)
    except TypeError as error:
        raise ConfigurationError(
            f"{endpoint.label} would never be called: nobody can tell which messages are a {base.__qualname__}",
            tried=str(error),
            hint="make the protocol @runtime_checkable, with methods only, or use a base class",
        ) from error


def _shown(type_: Any) -> str:
    return name_of(type_) if isinstance(type_, type) else "missing" if type_ is None else str(type_)
