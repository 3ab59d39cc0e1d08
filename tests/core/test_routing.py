import re
import typing
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, Optional, Protocol, TypeVar, Union, runtime_checkable

import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from ecotone_fastapi.core.endpoint import Endpoint, Kind
from ecotone_fastapi.core.errors import ConfigurationError, DuplicateHandlerError, HandlerNotFoundError
from ecotone_fastapi.core.message import message_name
from ecotone_fastapi.core.routing import Routing, members_of

T = TypeVar("T")


class Happened: ...


class OrderHappened(Happened): ...


class OrderWasPlaced(OrderHappened): ...


class OrderWasCancelled(OrderHappened): ...


@message_name("order.shipped", aliases=["order.sent"])
class OrderWasShipped(Happened): ...


@dataclass
class Box(Generic[T]):
    content: T


class IntBox(Box[int]): ...


class Envelope(BaseModel, Generic[T]):
    content: T


class OrderDict(typing.TypedDict):
    order_id: str


class LaterOrderDict(typing_extensions.TypedDict):
    order_id: str


@runtime_checkable
class HasTotal(Protocol):
    def total(self) -> int: ...


class Priced(ABC):
    @abstractmethod
    def price(self) -> int: ...


class Invoice:
    def total(self) -> int:
        return 1


@Priced.register
class Ticket: ...


def handler(
    id_: str, payload_type: Any = None, route: str | None = None, *, kind: Kind = Kind.EVENT, priority: int = 1
) -> Endpoint:
    def function() -> None: ...

    function.__name__ = id_
    return Endpoint(id_, kind, route, payload_type, function, priority=priority)


def reached(routing: Routing, payload: Any = None, key: str | None = None, kind: Kind = Kind.EVENT) -> list[str]:
    return [endpoint.id for endpoint in routing.find(kind, payload, key)]


# -------------------------------------------------------------------------------------------------------------- by type


def test_an_event_reaches_the_handlers_of_its_class_and_of_all_its_bases() -> None:
    routing = Routing(
        [
            handler("exact", OrderWasPlaced),
            handler("base", Happened),
            handler("anything", object),
            handler("other", OrderWasCancelled),
        ]
    )

    assert reached(routing, OrderWasPlaced()) == ["exact", "base", "anything"]
    assert reached(routing, OrderWasCancelled()) == ["other", "base", "anything"]
    assert reached(routing, Happened()) == ["base", "anything"]
    assert reached(routing, {"order_id": 1}) == ["anything"]


def test_an_event_that_nobody_handles_reaches_nobody() -> None:
    routing = Routing([])

    assert reached(routing, OrderWasPlaced()) == []
    assert reached(routing, {}, "order.placed") == []


def test_an_event_reaches_the_handlers_of_what_it_looks_like() -> None:
    routing = Routing([handler("structural", HasTotal), handler("registered", Priced), handler("other", Happened)])

    assert reached(routing, Invoice()) == ["structural"]
    assert reached(routing, Ticket()) == ["registered"]
    assert reached(routing, 5) == []


@pytest.mark.parametrize(
    "type_",
    [
        OrderWasPlaced | OrderWasCancelled,
        Union[OrderWasPlaced, OrderWasCancelled],  # noqa: UP007  the old way of writing is another type
        Annotated[OrderWasPlaced | OrderWasCancelled, "either"],
        Annotated[OrderWasPlaced, "one"] | Annotated[OrderWasCancelled, "other"],
        Optional[OrderWasPlaced | OrderWasCancelled],  # noqa: UP045
    ],
)
def test_a_union_subscribes_to_each_of_its_members(type_: Any) -> None:
    routing = Routing([handler("either", type_)])

    assert reached(routing, OrderWasPlaced()) == ["either"]
    assert reached(routing, OrderWasCancelled()) == ["either"]
    assert reached(routing, OrderHappened()) == []
    assert reached(routing, None) == []


def test_an_event_that_is_several_members_of_a_union_reaches_its_handler_once() -> None:
    assert reached(Routing([handler("either", OrderWasPlaced | Happened)]), OrderWasPlaced()) == ["either"]


def test_a_generic_type_subscribes_to_its_class() -> None:
    routing = Routing([handler("boxes", Box[int]), handler("lists", list[int])])

    assert reached(routing, Box("not even an int")) == ["boxes"]
    assert reached(routing, [1]) == ["lists"]


def test_two_forms_of_one_generic_class_are_one_member() -> None:
    routing = Routing([handler("boxes", Box[int] | Box[str], kind=Kind.COMMAND)])

    assert reached(routing, Box(1), kind=Kind.COMMAND) == ["boxes"]


