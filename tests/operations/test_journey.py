"""Handlers are found by what people call them, and the way to them is told as data."""

from dataclasses import asdict, dataclass

import pytest

from ecotone_fastapi import ConfigurationError, Ecotone, asynchronous, command_handler, event_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.core.plugin import Assembly
from ecotone_fastapi.operations.journey import find, handler_names, journey_to
from ecotone_fastapi.operations.wording import abilities, listed, type_text, unknown


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


class Orders:
    @command_handler
    async def place(self, command: PlaceOrder) -> None: ...

    @asynchronous("mails")
    @event_handler(id="send-mail")
    async def mail(self, event: PlaceOrder) -> None: ...


class Others:
    @event_handler
    async def mail(self, event: PlaceOrder) -> None: ...


@pytest.fixture
def assembly() -> Assembly:
    return Ecotone([Orders, Others], channels=[MemoryChannel("mails")]).assembly


@pytest.mark.parametrize("name", ["send-mail", "Orders.mail", "ers.mail"])
def test_a_handler_is_found_by_its_id_its_name_or_the_end_of_either(assembly: Assembly, name: str) -> None:
    if name == "ers.mail":
        with pytest.raises(ConfigurationError, match=r"'ers.mail' are several handlers.*\n  send-mail\n"):
            find(assembly, name)
    else:
        assert find(assembly, name).id == "send-mail"


def test_a_name_that_nobody_has_is_told_with_those_that_there_are(assembly: Assembly) -> None:
    with pytest.raises(ConfigurationError) as raised:
        find(assembly, "nobody")

    assert raised.value.what.startswith("there is no handler 'nobody'; known are:\n")
    assert all(name in raised.value.what for name in handler_names(assembly))
    assert handler_names(assembly) == ["Orders.mail (send-mail)", "Orders.place", "Others.mail"]


def test_the_way_to_a_handler_is_plain_data(assembly: Assembly) -> None:
    told = asdict(journey_to(find(assembly, "send-mail"), assembly))

    assert (told["id"], told["label"], told["kind"], told["route"]) == (
        "send-mail",
        "Orders.mail",
        "event",
        "PlaceOrder",
    )
    assert [one["stage"] for one in told["stations"]] == ["dispatch", "handle", "send", "channel", "receive", "handle"]
    assert "ASYNCHRONOUS" in [one["order_name"] for one in told["stations"][1]["interceptors"]]
    assert told["file"].endswith("test_journey.py")
    assert told["line"] > 0


def test_channels_and_types_are_told_in_words() -> None:
    assert abilities(MemoryChannel("mails")).startswith("delay, ordered")
    assert [type_text(one) for one in (None, int, list[int], int | str)] == [None, "int", "list[int]", "int | str"]


def test_names_are_listed_as_people_do() -> None:
    assert [listed([]), listed(["a"]), listed(["a", "b", "a"])] == ["", "a", "a and b"]
    assert listed("abcde") == "a, b, c, d and e"
    assert listed("abcdefg") == "a, b, c, d, e and 2 more"
    assert str(unknown("channel", "x", [])) == "there is no channel 'x'; there is none"
