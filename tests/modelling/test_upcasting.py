"""Chains of upcasters: from every former form of an event to today's."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecotone_fastapi import ConfigurationError, Ecotone, EventSourcing, event_handler, message_name, revision, upcaster
from ecotone_fastapi.core.clock import SystemClock
from ecotone_fastapi.core.conversion import Conversion
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.modelling.event_storage import StoredEvent
from ecotone_fastapi.modelling.event_types import EventTypes

Payload = dict[str, Any]


@message_name("order.placed", aliases=["order_was_placed"])
@revision(3)
@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str
    total: int
    currency: str


@upcaster("order_was_placed", revision=1)
def with_total(payload: Payload) -> Payload:
    return {"order_id": payload["id"], "total": payload["price"] * payload["quantity"]}


@upcaster("order.placed", revision=2)
def with_currency(payload: Payload) -> Payload:
    return {**payload, "currency": "EUR"}


@event_handler
async def note(event: OrderWasPlaced) -> None: ...


def read(known: EventTypes, name: str, number: int, body: str) -> Any:
    headers = f'{{"id": "1", "event.revision": "{number}"}}' if number > 1 else '{"id": "1"}'
    return known.read(StoredEvent("orders-1", 1, None, name, body.encode(), headers, datetime.now(UTC))).payload


def types(*classes: type, upcasters: list[Callable[..., Any]]) -> EventTypes:
    known = EventTypes(Gateway(Conversion(), SystemClock()), classes, upcasters)
    known.check(complete=True)
    return known


def problem(*handlers: Any, **given_: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Ecotone([note, *handlers], plugins=[EventSourcing(**given_)]).prepare()
    return str(caught.value)


def test_every_revision_goes_the_rest_of_the_way() -> None:
    known = types(OrderWasPlaced, upcasters=[with_currency, with_total])

    assert read(known, "order_was_placed", 1, '{"id": "1", "price": 3, "quantity": 2}') == OrderWasPlaced("1", 6, "EUR")
    assert read(known, "order.placed", 1, '{"id": "1", "price": 3, "quantity": 2}') == OrderWasPlaced("1", 6, "EUR")
    assert read(known, "order.placed", 2, '{"order_id": "1", "total": 6}') == OrderWasPlaced("1", 6, "EUR")
    assert read(known, "order.placed", 3, '{"order_id": "1", "total": 6, "currency": "PLN"}').currency == "PLN"


def test_upcasters_are_given_among_the_handlers_or_to_the_plugin() -> None:
    class Orders:
        @staticmethod
        @upcaster("order.placed", revision=1)
        def with_total(payload: Payload) -> Payload:
            return payload

    Ecotone([note, with_total, with_currency]).prepare()
    Ecotone([note, with_total], plugins=[EventSourcing(upcasters=[with_currency])]).prepare()
    Ecotone([note, Orders, with_currency]).prepare()


def test_an_upcaster_is_reached_by_no_message() -> None:
    ecotone = Ecotone([note, with_total, with_currency])

    assert [one.label for one in ecotone.assembly.endpoints] == ["note"]


def test_an_event_is_renamed_on_the_way() -> None:
    @message_name("order.accepted")
    @revision(2)
    @dataclass(frozen=True)
    class OrderWasAccepted:
        order_id: str

    @upcaster("order.placed", revision=1, to="order.accepted")
    def accepted(payload: Payload) -> Payload:
        return {"order_id": payload["id"]}

    known = types(OrderWasAccepted, upcasters=[accepted])

    assert read(known, "order.placed", 1, '{"id": "1"}') == OrderWasAccepted("1")
    assert read(known, "order.accepted", 2, '{"order_id": "1"}') == OrderWasAccepted("1")


def test_an_event_becomes_one_that_has_been_there_before() -> None:
    @message_name("order.accepted")
    @dataclass(frozen=True)
    class OrderWasAccepted:
        order_id: str

    @upcaster("order.confirmed", revision=4, to="order.accepted", to_revision=1)
    def accepted(payload: Payload) -> Payload:
        return payload

    known = types(OrderWasAccepted, upcasters=[accepted])

    assert read(known, "order.confirmed", 4, '{"order_id": "1"}') == OrderWasAccepted("1")


def test_a_gap_in_the_chain_is_found_at_start() -> None:
    assert "nothing takes revision 1 further" in problem(with_currency)
    assert "nothing takes revision 2 further" in problem(with_total)
    assert "2 things are wrong" in problem()


def test_a_chain_that_leads_beyond_the_class_is_found_at_start() -> None:
    @upcaster("order.placed", revision=3)
    def further(payload: Payload) -> Payload:
        return payload

    told = problem(with_total, with_currency, further)

    assert "to revision 4 of 'order.placed', but OrderWasPlaced is revision 3" in told


async def test_a_chain_that_leads_to_no_event_is_found_at_start() -> None:
    @upcaster("order.sent", revision=1)
    def further(payload: Payload) -> Payload:
        return payload

    with pytest.raises(ConfigurationError, match=r"to 'order\.sent', which is no event here"):
        async with Ecotone([note, with_total, with_currency, further]).running():
            raise AssertionError("it has started")


def test_a_chain_that_bites_its_tail_is_found_at_start() -> None:
    @upcaster("a", revision=1, to="b", to_revision=1)
    def there(payload: Payload) -> Payload:
        return payload

    @upcaster("b", revision=1, to="a", to_revision=1)
    def back(payload: Payload) -> Payload:
        return payload

    assert "back to it" in problem(with_total, with_currency, there, back)


def test_two_upcasters_of_one_revision_are_found_at_start() -> None:
    @upcaster("order.placed", revision=1)
    def another(payload: Payload) -> Payload:
        return payload

    assert "with_total and another both take revision 1 of 'order.placed'" in problem(
        with_total, with_currency, another
    )


def test_what_cannot_be_called_in_a_read_is_found_at_start() -> None:
    @upcaster("order.placed", revision=1)
    async def slowly(payload: Payload) -> Payload:
        return payload

    class Orders:
        @upcaster("order.placed", revision=1)
        def with_total(self, payload: Payload) -> Payload:
            return payload

    def unmarked(payload: Payload) -> Payload:
        return payload

    assert "slowly is async" in problem(with_currency, slowly)
    assert "Orders.with_total needs an object" in problem(with_currency, Orders)
    assert "unmarked is no upcaster" in problem(with_total, with_currency, upcasters=[unmarked])


def test_revisions_are_counted_from_one() -> None:
    with pytest.raises(ConfigurationError, match="0 is no revision"):
        revision(0)


def test_a_revision_of_a_subclass_is_checked_too() -> None:
    class Event: ...

    @revision(2)
    class Moved(Event): ...

    with pytest.raises(ConfigurationError, match="Moved is revision 2"):
        types(Event, upcasters=[])


def chain(newest: int, renamed: frozenset[int] = frozenset()) -> tuple[type, dict[int, Callable[..., Any]]]:
    """A class of events that tells the steps they went, and its upcasters; after some it has another name."""

    @message_name(name(newest, renamed))
    @revision(newest)
    @dataclass(frozen=True)
    class Event:
        went: list[int]

    def step(number: int) -> Callable[..., Any]:
        @upcaster(name(number, renamed), revision=number, to=name(number + 1, renamed))
        def further(payload: Payload) -> Payload:
            return {"went": [*payload["went"], number]}

        return further

    return Event, {number: step(number) for number in range(1, newest)}


def name(number: int, renamed: frozenset[int]) -> str:
    return f"event.{sum(one < number for one in renamed)}"


@given(newest=st.integers(1, 8), written=st.integers(1, 8), renamed=st.frozensets(st.integers(1, 8)))
def test_each_event_takes_every_step_from_its_revision_once(newest: int, written: int, renamed: frozenset[int]) -> None:
    cls, steps = chain(newest, renamed)
    written = min(written, newest)

    event = read(types(cls, upcasters=[*steps.values()]), name(written, renamed), written, '{"went": []}')

    assert event == cls(list(range(written, newest)))


@given(newest=st.integers(2, 8), missing=st.sets(st.integers(1, 7), min_size=1))
def test_every_missing_step_is_found_at_start(newest: int, missing: set[int]) -> None:
    cls, steps = chain(newest)
    gaps = sorted(missing & set(steps)) or [1]

    with pytest.raises(ConfigurationError) as caught:
        types(cls, upcasters=[step for number, step in steps.items() if number not in gaps])

    assert [f"nothing takes revision {gap} further" in str(caught.value) for gap in gaps] == [True] * len(gaps)


def test_a_missing_step_on_the_way_to_a_new_name_is_found_at_start() -> None:
    cls, steps = chain(4, frozenset({2}))

    with pytest.raises(ConfigurationError, match=r"to 'event\.0', which is no event here"):
        types(cls, upcasters=[steps[1], steps[3]])
