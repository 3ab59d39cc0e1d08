import os
import random
import subprocess
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecotone_fastapi.core.errors import ConfigurationError, HeaderError
from ecotone_fastapi.core.message import (
    FRAMEWORK_HEADERS,
    FreshHeaders,
    Message,
    MessageTypes,
    check_given,
    explicit_name_of,
    failed_attempts,
    message_name,
    name_of,
    new_id,
)

T = TypeVar("T")

names = st.text(min_size=1)
header_maps = st.dictionaries(names, st.text())
framework_headers = st.dictionaries(st.sampled_from(sorted(FRAMEWORK_HEADERS)), st.text())


# -------------------------------------------------------------------------------------------------------------- headers


def test_a_message_is_never_changed() -> None:
    message = Message("order-1", {"id": "1"})

    with pytest.raises(FrozenInstanceError):
        message.payload = "order-2"  # type: ignore[misc]


def test_a_copy_says_something_else_under_the_same_headers() -> None:
    message = Message("order-1", {"id": "1", "tenant": "acme"})

    copy = message.with_payload(b"order-1")

    assert (copy.payload, copy.headers) == (b"order-1", message.headers)
    assert message.payload == "order-1"


def test_a_copy_has_more_headers_other_headers_or_fewer() -> None:
    message = Message("order-1", {"id": "1", "tenant": "acme"})

    assert message.with_headers({"tenant": "umbrella", "user": "ada"}).headers == {
        "id": "1",
        "tenant": "umbrella",
        "user": "ada",
    }
    assert message.without_headers(["tenant", "unknown"]).headers == {"id": "1"}
    assert message.headers == {"id": "1", "tenant": "acme"}


def test_the_id_is_a_header() -> None:
    assert Message("order-1", {"id": "1"}).id == "1"


# ------------------------------------------------------------------------------------------------------------------ ids


def test_ids_are_uuids_of_version_seven_made_now() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(new_id())
    after = time.time_ns() // 1_000_000

    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert before <= made.int >> 80 <= after
    assert str(made) == str(uuid.UUID(str(made)))


def test_a_hundred_thousand_ids_are_all_different() -> None:
    assert len({new_id() for _ in range(100_000)}) == 100_000


def test_an_application_that_seeds_its_random_numbers_gets_no_id_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    state = random.getstate()
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    try:
        random.seed(1)
        one = new_id()
        random.seed(1)
        assert new_id() != one
    finally:
        random.setstate(state)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_processes_that_are_forked_make_different_ids() -> None:
    made = "import os, time; from ecotone_fastapi.core.message import new_id; time.time_ns = lambda: 10**18;"
    forked = f"{made} child = os.fork(); print(new_id(), flush=True); child and os.waitpid(child, 0)"

    told = subprocess.run([sys.executable, "-c", forked], capture_output=True, text=True, check=True, timeout=60)

    assert len(set(told.stdout.split())) == 2


