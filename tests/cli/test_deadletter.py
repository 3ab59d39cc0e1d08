"""`ecotone deadletter`."""

import asyncio
import base64
import importlib
import io
import json
import sys
from typing import Any

import pytest
from rich.console import Console

from ecotone_fastapi.cli import output
from ecotone_fastapi.core.plugin import Limits
from tests.cli.conftest import Project

APPLICATION = """
import os
from dataclasses import dataclass
from pathlib import Path

from ecotone_fastapi import Backoff, Ecotone, EventBus, Failures, asynchronous, command_handler, event_handler
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy

handled = Path("handled")


@dataclass(frozen=True)
class OrderWasPlaced:
    order_id: str


@asynchronous("mails")
@event_handler(id="mail")
async def mail(event: OrderWasPlaced) -> None:
    if not Path("mended").exists():
        raise TimeoutError(f"no answer for {event.order_id} [red]\\nsecond line")
    handled.write_text(handled.read_text() + event.order_id + " " if handled.exists() else event.order_id + " ")


@asynchronous("raw")
@command_handler("raw", id="raw")
async def raw(data: bytes) -> None:
    raise ValueError("unreadable")


database = SqlAlchemy("sqlite+aiosqlite:///shop.db", create_schema=True)
ecotone = Ecotone(
    [mail, raw],
    channels=[database.channel("mails"), database.channel("raw"), database.channel("others")],
    plugins=[database, Failures(Backoff(retries=1, first=0.0))],
)


async def fail(*orders: str, **headers: str) -> None:
    async with ecotone.running(consumers=False):
        for order in orders:
            await ecotone.event_bus.publish(OrderWasPlaced(order), headers=headers)


async def fail_raw(data: bytes, content_type: str) -> None:
    async with ecotone.running(consumers=False):
        await ecotone.command_bus.send(data, to="raw", headers={"content_type": content_type})
"""


class Shop:
    """A project whose handlers fail, and its dead letter."""

    def __init__(self, project: Project) -> None:
        self.project = project
        project.write("shop.py", APPLICATION)
        sys.path.insert(0, str(project.directory))

    def run(self, *arguments: str) -> Any:
        """Run `ecotone deadletter`."""
        return self.project.ecotone("deadletter", arguments[0], "--app", "shop:ecotone", *arguments[1:])

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def ids(self, *filters: str) -> list[str]:
        """The ids of the dead letters, the oldest first."""
        return [one["id"] for one in reversed(self.json("list", *filters)["dead_letters"])]

    def fails(self, *orders: str, **headers: str) -> list[str]:
        asyncio.run(self._module().fail(*orders, **headers))
        self.work()
        return self.ids()

    def fails_raw(self, data: bytes, content_type: str) -> str:
        asyncio.run(self._module().fail_raw(data, content_type))
        self.work()
        return self.ids()[-1]

    def is_mended(self) -> None:
        (self.project.directory / "mended").touch()

    def work(self) -> None:
        """Run all consumers until nothing is left."""
        asyncio.run(self._module().ecotone.work(limits=Limits(until_empty=True)))

    def handled(self) -> list[str]:
        return (self.project.directory / "handled").read_text().split()

    def _module(self) -> Any:
        return importlib.import_module("shop")


@pytest.fixture
def shop(project: Project) -> Shop:
    return Shop(project)


# ----------------------------------------------------------------------------------------------------------------- list


def test_dead_letters_are_listed_in_a_table_the_newest_first(shop: Shop) -> None:
    one, two = shop.fails("1", "2")

    result = shop.run("list")

    header, *rows = result.stdout.splitlines()
    assert header.split() == ["ID", "PARKED", "CHANNEL", "HANDLER", "ERROR", "ATTEMPTS", "REPLAYS"]
    assert [row.split()[0] for row in rows] == [two, one]
    assert "mails    mail     TimeoutError: no answer for 2 [red]         2        0" in rows[0]
    assert result.stderr == ""


