"""What can supply a parameter, and who says so: the words of those who write resolvers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import UnionType
from typing import Annotated, Any, Protocol, get_args, get_origin

from ecotone_fastapi.core.conversion import HeaderReader
from ecotone_fastapi.core.endpoint import Endpoint
from ecotone_fastapi.core.errors import HeaderError, UnresolvableParameterError
from ecotone_fastapi.core.message import Message
from ecotone_fastapi.core.pipeline import Scope
from ecotone_fastapi.core.signatures import EMPTY, Parameter


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
class Constant:
    """The same value for ever.

    Args:
        value: The value.
        described: What it is, for people.
    """

    value: Any
    described: str = ""


@dataclass(frozen=True, slots=True)
class HeaderValue:
    """A header of the message.

    Args:
        names: The first of these that the message has, compared without regard to case.
        read: Makes the value from its name and text; without it the text is the value.
        default: The value when it is missing; without one, that is a `HeaderError`.
        make_default: Makes that value, another one for each message.
    """

    names: tuple[str, ...]
    read: Callable[[str, str], Any] | None
    default: Any = EMPTY
    make_default: Callable[[], Any] | None = None


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
        described: Where it comes from, for people; the name of the callable unless told.
    """

    call: Callable[..., Any]
    use_cache: bool = True
    scopes: tuple[str, ...] = ()
    limit: int | None = None
    limited_by: object = None
    shared: bool = False
    described: str = ""


Source = Constant | HeaderValue | FromMessage | FromScope | FromSecurityScopes
Supplier = Source | Dependency


class Wanted(Protocol):
    """Where a resolver is asked from."""

    @property
    def endpoint(self) -> Endpoint:
        """The handler that it is for."""
        ...

    @property
    def asynchronous(self) -> bool:
        """Whether the handler runs in a consumer, far from any HTTP request."""
        ...

    def offered(self, key: object) -> Supplier | None:
        """What is supplied for this type or dependency, by the framework itself or as a service."""
        ...

    def error(self, what: str, *, hint: str = "") -> UnresolvableParameterError:
        """Make the error that names handler and chain."""
        ...


class ParameterResolver(Protocol):
    """Knows some markers or types."""

    def resolve(self, parameter: Parameter, wanted: Wanted) -> Supplier | None:
        """Say what supplies the parameter; `None` leaves it to the next resolver.

        It is asked for the `self` of handler methods, too, and for what stands in `dependencies=`.

        Raises:
            UnresolvableParameterError: The parameter is known, and can never be supplied here.
        """
        ...


# Both have slots of their own in every plan.
PAYLOAD_ITSELF = FromMessage(attrgetter("payload"))
MESSAGE_ITSELF = FromMessage(lambda message: message)


def header_reader(annotation: Any, constraints: Sequence[Any] = ()) -> HeaderReader | None:
    """Return what reads a header as this type under these constraints; nothing does when it is any text.

    Raises:
        ConfigurationError: pydantic cannot read the type.
    """
    if annotation is str and not constraints:
        return None
    return HeaderReader(Annotated[annotation, *constraints] if constraints else annotation)


def read_header(wanted: HeaderValue, message: Message[Any], scope: Scope) -> Any:
    """Return the value of a header.

    Raises:
        HeaderError: It is missing and has no default, or cannot be read.
    """
    headers = message.headers
    for name in wanted.names:
        text = headers.get(name)
        if text is None:
            folded = name.lower()
            text = next((value for key, value in headers.items() if key.lower() == folded), None)
        if text is not None:
            return text if wanted.read is None else wanted.read(name, text)
    if wanted.make_default is not None:
        return wanted.make_default()
    if wanted.default is EMPTY:
        raise HeaderError(
            f"the message has no header {wanted.names[0]!r}",
            tried=", ".join(sorted(headers)),
            hint=f"send it with headers={{{wanted.names[0]!r}: ...}}, or give the parameter a default",
        )
    return wanted.default


def type_shown(annotation: Any) -> str:
    """Return an annotation as it is told to people; empty where there is none."""
    if annotation is EMPTY:
        return ""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(origin, type) and arguments and not isinstance(annotation, UnionType):
        return f"{origin.__name__}[{', '.join('...' if one is ... else type_shown(one) for one in arguments)}]"
    return annotation.__name__ if isinstance(annotation, type) and origin is None else str(annotation)


def in_words(supplier: Source) -> str:
    """Return for people where a value comes from."""
    if supplier is PAYLOAD_ITSELF:
        return "the payload"
    if supplier is MESSAGE_ITSELF:
        return "the message"
    match supplier:
        case Constant(value, described):
            return described or f"the given {type(value).__name__}, one for the application"
        case HeaderValue(names, default=default):
            asked = " or ".join(repr(name) for name in dict.fromkeys(names))
            return f"the header {asked}" + ("" if default is EMPTY else f", else its default {default!r}")
        case FromMessage():
            return "read from the message"
        case FromScope():
            return "of the unit of work"
        case _:
            return "the security scopes on the way here"
