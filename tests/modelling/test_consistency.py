"""Decisions on events that are found by their tags, on every store."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Annotated, Any, Optional
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecotone_fastapi import (
    ConcurrencyError,
    ConfigurationError,
    ConversionError,
    Decisions,
    EventStore,
    InstantRetries,
    Message,
    Tag,
    applies,
    command_handler,
    event_handler,
    message_name,
    revision,
    upcaster,
)
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from ecotone_fastapi.modelling.tags import tag_of, tags_of
from ecotone_fastapi.testing import Flow, flow_test

Start = Callable[..., AbstractAsyncContextManager[Flow]]


@pytest.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("psycopg", marks=pytest.mark.postgresql),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ]
)
def start(request: pytest.FixtureRequest) -> Start:
    """Starts an application, on the same database each time."""
    url: str | None = None
    if request.param == "psycopg":
        url = request.getfixturevalue("postgresql_url").replace("+asyncpg", "+psycopg")
    elif request.param != "memory":
        url = request.getfixturevalue(f"{request.param}_url")

    def flow(*handlers: Any, retries: int = 3) -> AbstractAsyncContextManager[Flow]:
        database = [] if url is None else [SqlAlchemy(url, create_schema=True)]
        return flow_test(handlers, plugins=[*database, InstantRetries(passing=retries)])

    return flow


@dataclass(frozen=True)
class StudentWasEnrolled:
    course: Annotated[str, Tag()]
    student: Annotated[str, Tag()]


@dataclass(frozen=True)
class StudentLeft:
    course: Annotated[str, Tag()]
    student: Annotated[str, Tag()]


class Seats:
    """Who is in one course."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    @applies
    def enrolled(self, event: StudentWasEnrolled) -> None:
        self.taken.add(event.student)

    @applies
    def left(self, event: StudentLeft) -> None:
        self.taken.discard(event.student)


class Courses:
    """Where one student is."""

    def __init__(self) -> None:
        self.attended = 0

    @applies
    def enrolled(self, event: StudentWasEnrolled) -> None:
        self.attended += 1

    @applies
    def left(self, event: StudentLeft) -> None:
        self.attended -= 1


class RefusedError(Exception):
    pass


@dataclass(frozen=True)
class Enroll:
    student: str
    course: str


@dataclass(frozen=True)
class Leave:
    student: str
    course: str


SEATS, ATTENDED = 3, 2


class Enrolling:
    """Two rules that no aggregate has to itself: a course has so many seats, a student so many courses."""

    @command_handler
    async def enroll(self, command: Enroll, decisions: Decisions) -> None:
        seats = await decisions.load(Seats, course=command.course)
        courses = await decisions.load(Courses, student=command.student)
        if command.student in seats.state.taken:
            raise RefusedError("already enrolled")
        if len(seats.state.taken) >= SEATS or courses.state.attended >= ATTENDED:
            raise RefusedError("no room")
        await decisions.append(StudentWasEnrolled(command.course, command.student), given=[seats, courses])

    @command_handler
    async def leave(self, command: Leave, decisions: Decisions) -> None:
        seats = await decisions.load(Seats, course=command.course, student=command.student)
        if command.student not in seats.state.taken:
            raise RefusedError("not there")
        await decisions.append(StudentLeft(command.course, command.student), given=[seats])


async def test_what_a_decision_was_made_on_decides(start: Start) -> None:
    async with start(Enrolling) as flow:
        for student in ("ada", "bob", "cid"):
            await flow.send(Enroll(student, "algebra"))

        with pytest.raises(RefusedError):
            await flow.send(Enroll("dan", "algebra"))
        await flow.send(Leave("bob", "algebra"))
        await flow.send(Enroll("dan", "algebra"))
        await flow.send(Enroll("dan", "logic"))
        with pytest.raises(RefusedError):
            await flow.send(Enroll("dan", "sets"))


async def test_a_decision_that_something_has_come_between_is_refused(start: Start) -> None:
    loaded, go_on = asyncio.Event(), asyncio.Event()

    class Slowly:
        @command_handler("enroll.slowly")
        async def enroll(self, command: Enroll, decisions: Decisions) -> None:
            seats = await decisions.load(Seats, course=command.course)
            loaded.set()
            await go_on.wait()
            await decisions.append(StudentWasEnrolled(command.course, command.student), given=[seats])

    async with start(Enrolling, Slowly, retries=0) as flow:
        slow = asyncio.create_task(flow.send(Enroll("ada", "algebra"), to="enroll.slowly"))
        await loaded.wait()
        await flow.given("course-algebra", [StudentWasEnrolled("algebra", "bob")])
        go_on.set()

        with pytest.raises(ConcurrencyError):
            await slow
        assert flow.published == []


