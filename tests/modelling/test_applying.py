"""`@applies` methods: which one is called, how objects are made, and what is found at start."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import pytest
from pydantic import BaseModel, ConfigDict

from ecotone_fastapi import ConfigurationError, MessageHeader, applies
from ecotone_fastapi.modelling.applying import Applying


class Event: ...


@dataclass(frozen=True)
class Opened(Event):
    number: int = 0


@dataclass(frozen=True)
class Closed(Event): ...


@dataclass(frozen=True)
class Reopened(Opened): ...


@dataclass(frozen=True)
class Painted:
    colour: str


class Door:
    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.went: list[str] = []

    @applies
    def opened(self, event: Opened) -> None:
        self.went.append(f"opened {event.number}")

    @applies
    def changed(self, event: Closed | Painted) -> None:
        self.went.append(f"changed by {type(event).__name__}")

    @applies
    def anything(self, event: Event) -> None:
        self.went.append("anything")


def after(cls: type, *events: object) -> Any:
    applying = Applying(cls)
    applying.check()
    instance = applying.new()
    for event in events:
        applying.apply(instance, event, {})
    return instance


def problem(cls: type) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Applying(cls).check()
    return str(caught.value)


def test_the_method_of_the_nearest_class_is_called() -> None:
    class Other(Event): ...

    door = after(Door, Opened(1), Reopened(2), Closed(), Painted("red"), Other(), "nothing")

    assert door.went == ["opened 1", "opened 2", "changed by Closed", "changed by Painted", "anything"]


def test_the_methods_of_a_base_class_are_inherited_and_can_be_replaced() -> None:
    class Gate(Door):
        @applies
        def opened(self, event: Opened) -> None:
            self.went.append("gate")

    assert after(Gate, Opened(1), Closed()).went == ["gate", "changed by Closed"]


def test_events_are_told_by_what_they_have() -> None:
    @runtime_checkable
    class Numbered(Protocol):
        def number(self) -> int: ...

    class Lamp:
        lit = False

        @applies
        def on(self, event: Numbered) -> None:
            self.lit = True

    class Lit:
        def number(self) -> int:
            return 1

    assert after(Lamp, Lit()).lit
    assert not after(Lamp, Closed()).lit


def test_a_plain_class_is_made_by_a_call() -> None:
    assert after(Door).number == 0


def test_a_dataclass_whose_constructor_wants_more_is_made_field_by_field() -> None:
    @dataclass
    class Lamp:
        lamp_id: int
        colours: list[str] = field(default_factory=list)
        is_lit: bool = False

        @applies
        def opened(self, event: Opened) -> None:
            self.lamp_id = event.number

    blank, lamp = after(Lamp), after(Lamp, Opened(5))

    assert not hasattr(blank, "lamp_id")
    assert lamp == Lamp(5)
    assert blank.colours is not lamp.colours


def test_a_dataclass_with_slots_and_one_with_defaults_are_made() -> None:
    @dataclass(slots=True, weakref_slot=True)
    class Small:
        number: int
        colour: str = "white"

        @applies
        def opened(self, event: Opened) -> None:
            self.number = event.number

    @dataclass
    class Ready:
        number: int = 3
        doubled: int = field(init=False, default=0)

        def __post_init__(self) -> None:
            self.doubled = 2 * self.number

        @applies
        def opened(self, event: Opened) -> None: ...

    assert after(Small, Opened(2)) == Small(2)
    assert after(Ready).doubled == 6


def test_a_model_that_requires_fields_is_made_without_them() -> None:
    class Lamp(BaseModel):
        lamp_id: int
        colours: list[str] = []

        @applies
        def opened(self, event: Opened) -> None:
            self.lamp_id = event.number

    assert after(Lamp, Opened(5)) == Lamp(lamp_id=5)
    assert after(Lamp).colours == []


def test_a_constructor_that_cannot_be_called_is_found_at_start() -> None:
    class Lamp:
        def __init__(self, lamp_id: int, colour: str, *more: int, **others: int) -> None: ...

        @applies
        def opened(self, event: Opened) -> None: ...

    @dataclass(init=False)
    class Odd(Lamp):
        lamp_id: int

        def __init__(self, number: int) -> None: ...

    assert "Lamp cannot be made without lamp_id, colour" in problem(Lamp)
    assert "Odd cannot be made without number" in problem(Odd)


def test_an_object_that_nothing_can_be_recorded_for_is_found_at_start() -> None:
    @dataclass(slots=True)
    class Small:
        number: int = 0

        @applies
        def opened(self, event: Opened) -> None: ...

    assert "weakref_slot=True" in problem(Small)


def test_what_is_frozen_is_found_at_start() -> None:
    @dataclass(frozen=True)
    class Lamp:
        lamp_id: int = 0

        @applies
        def opened(self, event: Opened) -> None: ...

    class Model(BaseModel):
        model_config = ConfigDict(frozen=True)

        @applies
        def opened(self, event: Opened) -> None: ...

    assert "Lamp is frozen" in problem(Lamp)
    assert "Model is frozen" in problem(Model)


def test_a_method_that_cannot_be_called_when_an_object_is_loaded_is_found_at_start() -> None:
    class Slow:
        @applies
        async def opened(self, event: Opened) -> None: ...  # type: ignore[type-var]

    class Asking:
        @applies
        def opened(self, event: Opened, mails: Door) -> None: ...

    class Untold:
        @applies
        def opened(self, event) -> None: ...  # type: ignore[no-untyped-def]

    class Without:
        @applies
        def opened(self) -> None: ...

    class Anything:
        @applies
        def opened(self, event: Any) -> None: ...

    class Static:
        @staticmethod
        @applies
        def opened(event: Opened) -> None: ...

    class Lost:
        @applies
        def opened(self, event: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    class Odd:
        @applies
        def opened(self, event: Literal["opened"]) -> None: ...

    class Nothing: ...

    assert "Slow.opened applies events and is no plain def" in problem(Slow)
    assert "Asking.opened asks for 'mails'" in problem(Asking)
    for cls in (Untold, Without, Anything):
        assert f"{cls.__name__}.opened does not tell which events it applies" in problem(cls)
    assert "Static.opened applies events and gets no object" in problem(Static)
    assert "Lost.opened: annotation 'Nowhere'" in problem(Lost)
    assert "Odd.opened applies typing.Literal, which is no class" in problem(Odd)
    assert "nothing applies the events of" in problem(Nothing)


def test_two_methods_for_one_event_are_found_at_start() -> None:
    class Torn(Door):
        @applies
        def closed(self, event: Closed, by: Annotated[str, MessageHeader("by")] = "") -> None: ...

    told = problem(Torn)

    assert "Door.changed" in told
    assert "Torn.closed both apply Closed" in told
