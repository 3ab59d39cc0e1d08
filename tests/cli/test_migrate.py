"""`ecotone migrate`."""

import json
import sqlite3

import pytest
from sqlalchemy import make_url

from tests.cli.conftest import Project
from tests.cli.processes import run_ecotone


@pytest.fixture
def shop(project: Project) -> Project:
    project.write(
        "shop.py",
        """
        import os

        from ecotone_fastapi import Ecotone, asynchronous, command_handler
        from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy


        @asynchronous("work")
        @command_handler("work")
        async def work(number: int) -> None: ...


        database = SqlAlchemy(os.environ.get("DATABASE", "sqlite+aiosqlite:///shop.db"), name="orders")
        ecotone = Ecotone([work], channels=[database.channel("work")], plugins=[database])
        """,
    )
    return project


def tables(shop: Project) -> set[str]:
    connection = sqlite3.connect(shop.directory / "shop.db")
    try:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    finally:
        connection.close()


def test_it_creates_what_is_missing_and_says_so(shop: Project) -> None:
    result = shop.ecotone("migrate", "shop:ecotone")

    assert result.exit_code == 0
    assert "orders: created the table ecotone_message" in result.stdout
    assert "ecotone_message" in tables(shop)
    assert shop.ecotone("migrate", "shop:ecotone").stdout == "orders: up to date\n"


def test_check_changes_nothing_and_ends_with_1_while_something_is_missing(shop: Project) -> None:
    lacking = shop.ecotone("migrate", "shop:ecotone", "--check")
    assert lacking.exit_code == 1
    assert "orders: lacks the table ecotone_message" in lacking.stdout
    assert tables(shop) == set()

    shop.ecotone("migrate", "shop:ecotone")
    complete = shop.ecotone("migrate", "shop:ecotone", "--check")

    assert complete.exit_code == 0
    assert complete.stdout == "orders: up to date\n"


def test_check_sees_a_table_that_lacks_a_column(shop: Project) -> None:
    shop.ecotone("migrate", "shop:ecotone")
    connection = sqlite3.connect(shop.directory / "shop.db")
    connection.execute("ALTER TABLE ecotone_message DROP COLUMN first_failed_at")
    connection.close()

    result = shop.ecotone("migrate", "shop:ecotone", "--check")

    assert result.exit_code == 1
    assert "orders: lacks the column ecotone_message.first_failed_at" in result.stdout


def test_check_sees_an_older_version(shop: Project) -> None:
    shop.ecotone("migrate", "shop:ecotone")
    connection = sqlite3.connect(shop.directory / "shop.db", isolation_level=None)
    connection.execute("UPDATE ecotone_schema SET version = 0")
    connection.close()

    result = shop.ecotone("migrate", "shop:ecotone", "--check")

    assert result.exit_code == 1
    assert "of the schema, it has 0" in result.stdout


def test_sql_is_printed_without_asking_the_database(shop: Project) -> None:
    result = shop.ecotone(
        "migrate", "shop:ecotone", "--sql", DATABASE="postgresql+asyncpg://nobody@127.0.0.1:1/nowhere"
    )

    assert result.exit_code == 0
    assert "CREATE TABLE ecotone_message" in result.stdout
    assert "fillfactor" in result.stdout


def test_the_printed_sql_creates_everything(shop: Project) -> None:
    sql = shop.ecotone("migrate", "shop:ecotone", "--sql").stdout
    connection = sqlite3.connect(shop.directory / "shop.db")
    connection.executescript(sql)
    connection.close()

    assert shop.ecotone("migrate", "shop:ecotone", "--check").exit_code == 0


def test_json_is_for_machines(shop: Project) -> None:
    missing = json.loads(shop.ecotone("migrate", "shop:ecotone", "--check", "--json").stdout)
    done = json.loads(shop.ecotone("migrate", "shop:ecotone", "--json").stdout)
    again = json.loads(shop.ecotone("migrate", "shop:ecotone", "--json").stdout)

    assert "the table ecotone_message" in missing["missing"]["orders"]
    assert "created the table ecotone_message" in done["done"]["orders"]
    assert again == {"done": {"orders": []}}


def test_options_that_contradict_each_other_are_refused(shop: Project) -> None:
    assert shop.ecotone("migrate", "shop:ecotone", "--sql", "--check").exit_code == 2


def test_sql_is_told_as_json_by_the_name_of_its_database(shop: Project) -> None:
    told = json.loads(shop.ecotone("migrate", "shop:ecotone", "--sql", "--json").stdout)

    assert list(told["sql"]) == ["orders"]
    assert "CREATE TABLE ecotone_message" in told["sql"]["orders"]
    assert tables(shop) == set()


def test_a_database_that_does_not_answer_is_an_error_without_a_traceback(shop: Project) -> None:
    result = shop.ecotone("migrate", "shop:ecotone", DATABASE="postgresql+asyncpg://nobody@127.0.0.1:1/nowhere")

    assert result.exit_code == 1
    assert "ChannelError: " in result.stderr
    assert "127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_a_database_there_is_nothing_to_migrate(project: Project) -> None:
    project.write(
        "tiny.py",
        """
        from ecotone_fastapi import Ecotone, command_handler


        @command_handler("ping")
        async def ping() -> None: ...


        ecotone = Ecotone([ping])
        """,
    )

    result = project.ecotone("migrate", "tiny:ecotone")

    assert result.exit_code == 0
    assert "nothing to migrate" in result.stderr
    assert json.loads(project.ecotone("migrate", "tiny:ecotone", "--check", "--json").stdout) == {"missing": {}}


@pytest.mark.postgresql
def test_it_leaves_no_connection_behind_on_postgresql(shop: Project, postgresql_url: str) -> None:
    environment = {"DATABASE": make_url(postgresql_url).render_as_string(hide_password=False)}

    first = run_ecotone("migrate", "shop:ecotone", cwd=shop.directory, env=environment)
    second = run_ecotone("migrate", "shop:ecotone", "--check", cwd=shop.directory, env=environment)

    assert "created the table ecotone_message" in first.stdout
    assert second.stdout == "orders: up to date\n"
    assert first.stderr == ""
    assert second.stderr == ""
