"""What an aggregate records is kept beside it, and never in it."""

import copy
import gc
import pickle
from dataclasses import dataclass

import pytest
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ecotone_fastapi import record, take_recorded
from ecotone_fastapi.core.errors import AggregateError
from ecotone_fastapi.modelling.recording import _recorded


class Base(DeclarativeBase):
    pass


class Entity(Base):
    __tablename__ = "entity"
    name: Mapped[str] = mapped_column(primary_key=True)


class Plain:
    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass
class Data:
    name: str


@dataclass(frozen=True)
class Frozen:
    name: str


class Model(BaseModel):
    name: str


@pytest.mark.parametrize("cls", [Plain, Data, Frozen, Model])
def test_what_is_recorded_is_no_part_of_the_state(cls: type) -> None:
    one, other = cls(name="a"), cls(name="a")

    record(one, "happened")

    assert one == other
    assert repr(one) == repr(other) or cls is Plain
    assert vars(one) == vars(other)
    assert vars(pickle.loads(pickle.dumps(one))) == vars(one)
    assert take_recorded(copy.copy(one)) == []
    assert take_recorded(copy.deepcopy(one)) == []
    assert take_recorded(one) == ["happened"]
    assert take_recorded(one) == []


def test_entities_record_too() -> None:
    entity = Entity(name="a")

    record(entity, "happened")

    assert set(vars(entity)) == {"_sa_instance_state", "name"}
    assert take_recorded(entity) == ["happened"]


def test_an_event_may_be_made_when_it_is_taken() -> None:
    plain = Plain("a")
    record(plain, lambda: f"{plain.name} was made")
    plain.name = "b"

    assert take_recorded(plain) == ["b was made"]


def test_what_nobody_has_taken_goes_with_its_aggregate() -> None:
    gc.collect()  # what other tests have left behind may go at any time
    before = len(_recorded)
    plain = Plain("a")
    record(plain, "happened")
    assert len(_recorded) == before + 1

    del plain
    gc.collect()

    assert len(_recorded) == before


def test_slots_have_to_allow_it() -> None:
    @dataclass(slots=True)
    class Slotted:
        name: str

    @dataclass(slots=True, weakref_slot=True)
    class Referable:
        name: str

    with pytest.raises(AggregateError, match=r"nothing can be recorded for a .*Slotted: it has __slots__") as caught:
        record(Slotted("a"), "happened")
    assert "@dataclass(slots=True, weakref_slot=True)" in caught.value.hint

    referable = Referable("a")
    record(referable, "happened")
    assert take_recorded(referable) == ["happened"]