def test_a_page_says_how_many_there_are(shop: Shop) -> None:
    one, two, _ = shop.fails("1", "2", "3")

    result = shop.run("list", "--limit", "1", "--offset", "1")

    assert [line.split()[0] for line in result.stdout.splitlines()[1:]] == [two]
    assert "1 of 3; --limit" in result.stderr
    assert one not in result.stdout


def test_filters_choose(shop: Shop) -> None:
    shop.fails("1", tenant="acme")
    one, two = shop.fails("2", tenant="other", region="eu")

    assert shop.ids("--tenant", "acme") == [one]
    assert shop.ids("--having", "region=eu", "--having", "tenant=other") == [two]
    assert shop.ids("--text", "answer for 2") == [two]
    assert shop.ids("--handler", "mail", "--channel", "mails", "--error", "TimeoutError") == [one, two]
    assert shop.ids("--handler", "other") == []
    assert shop.ids("--since", "1h") == [one, two]
    assert shop.ids("--until", "1h") == []
    assert shop.ids("--since", "2026-01-31T12:00", "--until", "2999-01-01") == [one, two]


def test_an_empty_list_says_why(shop: Shop) -> None:
    assert "there is no dead letter\n" in shop.run("list").stderr
    assert "there is no dead letter of this kind\n" in shop.run("list", "--channel", "other").stderr
    assert shop.json("list") == {"count": 0, "dead_letters": []}


def test_json_tells_everything_about_them(shop: Shop) -> None:
    [parked_id] = shop.fails("1", tenant="acme")

    found = shop.json("list")

    assert found["count"] == 1
    [parked] = found["dead_letters"]
    assert parked["id"] == parked_id
    assert parked["headers"]["tenant"] == "acme"
    assert (parked["channel"], parked["handler"], parked["attempts"], parked["replays"]) == ("mails", "mail", 2, 0)
    assert parked["error_type"] == "builtins.TimeoutError"
    assert parked["error_message"] == "no answer for 1 [red]\nsecond line"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "--since", "yesterday"], "'yesterday' is no moment"),
        (["list", "--since", "99999999999999w"], "'99999999999999w' is no moment"),
        (["list", "--having", "tenant"], "'tenant' is no header"),
        (["list", "something"], "list takes no 'something'"),
        (["show"], "show takes one id"),
        (["show", "one", "two"], "show takes one id"),
        (["replay"], "it is not said what to replay"),
        (["delete"], "it is not said what to delete"),
        (["delete", "--tenant", "acme"], "it is not said what to delete"),
        (["replay", "one", "--all"], "either ids, or --all"),
        (["replay", "one", "--tenant", "acme"], "either ids, or --all"),
        (["replay", "one", "two", "--payload", "{}"], "change one message"),
        (["replay", "--all", "--header", "a=b"], "change one message"),
        (["replay", "one", "--payload", "@nowhere.json"], "nowhere.json"),
    ],
)
def test_what_makes_no_sense_is_refused(shop: Shop, arguments: list[str], said: str) -> None:
    result = shop.run(*arguments)

    assert result.exit_code == 2
    assert said in result.stderr


# ----------------------------------------------------------------------------------------------------------------- show


def test_one_is_shown_with_headers_payload_and_traceback(shop: Shop) -> None:
    [parked_id] = shop.fails("Łódź", tenant="acme")

    result = shop.run("show", parked_id)

    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["id", parked_id] in lines
    assert ["tenant", "acme"] in lines
    assert '{\n  "order_id": "Łódź"\n}' in result.stdout
    assert "\nTraceback (most recent call last):\n" in result.stdout
    assert "\nTimeoutError: no answer for Łódź [red]\nsecond line\n" in result.stdout
    shown = shop.json("show", parked_id)
    assert shown["payload"] == {"order_id": "Łódź"}
    assert shown["traceback"].startswith("Traceback (most recent call last)")


