"""What is written for readers runs: the README, the examples and the examples in docstrings.

The numbered examples are collected by pytest itself, as test files; here is what makes them a tutorial.
"""

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import os
import re
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncSession

import ecotone_fastapi
from ecotone_fastapi import Ecotone, command_handler, query_handler
from ecotone_fastapi.adapters.memory import MemoryChannel
from ecotone_fastapi.adapters.sqlalchemy import SqlAlchemy
from tests.house.sources import ROOT, sources

LONGEST_EXAMPLE = 80

examples = sorted((ROOT / "examples").glob("[0-9][0-9]_*.py"))
documented = [name for name, source in sources().items() if ">>> " in source.path.read_text("utf-8")]


# ------------------------------------------------------------------------------------------------------------ README


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_code_of_the_readme_runs(tmp_path: Path) -> None:
    """A block that begins with the comment `# some/file.py` is that file; any other is a program of its own."""
    files = []
    for number, block in enumerate(blocks("python"), start=1):
        titled = re.match(r"# (\S+\.py)\b", block)
        file = tmp_path / (titled[1] if titled else f"block_{number}.py")
        file.parent.mkdir(parents=True, exist_ok=True)
        # Two blocks of one file are one file shown in two pieces.
        with file.open("a", encoding="utf-8") as target:
            target.write(block)
        files.append(file)
    tests = [file for file in files if file.name.startswith("test_")]
    programs = [file for file in dict.fromkeys(files) if file not in tests]

    for file in programs:
        run_python(tmp_path, "-W", "error", "-c", f"import runpy; runpy.run_path({str(file)!r}, run_name='readme')")
    if tests:
        options = ("-p", "no:cacheprovider", "-o", "anyio_mode=auto", "-q", "--rootdir", str(tmp_path))
        (tmp_path / "conftest.py").write_text(
            "import pytest\n\n\n@pytest.fixture(scope='session')\ndef anyio_backend():\n    return 'asyncio'\n"
        )
        run_python(tmp_path, "-m", "pytest", *options, *map(str, dict.fromkeys(tests)))


def run_python(directory: Path, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_readme_names_only_files_that_are_there() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)

    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_readme_names_only_commands_that_are_there() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    tasks = set(
        re.findall(r"^\[tool\.poe\.tasks\.(\w+)\]$", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    )

    assert tasks
    assert set(re.findall(r"\bpoe (?:--?\w+ )*(\w+)", text)) <= tasks


# ---------------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("example", examples, ids=lambda path: path.stem)
def test_an_example_is_short_tested_and_found_from_the_readme(example: Path) -> None:
    text = example.read_text("utf-8")
    tree = ast.parse(text)

    assert ast.get_docstring(tree)
    assert len(text.splitlines()) <= LONGEST_EXAMPLE
    last = tree.body[-1]
    assert isinstance(last, ast.AsyncFunctionDef), "an example ends with its flow test"
    assert last.name.startswith("test_"), "an example ends with its flow test"
    assert f"examples/{example.name}" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("example", examples, ids=lambda path: path.stem)
def test_an_example_is_a_program_that_shows_something(example: Path, tmp_path: Path) -> None:
    assert run_python(tmp_path, "-W", "error", str(example))


def test_the_examples_are_numbered_without_a_gap() -> None:
    assert [int(example.name[:2]) for example in examples] == list(range(1, len(examples) + 1))


# -------------------------------------------------------------------------------------------------------- docstrings


@pytest.mark.parametrize("name", documented)
async def test_the_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    found = [test for test in doctest.DocTestFinder().find(module) if test.examples]

    assert found, f"{name} has examples that nobody finds"
    async with a_shop() as shop:
        for test in found:
            await run_with_await(test, shop)


@asynccontextmanager
async def a_shop() -> AsyncIterator[dict[str, Any]]:
    """The names that an example may use without a word, because its reader knows them."""

    @dataclass(frozen=True)
    class PlaceOrder:
        order_id: str

    @dataclass(frozen=True)
    class OrderWasPlaced:
        order_id: str

    class Orders:
        @command_handler
        async def place(self, command: PlaceOrder) -> None: ...

        @query_handler("order.get_status")
        async def get_status(self, order_id: str) -> str:
            return "placed"

    async with Ecotone([Orders]).running() as ecotone:
        yield {
            **{name: getattr(ecotone_fastapi, name) for name in ecotone_fastapi.__all__},
            **{one.__name__: one for one in (MemoryChannel, SqlAlchemy, AsyncSession, Depends)},
            **{one.__name__: one for one in (PlaceOrder, OrderWasPlaced)},
            "Annotated": Annotated,
            "commands": ecotone.command_bus,
            "queries": ecotone.query_bus,
            "events": ecotone.event_bus,
            "database": SqlAlchemy("sqlite+aiosqlite:///shop.db"),
        }


async def run_with_await(test: doctest.DocTest, known: dict[str, Any]) -> None:
    """Run one docstring as doctest does, but let its examples await."""
    checker, options = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    names: dict[str, Any] = {**known, **test.globs}
    for example in test.examples:
        if example.options.get(doctest.SKIP):
            continue
        place = f"{test.name}, line {(test.lineno or 0) + example.lineno + 1}"
        code = compile(example.source, f"<{place}>", "single", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        output = io.StringIO()
        raised = ""
        with contextlib.redirect_stdout(output):
            try:
                result = eval(code, names)
                if inspect.iscoroutine(result):
                    await result
            except Exception as error:
                if example.exc_msg is None:
                    raise AssertionError(f"{place}: {example.source}") from error
                raised = traceback.format_exception_only(error)[-1]
        if example.exc_msg is not None:
            assert raised, f"{place}: nothing was raised"
            # An exception is shown with its module by Python and without it by people.
            assert raised.rpartition(".")[2].strip().endswith(example.exc_msg.rpartition(".")[2].strip()), place
        else:
            assert checker.check_output(example.want, output.getvalue(), options), (
                f"{place}: {example.source}expected {example.want!r}, got {output.getvalue()!r}"
            )