async def test_events_with_other_tags_are_nobody_s_business(start: Start) -> None:
    loaded, go_on = asyncio.Event(), asyncio.Event()

    class Slowly:
        @command_handler("enroll.slowly")
        async def enroll(self, command: Enroll, decisions: Decisions) -> None:
            seats = await decisions.load(Seats, course=command.course)
            loaded.set()
            await go_on.wait()
            await decisions.append(StudentWasEnrolled(command.course, command.student), given=[seats])

    async with start(Enrolling, Slowly, retries=0) as flow:
        slow = asyncio.create_task(flow.send(Enroll("ada", "algebra"), to="enroll.slowly"))
        await loaded.wait()
        await flow.given("course-logic", [StudentWasEnrolled("logic", "bob")])
        go_on.set()
        await slow

        assert flow.published == [StudentWasEnrolled("algebra", "ada")]


async def test_of_many_at_the_same_time_only_as_many_get_a_seat_as_there_are(start: Start) -> None:
    async with start(Enrolling, retries=50) as flow:
        students = [f"student-{number}" for number in range(12)]
        outcomes = await asyncio.gather(
            *(flow.send(Enroll(student, "algebra")) for student in students), return_exceptions=True
        )

        refused = [one for one in outcomes if isinstance(one, RefusedError | ConcurrencyError)]
        assert len(refused) == len(students) - SEATS, outcomes
        assert outcomes.count(None) == SEATS


@settings(max_examples=15)
@given(data=st.data())
def test_rules_hold_whatever_comes_at_the_same_time(data: st.DataObject) -> None:
    names = st.sampled_from(["ada", "bob", "cid", "dan", "eve"])
    command = st.builds(Enroll, names, st.sampled_from(["algebra", "logic", "sets"])) | st.builds(
        Leave, names, st.sampled_from(["algebra", "logic", "sets"])
    )
    rounds = data.draw(st.lists(st.lists(command, min_size=1, max_size=6), min_size=1, max_size=8))

    async def run() -> None:
        async with flow_test([Enrolling]) as flow:
            for together in rounds:
                await asyncio.gather(*map(flow.send, together), return_exceptions=True)
            seats: dict[str, set[str]] = {}
            for event in flow.published:
                taken = seats.setdefault(event.course, set())
                if isinstance(event, StudentWasEnrolled):
                    assert event.student not in taken
                    taken.add(event.student)
                else:
                    assert event.student in taken
                    taken.remove(event.student)
                assert len(taken) <= SEATS
                assert sum(event.student in one for one in seats.values()) <= ATTENDED

    asyncio.run(run())


async def test_what_was_decided_is_published_and_has_the_headers_of_its_cause(start: Start) -> None:
    heard: list[Message[StudentWasEnrolled]] = []

    class Listening:
        @event_handler
        async def hear(self, event: Message[StudentWasEnrolled]) -> None:
            heard.append(event)

    async with start(Enrolling, Listening) as flow:
        await flow.send(Enroll("ada", "algebra"), headers={"tenant": "north"})

        assert [one.payload for one in heard] == [StudentWasEnrolled("algebra", "ada")]
        assert heard[0].headers["tenant"] == "north"


async def test_events_that_were_called_otherwise_count(start: Start) -> None:
    @message_name("address.taken", aliases=["address.used"])
    @revision(2)
    @dataclass(frozen=True)
    class AddressWasTaken:
        address: Annotated[str, Tag()]
        by: str

    @dataclass(frozen=True)
    @message_name("address.claimed")
    class AddressWasClaimed:
        address: Annotated[str, Tag()]

    @upcaster("address.claimed", revision=1, to="address.taken", to_revision=2)
    def claimed(payload: dict[str, Any]) -> dict[str, Any]:
        return {**payload, "by": "somebody"}

    @upcaster("address.taken", revision=1)
    def taken(payload: dict[str, Any]) -> dict[str, Any]:
        return {**payload, "by": "anybody"}

    class Address:
        def __init__(self) -> None:
            self.by = ""

        @applies
        def when_taken(self, event: AddressWasTaken) -> None:
            self.by = event.by

    @command_handler("take")
    async def take(address: str, decisions: Decisions) -> str:
        known = await decisions.load(Address, address=address)
        if not known.state.by:
            await decisions.append(AddressWasTaken(address, "me"), given=[known])
        return known.state.by

    @command_handler("claim")
    async def claim(address: str, decisions: Decisions) -> None:
        class Nothing:
            @applies
            def claimed(self, event: AddressWasClaimed) -> None: ...

        known = await decisions.load(Nothing, address=address)
        await decisions.append(AddressWasClaimed(address), given=[known])

    async with start(claim) as earlier:
        await earlier.send("a@x.org", to="claim")
    async with start(take, claimed, taken) as flow:
        assert await flow.send("b@x.org", to="take") == ""
        assert await flow.send("b@x.org", to="take") == "me"