@pytest.mark.parametrize("kind", [Kind.COMMAND, Kind.QUERY, Kind.INTERNAL])
def test_a_command_or_query_takes_the_handler_of_the_nearest_class(kind: Kind) -> None:
    routing = Routing([handler("far", Happened, kind=kind), handler("near", OrderHappened, kind=kind)])

    assert reached(routing, OrderWasPlaced(), kind=kind) == ["near"]
    assert reached(routing, Happened(), kind=kind) == ["far"]


def test_commands_queries_and_events_do_not_meet() -> None:
    routing = Routing([handler(kind, OrderWasPlaced, kind=kind) for kind in Kind])

    for kind in Kind:
        assert reached(routing, OrderWasPlaced(), kind=kind) == [kind]


def test_a_protocol_that_cannot_be_told_at_run_time_is_found_at_start() -> None:
    class NotRuntime(Protocol):
        def total(self) -> int: ...

    @runtime_checkable
    class WithAttribute(Protocol):
        total: int

    for protocol in (NotRuntime, WithAttribute):
        with pytest.raises(ConfigurationError, match=f"'?bill would never be called.*{protocol.__qualname__}"):
            Routing([handler("bill", protocol)])


# --------------------------------------------------------------------------------------------------------------- by key


def test_a_key_reaches_the_handlers_of_the_key_and_a_class_those_of_the_class() -> None:
    routing = Routing([handler("by key", OrderWasPlaced, "order.placed"), handler("by class", OrderWasPlaced)])

    assert reached(routing, OrderWasPlaced()) == ["by class"]
    assert reached(routing, OrderWasPlaced(), "order.placed") == ["by key"]
    assert reached(routing, {"order_id": 1}, "order.placed") == ["by key"]
    assert reached(routing, OrderWasPlaced(), "ORDER.PLACED") == []


def test_a_handler_of_everything_does_not_take_what_is_sent_to_a_key() -> None:
    assert reached(Routing([handler("anything", object)]), {"order_id": 1}, "order.placed") == []


@pytest.mark.parametrize(
    ("glob", "key", "fits"),
    [
        ("order.*", "order.placed", True),
        ("order.*", "Order.Placed", True),
        ("order.*", "order.", True),
        ("order.*", "order", False),
        ("order.*", "my.order.placed", False),
        ("*.placed", "order.placed", True),
        ("*.placed", "order.placed.twice", False),
        ("order.*.by.*", "order.placed.by.ada", True),
        ("*", "anything at all", True),
        ("a.b*", "axb", False),
        ("[ab]*", "a", False),
        ("[ab]*", "[ab]c", True),
    ],
)
def test_a_glob_fits_whole_keys_without_regard_to_case(glob: str, key: str, fits: bool) -> None:
    assert reached(Routing([handler("globbed", Any, glob)]), {}, key) == ["globbed"] * fits


texts = st.text(st.characters(codec="ascii", exclude_characters="*", categories=["L", "N", "P"]))


@given(pieces=st.lists(texts, min_size=2, max_size=4), fillings=st.lists(texts, min_size=3, max_size=3))
def test_every_filling_of_a_glob_fits_it(pieces: Sequence[str], fillings: Sequence[str]) -> None:
    key = pieces[0] + "".join(filling + piece for filling, piece in zip(fillings, pieces[1:], strict=False))

    assert reached(Routing([handler("globbed", Any, "*".join(pieces))]), {}, key) == ["globbed"]


@given(glob=texts.map(lambda text: f"{text}*"), key=texts)
def test_a_glob_fits_only_what_begins_and_ends_like_it(glob: str, key: str) -> None:
    fits = reached(Routing([handler("globbed", Any, glob)]), {}, key) == ["globbed"]

    assert fits == (re.match(re.escape(glob[:-1]), key, re.IGNORECASE) is not None)


@pytest.mark.parametrize("kind", [Kind.COMMAND, Kind.QUERY])
def test_only_an_event_may_have_a_glob(kind: Kind) -> None:
    with pytest.raises(ConfigurationError, match=f"place handles {kind} 'order.\\*': only events may have a glob"):
        Routing([handler("place", Any, "order.*", kind=kind)])


# ------------------------------------------------------------------------------------------------------- named messages


