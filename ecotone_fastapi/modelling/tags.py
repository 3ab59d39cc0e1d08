"""Tags: what an event is about, besides the stream that it is in.

    @dataclass(frozen=True)
    class StudentWasEnrolled:
        course_id: Annotated[str, Tag("course")]
        student_id: Annotated[str, Tag("student")]

Events can be found by their tags wherever they are, and decisions can depend on them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints
from weakref import WeakKeyDictionary

from ecotone_fastapi.core.errors import ConfigurationError, ConversionError

LONGEST_TAG = 190
"""Characters that a tag may have: every database can index them."""


@dataclass(frozen=True, slots=True)
class Tag:
    """Marker: events can be found by the value of this field.

    Args:
        name: What the value is called; without it, the name of the field. Of a list, each element is a tag.

    Example:
        >>> @dataclass
        ... class UserWasRegistered:
        ...     email: Annotated[str, Tag()]
        >>> tags_of(UserWasRegistered("ada@example.org"))
        ('email:ada@example.org',)
    """

    name: str | None = None


def tag_of(name: str, value: Any) -> str:
    """Return the text of a tag.

    Raises:
        ConversionError: It is too long to be found by, or nothing.

    Example:
        >>> tag_of("course", 7)
        'course:7'
    """
    text = f"{name}:{value.value if isinstance(value, Enum) else value}"
    if value is None or len(text) > LONGEST_TAG:
        raise ConversionError(
            f"{text[:80]!r} is no tag", hint=f"a tag has a value, and at most {LONGEST_TAG} characters"
        )
    return text


def tags_of(event: Any) -> tuple[str, ...]:
    """Return the tags of an event: those of its fields that are marked and have a value."""
    tags: dict[str, None] = {}
    for field, name in _tagged(type(event)):
        value = getattr(event, field)
        for one in value if isinstance(value, list | tuple | set | frozenset) else (value,):
            if one is not None:
                tags[tag_of(name, one)] = None
    return tuple(tags)


def tag_names(cls: type) -> Iterable[str]:
    """Return what the tags of a class of events are called."""
    return [name for _, name in _tagged(cls)]


_Fields = Sequence[tuple[str, str]]  # of a class, those that are marked, with what their tags are called

_known: WeakKeyDictionary[type, _Fields] = WeakKeyDictionary()


def _tagged(cls: type) -> _Fields:
    found = _known.get(cls)
    if found is None:
        found = _known[cls] = _find_tagged(cls)
    return found


def _find_tagged(cls: type) -> _Fields:
    try:
        hints = get_type_hints(cls, include_extras=True)
    except Exception as error:
        # An annotation that only a type checker can read says nothing about tags, unless it names one.
        if any("Tag" in str(one) for base in cls.__mro__ for one in vars(base).get("__annotations__", {}).values()):
            raise ConfigurationError(
                f"the tags of {cls.__qualname__} cannot be told: {error}",
                hint="import what its annotations name where the program runs, not only for the type checker",
            ) from error
        return ()
    return tuple((field, marker.name or field) for field, hint in hints.items() for marker in _markers(hint))


def _markers(hint: Any) -> Iterator[Tag]:
    """The tags in an annotation: around the type, or around a member of a union."""
    if get_origin(hint) is Annotated:
        inner, *metadata = get_args(hint)
        yield from (one for one in metadata if isinstance(one, Tag))
        yield from _markers(inner)
    elif get_origin(hint) in (Union, UnionType):
        for member in get_args(hint):
            yield from _markers(member)