async def test_a_decision_that_depends_on_everything_or_on_nothing_is_an_error() -> None:
    @command_handler("everything")
    async def everything(decisions: Decisions) -> None:
        await decisions.load(Seats)

    @command_handler("nothing")
    async def nothing(decisions: Decisions) -> None:
        await decisions.append(StudentLeft("algebra", "ada"), given=[])

    async with flow_test([everything, nothing]) as flow:
        with pytest.raises(ConversionError, match="would depend on all events"):
            await flow.send(to="everything")
        with pytest.raises(ConversionError, match="depends on nothing"):
            await flow.send(to="nothing")


def test_tags_are_what_fields_say() -> None:
    @dataclass
    class Moved:
        home: Annotated[str | None, Tag("flat")]
        people: Annotated[list[str], Tag("person")]
        why: str

    assert tags_of(Moved("a", ["x", "y", "x"], "!")) == ("flat:a", "person:x", "person:y")
    assert tags_of(Moved(None, [], "!")) == ()
    assert tags_of({"home": "a"}) == ()


def test_a_tag_that_cannot_be_found_by_is_refused() -> None:
    with pytest.raises(ConversionError, match="is no tag"):
        tag_of("email", None)
    with pytest.raises(ConversionError, match="at most 190"):
        tag_of("email", "x" * 200)


async def test_who_has_appended_something_else_and_is_not_done_keeps_nobody_from_deciding(start: Start) -> None:
    appended, go_on = asyncio.Event(), asyncio.Event()

    @dataclass(frozen=True)
    class RoomWasPainted:
        colour: str

    @command_handler("paint")
    async def paint(colour: str, events: EventStore) -> None:
        await events.append("room-1", [RoomWasPainted(colour)])
        appended.set()
        await go_on.wait()

    async with start(Enrolling, paint, retries=0) as flow:
        slow = asyncio.create_task(flow.send("red", to="paint"))
        await appended.wait()
        if _one_writer(flow):
            go_on.set()  # everybody waits for it
        await flow.send(Enroll("ada", "algebra"))
        await flow.send(Enroll("bob", "algebra"))
        with pytest.raises(RefusedError):
            await flow.send(Enroll("bob", "algebra"))
        go_on.set()
        await slow


def _one_writer(flow: Flow) -> bool:
    database = flow.ecotone.assembly.services.get(SqlAlchemy)
    return isinstance(database, SqlAlchemy) and database.engine.dialect.name == "sqlite"


async def test_a_tag_that_no_event_of_the_model_has_is_refused() -> None:
    @command_handler("typo")
    async def typo(decisions: Decisions) -> None:
        await decisions.load(Seats, cuorse="algebra")

    async with flow_test([typo]) as flow:
        with pytest.raises(ConversionError, match="has the tag 'cuorse'"):
            await flow.send(to="typo")


async def test_events_of_a_class_that_was_made_later_count(start: Start) -> None:
    async with start(Enrolling) as flow:
        await flow.send(Enroll("ada", "algebra"))

        @message_name(f"guest.enrolled.{uuid4()}")  # each run of this test makes another class
        @dataclass(frozen=True)
        class GuestWasEnrolled(StudentWasEnrolled):
            of: str

        await flow.given("course-algebra", [GuestWasEnrolled("algebra", guest, "logic") for guest in ("x", "y")])
        with pytest.raises(RefusedError):
            await flow.send(Enroll("bob", "algebra"))


def test_a_tag_may_be_around_a_member_of_a_union_and_its_value_a_member_of_an_enum() -> None:
    class Colour(StrEnum):
        RED = "red"

    class Size(Enum):
        LARGE = "L"

    @dataclass
    class Painted:
        colour: Annotated[Colour, Tag()] | None
        size: Optional[Annotated[Size, Tag("size")]]  # noqa: UP045 - as others write it

    assert tags_of(Painted(Colour.RED, Size.LARGE)) == ("colour:red", "size:L")
    assert tag_of("size", Size.LARGE) == "size:L"


def test_a_tag_that_cannot_be_read_at_run_time_is_refused() -> None:
    class Painted:
        colour: "Annotated[OnlyForTheTypeChecker, Tag()]"  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(ConfigurationError, match="the tags of"):
        tags_of(Painted())