def test_a_named_class_and_its_name_reach_each_others_handlers() -> None:
    routing = Routing(
        [
            handler("by class", OrderWasShipped),
            handler("by name", Any, "order.shipped"),
            handler("by glob", Any, "order.*"),
            handler("by base", Happened),
            handler("other", Any, "order.placed"),
        ]
    )
    everyone = {"by class", "by name", "by glob", "by base"}

    assert set(reached(routing, OrderWasShipped())) == everyone
    assert set(reached(routing, {"order_id": 1}, "order.shipped")) == everyone


def test_a_former_name_reaches_the_handlers_of_the_class() -> None:
    assert reached(Routing([handler("by class", OrderWasShipped)]), {}, "order.sent") == ["by class"]


def test_a_class_without_a_name_is_not_reached_by_what_it_is_written_down_as() -> None:
    assert reached(Routing([handler("by class", OrderWasPlaced)]), {}, f"{__name__}.OrderWasPlaced") == []


def test_a_named_command_reaches_its_handler_by_class_and_by_name() -> None:
    routing = Routing([handler("ship", OrderWasShipped, kind=Kind.COMMAND)])

    assert reached(routing, OrderWasShipped(), kind=Kind.COMMAND) == ["ship"]
    assert reached(routing, {}, "order.shipped", kind=Kind.COMMAND) == ["ship"]


# ---------------------------------------------------------------------------------------------------------------- order


def test_handlers_of_one_event_run_by_priority_then_as_they_were_given() -> None:
    routing = Routing(
        [
            handler("first of one", Happened),
            handler("last", Happened, priority=-1),
            handler("first", Happened, priority=10),
            handler("second of one", Happened),
        ]
    )

    assert reached(routing, Happened()) == ["first", "first of one", "second of one", "last"]


@given(priorities=st.lists(st.integers(-5, 5), max_size=8))
def test_the_order_of_handlers_is_a_stable_sort_by_priority(priorities: list[int]) -> None:
    routing = Routing([handler(str(at), Any, "key", priority=priority) for at, priority in enumerate(priorities)])

    expected = sorted(range(len(priorities)), key=lambda at: -priorities[at])
    assert reached(routing, {}, "key") == [str(at) for at in expected]


# ------------------------------------------------------------------------------------------------------- found at start


@pytest.mark.parametrize("kind", [Kind.COMMAND, Kind.QUERY, Kind.INTERNAL])
@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        ((OrderWasPlaced, None), (OrderWasPlaced, None), "OrderWasPlaced"),
        ((Any, "order.place"), (dict, "order.place"), "order.place"),
        ((OrderWasPlaced | OrderWasCancelled, None), (OrderWasCancelled, None), "OrderWasCancelled"),
        ((Box[int], None), (Box[str], None), "Box"),
        ((OrderWasShipped, None), (Any, "order.shipped"), "order.shipped"),
        ((Any, "order.shipped"), (OrderWasShipped, None), "order.shipped"),
    ],
)
def test_a_command_or_query_has_one_handler(
    kind: Kind, one: tuple[Any, str | None], other: tuple[Any, str | None], what: str
) -> None:
    with pytest.raises(DuplicateHandlerError, match=f"one and other both handle the {kind} {what}"):
        Routing([handler("one", *one, kind=kind), handler("other", *other, kind=kind)])


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (Box[int], Box[str], r"one \(.*Box\[int\]\) and other \(.*Box\[str\]\) would each be called for every Box: "),
        (list[int], list[str], r"one \(list\[int\]\) and other \(list\[str\]\) would each be called for every list: "),
        (Box[int] | OrderWasPlaced, Annotated[Box[str] | None, "maybe"], "would each be called for every Box: "),
        (Box[int] | Box[str], Box[int], r"one \(.*Box\[int\] \| .*Box\[str\]\) and other \(.*Box\[int\]\)"),
    ],
)
def test_handlers_of_events_that_differ_in_type_parameters_alone_are_told_at_start(
    one: Any, other: Any, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told) as raised:
        Routing([handler("one", one), handler("other", other)])

    assert "make it a pydantic.BaseModel" in raised.value.hint


@pytest.mark.parametrize("kind", [Kind.COMMAND, Kind.QUERY, Kind.INTERNAL])
def test_a_command_or_query_of_a_generic_class_says_why_its_parameters_do_not_count(kind: Kind) -> None:
    with pytest.raises(DuplicateHandlerError, match="an object does not know its type parameters: make it a pydantic"):
        Routing([handler("one", Box[int], kind=kind), handler("other", Box[str], kind=kind)])