def test_what_is_no_text_is_shown_in_hexadecimal_digits(shop: Shop) -> None:
    raw = bytes(range(200, 240)) + b"hello\x00"
    parked_id = shop.fails_raw(raw, "application/octet-stream")

    result = shop.run("show", parked_id)

    assert "00000000  c8 c9 ca cb cc cd ce cf d0 d1 d2 d3 d4 d5 d6 d7  ................\n" in result.stdout
    assert "68 65 6c 6c 6f 00" in result.stdout
    assert "hello.\n" in result.stdout
    assert base64.b64decode(shop.json("show", parked_id)["payload_base64"]) == raw


@pytest.mark.parametrize(
    ("raw", "content_type", "shown", "told"),
    [
        (b"plain text\n", "text/plain", "plain text\n", "plain text\n"),
        (b'{"broken": ', "application/json", '{"broken": ', '{"broken": '),
        (b"", "text/plain", "(no payload)", ""),
        (b"a\x1b[31m", "text/plain", "61 1b 5b", "a\x1b[31m"),
    ],
)
def test_text_is_shown_as_it_is_unless_it_would_do_something_to_the_terminal(
    shop: Shop, raw: bytes, content_type: str, shown: str, told: str
) -> None:
    parked_id = shop.fails_raw(raw, content_type)

    assert shown in shop.run("show", parked_id).stdout
    assert shop.json("show", parked_id)["payload"] == told


def test_nothing_of_a_message_reaches_the_terminal_as_a_command_to_it(shop: Shop) -> None:
    [parked_id] = shop.fails("\x1b]0;title\x07", tenant="\x1b[31m")

    for result in (shop.run("list"), shop.run("show", parked_id)):
        assert "\\x1b]0;title\\x07" in result.stdout
        assert "\x1b" not in result.stdout


def test_an_unknown_id_says_what_to_do(shop: Shop) -> None:
    for command in ("show", "replay", "delete"):
        result = shop.run(command, "nobody")

        assert result.exit_code == 1
        assert "DeadLetterNotFoundError: no dead letter has the id 'nobody'" in result.stderr
        assert "Hint: " in result.stderr
        assert "Traceback" not in result.stderr


# --------------------------------------------------------------------------------------------------------------- replay


def test_one_is_replayed_and_handled_by_the_consumer(shop: Shop) -> None:
    one, two = shop.fails("1", "2")
    shop.is_mended()

    result = shop.run("replay", one)
    shop.work()

    assert result.exit_code == 0
    assert result.stdout == "replayed 1\n"
    assert shop.handled() == ["1"]
    assert shop.ids() == [two]


def test_the_application_may_be_the_first_argument(shop: Shop) -> None:
    one, two = shop.fails("1", "2")

    result = shop.project.ecotone("deadletter", "replay", "shop:ecotone", one, two, one)

    assert result.stdout == "replayed 2\n"
    assert shop.ids() == []