@given(moments=st.lists(st.integers(0, 2**48 - 1), min_size=2))
def test_ids_sort_by_the_millisecond_in_which_they_were_made(moments: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        ids = []
        for moment in moments:
            patch.setattr(time, "time_ns", lambda moment=moment: moment * 1_000_000)
            ids.append(new_id())

    for one, its_moment in zip(ids, moments, strict=True):
        assert uuid.UUID(one).int >> 80 == its_moment
        for other, other_moment in zip(ids, moments, strict=True):
            if its_moment < other_moment:
                assert one < other


# ------------------------------------------------------------------------------------------------------------ causation


def test_a_caused_message_keeps_the_conversation_and_the_users_headers() -> None:
    cause = Message("order-1", {"id": "2", "correlation_id": "1", "causation_id": "1", "tenant": "acme"})

    caused = cause.caused("mail-1")

    assert caused.payload == "mail-1"
    assert caused.id not in ("1", "2")
    assert caused.headers == {"id": caused.id, "correlation_id": "1", "causation_id": "2", "tenant": "acme"}


def test_the_first_message_of_a_conversation_gives_it_its_id() -> None:
    assert Message("order-1", {"id": "1"}).caused("mail-1").headers["correlation_id"] == "1"


def test_whoever_handles_a_message_cannot_leave_its_conversation() -> None:
    cause = Message("order-1", {"id": "1", "correlation_id": "1"})

    caused = cause.caused("mail-1", {"correlation_id": "my own", "causation_id": "my own"})

    assert (caused.headers["correlation_id"], caused.headers["causation_id"]) == ("1", "1")


def test_headers_that_are_given_win_over_those_that_are_inherited() -> None:
    cause = Message("order-1", {"id": "1", "tenant": "acme", "user": "ada"})

    caused = cause.caused("mail-1", {"tenant": "umbrella", "delay": "5", "id": "my-id"})

    assert caused.headers["tenant"] == "umbrella"
    assert caused.headers["user"] == "ada"
    assert (caused.headers["delay"], caused.id) == ("5", "my-id")


def test_a_message_that_is_passed_on_under_its_own_id_is_not_its_own_cause() -> None:
    assert "causation_id" not in Message("order-1", {"id": "1"}).caused("order-1", {"id": "1"}).headers


def test_a_message_without_id_can_be_a_cause_too() -> None:
    nameless = Message("from elsewhere", {"tenant": "acme"})

    caused = nameless.caused("mail-1")

    assert caused.headers == {"tenant": "acme", "id": caused.id, "correlation_id": caused.id}
    assert nameless.caused("mail-1", {"correlation_id": "9"}).headers["correlation_id"] == "9"


@given(user=header_maps, framework=framework_headers, given=header_maps)
def test_only_the_users_headers_are_inherited(
    user: dict[str, str], framework: dict[str, str], given: dict[str, str]
) -> None:
    user = {name: text for name, text in user.items() if name not in FRAMEWORK_HEADERS}
    given = {name: text for name, text in given.items() if name not in FRAMEWORK_HEADERS}
    cause = Message("cause", {**user, **framework, "id": "cause"})

    caused = cause.caused("effect", given)

    own = {"id": caused.id, "causation_id": "cause", "correlation_id": framework.get("correlation_id") or "cause"}
    assert caused.headers == {**user, **given, **own}


@pytest.mark.parametrize(
    "name", ["delay", "time_to_live", "priority", "content_type", "attempt", "endpoint", "partition_key", "type"]
)
def test_what_belongs_to_one_way_through_a_channel_is_forgotten(name: str) -> None:
    assert name not in Message("order-1", {"id": "1", name: "5"}).caused("mail-1").headers


@pytest.mark.parametrize("name", ["x-ecotone-expires", "x-ecotone-deliveries", "attempt", "forward_to"])
def test_what_channels_note_for_themselves_is_not_for_users_to_write(name: str) -> None:
    with pytest.raises(HeaderError, match=name):
        check_given({name: "1"})


# -------------------------------------------------------------------------------------------------------- fresh headers


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_fresh_headers_are_written_once_when_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr("ecotone_fastapi.core.message.new_id", lambda: made.append("1") or "1")

    headers: Mapping[str, str] = FreshHeaders(None, {"tenant": "acme"}, NOON)

    assert made == []
    assert headers["id"] == headers["correlation_id"] == "1"
    assert (sorted(headers), len(headers)) == (["correlation_id", "id", "tenant", "timestamp"], 4)
    assert ("tenant" in headers, "user" in headers) == (True, False)
    assert repr(headers) == repr(dict(headers))
    assert headers["timestamp"] == "2026-01-01T12:00:00+00:00"
    assert made == ["1"]


def test_fresh_headers_are_made_of_those_of_their_cause() -> None:
    cause = Message("cause", FreshHeaders(None, {"id": "1", "tenant": "acme"}, NOON))
    effect = Message("effect", FreshHeaders(cause, None, NOON))

    assert effect.headers["causation_id"] == effect.headers["correlation_id"] == "1"
    assert effect.headers["tenant"] == "acme"
    assert effect.id != "1"


def test_a_conversation_is_not_kept_in_memory_by_its_last_message() -> None:
    cause = Message("cause", FreshHeaders(None, {"id": "1"}, NOON))
    effect = Message("effect", FreshHeaders(cause, None, NOON))
    gone = weakref.ref(cause.headers)
    assert effect.headers["causation_id"] == "1"

    del cause

    assert gone() is None


def test_two_threads_see_the_same_fresh_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    both_are_here = threading.Barrier(2)
    lock = threading.RLock()

    class Meeting:
        """The lock, with both threads in front of it before one of them gets it."""

        def __enter__(self) -> None:
            both_are_here.wait(10)
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    monkeypatch.setattr("ecotone_fastapi.core.message._writing", Meeting())
    headers = FreshHeaders(None, None, NOON)
    seen: list[str] = []
    threads = [threading.Thread(target=lambda: seen.append(headers["id"])) for _ in range(2)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert len(seen) == 2
    assert len(set(seen)) == 1


# ---------------------------------------------------------------------------------------------------------------- names


@message_name("order.placed", aliases=["order.was_placed", "OrderPlaced"])
class OrderWasPlaced: ...


class OrderWasPlacedTwice(OrderWasPlaced): ...


@dataclass
class Box(Generic[T]):
    content: T


def test_a_type_is_written_down_under_its_name_or_its_module_and_class() -> None:
    assert name_of(OrderWasPlaced) == "order.placed"
    assert name_of(Box) == f"{__name__}.Box"
    assert name_of(Box[int]) == f"{__name__}.Box"
    assert name_of(dict) == "dict"
    assert name_of(list[int]) == "list"


def test_a_name_is_not_inherited() -> None:
    assert explicit_name_of(OrderWasPlaced) == "order.placed"
    assert explicit_name_of(OrderWasPlacedTwice) is None
    assert explicit_name_of("order.placed") is None
    assert name_of(OrderWasPlacedTwice) == f"{__name__}.OrderWasPlacedTwice"


@pytest.mark.parametrize("name", ["order.placed", "order.was_placed", "OrderPlaced"])
def test_a_type_is_found_by_its_name_and_by_its_former_names(name: str) -> None:
    assert MessageTypes([OrderWasPlaced]).find(name) is OrderWasPlaced


def test_a_subclass_of_a_known_type_is_found_though_nobody_told() -> None:
    types = MessageTypes([OrderWasPlaced, dict])

    class OrderWasPlacedAgain(OrderWasPlacedTwice): ...

    @message_name("order.placed_by_phone", aliases=["order.phoned"])
    class OrderWasPlacedByPhone(OrderWasPlaced): ...

    assert types.find(name_of(OrderWasPlacedAgain)) is OrderWasPlacedAgain
    assert types.find("order.phoned") is OrderWasPlacedByPhone
    assert types.find("order.phoned") is OrderWasPlacedByPhone
    assert types.find("builtins.OrderedDict") is None


def test_two_types_cannot_have_one_name() -> None:
    @message_name("order.placed")
    class Other: ...

    with pytest.raises(ConfigurationError, match=r"OrderWasPlaced and .*Other are both named 'order.placed'"):
        MessageTypes([OrderWasPlaced, Other])


def test_a_former_name_of_one_type_cannot_be_the_name_of_another() -> None:
    @message_name("OrderPlaced")
    class Other: ...

    with pytest.raises(ConfigurationError, match="are both named 'OrderPlaced'"):
        MessageTypes([OrderWasPlaced, Other])


def test_telling_a_type_twice_is_no_mistake() -> None:
    types: Any = MessageTypes([OrderWasPlaced, OrderWasPlaced])

    types.add(OrderWasPlaced)

    assert types.find("order.placed") is OrderWasPlaced


@pytest.mark.parametrize(
    ("text", "attempts"),
    [(None, 0), ("0", 0), ("7", 7), ("many", 0), ("-7", 0), ("9" * 30, 1_000_000_000), ("9" * 5_000, 0)],
)
def test_the_number_of_failed_runs_is_read_from_the_header(text: str | None, attempts: int) -> None:
    assert failed_attempts(Message(b"", {} if text is None else {"attempt": text})) == attempts