@pytest.mark.parametrize("other", [Box[int], Box, Box[Any], Box[T], object, IntBox, list[str]])  # type: ignore[valid-type]
def test_handlers_whose_generic_events_need_not_be_told_apart_live_together(other: Any) -> None:
    routing = Routing([handler("one", Box[int]), handler("other", other)])

    assert "one" in reached(routing, Box(1))
    assert "one" in reached(routing, IntBox(1))


def test_type_parameters_do_not_matter_where_a_key_decides_or_the_kinds_differ() -> None:
    routing = Routing(
        [
            handler("int", Box[int], "box.int"),
            handler("str", Box[str], "box.str"),
            handler("float", Box[float]),
            handler("command", Box[bytes], kind=Kind.COMMAND),
        ]
    )

    assert reached(routing, Box(1), "box.int") == ["int"]
    assert reached(routing, Box(1.5)) == ["float"]


def test_the_forms_of_a_generic_pydantic_model_are_told_apart() -> None:
    routing = Routing(
        [
            handler("int", Envelope[int]),
            handler("str", Envelope[str]),
            handler("any", Envelope),
            handler("all", BaseModel),
        ]
    )

    assert reached(routing, Envelope[int](content=1)) == ["int", "any", "all"]
    assert reached(routing, Envelope[str](content="a")) == ["str", "any", "all"]


def test_an_id_belongs_to_one_handler() -> None:
    with pytest.raises(DuplicateHandlerError, match="same and same have the same id 'same'"):
        Routing([handler("same", OrderWasPlaced), handler("same", OrderWasCancelled)])


@pytest.mark.parametrize("type_", [None, Any, OrderDict, LaterOrderDict, OrderDict | OrderWasPlaced, Literal["placed"]])
def test_what_has_no_class_of_its_own_needs_a_key(type_: Any) -> None:
    with pytest.raises(ConfigurationError, match=r'note has no route: .*\n.*name a key: @event_handler\("some.key"\)'):
        Routing([handler("note", type_)])

    assert reached(Routing([handler("note", type_, "order.placed")]), {}, "order.placed") == ["note"]


def test_two_classes_with_one_name_are_found_at_start() -> None:
    @message_name("order.shipped")
    class Other: ...

    with pytest.raises(ConfigurationError, match=r"are both named 'order.shipped'"):
        Routing([handler("one", OrderWasShipped), handler("other", Other)])


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as raised:
        Routing([handler("one", None), handler("two", Any), handler("three", Any, "a*", kind=Kind.QUERY)])

    assert len(raised.value.problems) == 3


# ------------------------------------------------------------------------------------------------------------ not found


def test_a_command_without_handler_names_what_was_sent_and_what_is_handled() -> None:
    routing = Routing(
        [
            handler("place", OrderWasPlaced, kind=Kind.COMMAND),
            handler("cancel", Any, "order.cancel", kind=Kind.COMMAND),
            handler("count", Any, "order.count", kind=Kind.QUERY),
        ]
    )

    with pytest.raises(HandlerNotFoundError) as raised:
        routing.find(Kind.COMMAND, OrderWasCancelled(), None)

    assert str(raised.value) == (
        f"no handler for the command {__name__}.OrderWasCancelled\n"
        f"Tried: handlers of this kind: order.cancel, {__name__}.OrderWasPlaced\n"
        "Hint: is the class or module of the handler given to Ecotone([...])?"
    )


def test_a_query_to_a_key_that_nobody_handles_says_so_each_time() -> None:
    routing = Routing([])

    for _ in range(2):
        with pytest.raises(HandlerNotFoundError, match=r"no handler for the query 'order.count'\n.*there are none"):
            routing.find(Kind.QUERY, {}, "order.count")
        with pytest.raises(HandlerNotFoundError, match="no handler for the query dict"):
            routing.find(Kind.QUERY, {}, None)


def test_keys_that_nobody_handles_do_not_fill_the_memory() -> None:
    routing = Routing([])

    for number in range(100):
        assert reached(routing, {}, f"unknown.{number}") == []

    assert routing._found == {}


# -------------------------------------------------------------------------------------------------------------- members


@pytest.mark.parametrize(
    ("type_", "members"),
    [
        (None, []),
        (Any, []),
        (int, [int]),
        (int | str | None, [int, str]),
        (Annotated[int | None, "doc"], [int]),
        (list[int], [list]),
        (Box[int], [Box]),
        (Literal["a"], [Literal]),
    ],
)
def test_the_members_of_an_annotation(type_: Any, members: list[Any]) -> None:
    assert list(members_of(type_)) == members