def test_all_that_a_filter_leaves_are_replayed_when_the_question_is_answered(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.fails("1", "2", tenant="acme")
    *_, other = shop.fails("3", tenant="other")
    asked: list[str] = []

    def confirm(question: str, **_: Any) -> bool:
        asked.append(question)
        return True

    monkeypatch.setattr("typer.confirm", confirm)
    result = shop.run("replay", "--all", "--tenant", "acme")

    assert asked == ["replay 2 dead letters?"]
    assert result.stdout == "replayed 2\n"
    assert shop.ids() == [other]


def test_without_an_answer_nothing_is_done(shop: Shop) -> None:
    ids = shop.fails("1")

    for command in ("replay", "delete"):
        result = shop.run(command, "--all")

        assert result.exit_code == 1
        assert "Aborted" in result.stderr
    assert shop.ids() == ids


def test_nobody_is_asked_about_nothing(shop: Shop) -> None:
    assert shop.run("replay", "--all").stdout == "replayed 0\n"


def test_a_message_is_replayed_with_another_payload_and_other_headers(shop: Shop) -> None:
    [parked_id] = shop.fails("1", tenant="acme")
    shop.project.write("mended.json", '{"order_id": "from a file"}')

    assert shop.run("replay", parked_id, "--payload", "@mended.json", "--header", "tenant=b=c").exit_code == 0
    shop.work()

    [parked_id] = shop.ids()
    parked = shop.json("show", parked_id)
    assert parked["payload"] == {"order_id": "from a file"}
    assert parked["headers"]["tenant"] == "b=c"
    assert parked["replays"] == 1
    shop.is_mended()
    shop.run("replay", parked_id, "--payload", '{"order_id": "given"}')
    shop.work()
    assert shop.handled() == ["given"]


def test_what_is_refused_is_told_once_for_each_reason_and_the_rest_goes_back(shop: Shop) -> None:
    one, _ = shop.fails("1", "2")

    result = shop.run("replay", one, "nobody", "nothing")

    assert result.exit_code == 1
    assert result.stdout == "replayed 1\n"
    assert result.stderr.count("DeadLetterNotFoundError: ") == 1
    assert "2 were refused" in result.stderr
    told = shop.json("delete", "nobody", "--json")
    assert told == {"deleted": 0, "refused": {"nobody": "no dead letter has the id 'nobody'"}}


def test_a_channel_that_nobody_gave_is_an_error_that_names_the_others(shop: Shop) -> None:
    [parked_id] = shop.fails("1")

    result = shop.run("replay", parked_id, "--to", "nowhere")

    assert result.exit_code == 2
    assert "there is no channel 'nowhere'" in result.stderr
    assert "Tried: mails, others, raw" in result.stderr
    assert shop.ids() == [parked_id]
    assert shop.run("replay", parked_id, "--to", "others").exit_code == 0


# --------------------------------------------------------------------------------------------------------------- delete


def test_dead_letters_are_deleted_by_id_and_by_filter(shop: Shop) -> None:
    one, two, three = shop.fails("1", "2", "3")

    assert shop.run("delete", one).stdout == "deleted 1\n"
    assert shop.run("delete", "--all", "--text", "answer for 3", "--yes").stdout == "deleted 1\n"

    assert shop.ids() == [two]
    assert three not in shop.ids()
    shop.work()
    assert not (shop.project.directory / "handled").exists()


# ------------------------------------------------------------------------------------------------- everything else


def test_bulk_work_shows_how_far_it_is_on_a_terminal(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.fails("1", "2")
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(output, "console", lambda **_: terminal)

    shop.run("replay", "--all", "--yes")

    assert "2/2" in screen.getvalue()


def test_a_dead_letter_in_memory_is_not_that_of_the_running_process(project: Project) -> None:
    project.write("tiny.py", "from ecotone_fastapi import Ecotone\n\necotone = Ecotone([])\n")

    result = project.ecotone("deadletter", "list", "tiny:ecotone")

    assert result.exit_code == 0
    assert "in the memory of its process" in result.stderr


def test_a_database_that_does_not_answer_is_an_error_without_a_traceback(shop: Shop) -> None:
    broken = APPLICATION.replace("sqlite+aiosqlite:///shop.db", "postgresql+asyncpg://nobody@127.0.0.1:1/nowhere")
    shop.project.write("broken.py", broken)

    result = shop.project.ecotone("deadletter", "list", "broken:ecotone")

    assert result.exit_code == 1
    assert "ChannelError: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_database_that_goes_away_tells_how_far_it_came(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from ecotone_fastapi.core.errors import ChannelError
    from ecotone_fastapi.messaging.dead_letter import DeadLetters

    one, two = shop.fails("1", "2")
    replay = DeadLetters.replay

    async def lost(self: DeadLetters, parked_id: str, **edited: Any) -> None:
        if parked_id == two:
            raise ChannelError("gone")
        await replay(self, parked_id, **edited)

    monkeypatch.setattr(DeadLetters, "replay", lost)
    result = shop.run("replay", one, two)

    assert result.exit_code == 1
    assert "replayed 1 of 2\n" in result.stderr
    assert shop.ids() == [two]


def test_it_is_among_the_commands(project: Project) -> None:
    result = project.ecotone("deadletter", "--help")

    assert all(name in result.stdout for name in ("list", "show", "replay", "delete"))
