"""The direction of imports, and the words that name nothing."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.house.sources import PACKAGE, ROOT, Source, sources

WORDS_THAT_NAME_NOTHING = {
    "abstract", "base", "common", "helper", "helpers", "impl", "manager", "misc", "util", "utils",
}  # fmt: skip
NAMES_THAT_SAY_HOW = {"handler_factory", "registry_builder"}

each_source = pytest.mark.parametrize("source", sources().values(), ids=sources().keys())


def test_the_package_is_found() -> None:
    assert {PACKAGE, f"{PACKAGE}.testing"} <= sources().keys()


def test_the_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")

    run = subprocess.run([lint, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert run.returncode == 0, run.stdout + run.stderr


def test_the_largest_import_circle_is_one() -> None:
    graph = {
        name: {module for text in source.imports if (module := inside(text))} for name, source in sources().items()
    }

    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail("imports go round in a circle: " + " -> ".join(reversed(error.args[1])))
    assert set(order) == sources().keys()


def inside(dotted: str) -> str | None:
    """The module of ours that a dotted name stands for: the module itself, or the one that the name lives in."""
    return next((name for name in (dotted, dotted.rpartition(".")[0]) if name in sources()), None)


@each_source
def test_no_import_is_for_types_only(source: Source) -> None:
    assert "TYPE_CHECKING" not in {
        name
        for node in ast.walk(source.tree)
        for name in (getattr(node, "id", None), getattr(node, "attr", None), getattr(node, "name", None))
    }


@each_source
def test_no_import_hides_in_a_function(source: Source) -> None:
    hidden = [
        node.lineno
        for function in ast.walk(source.tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]

    assert source.ring == "adapters" or not hidden, f"{source.path}: lines {hidden}"


@each_source
def test_the_core_stands_on_anyio_and_pydantic_alone(source: Source) -> None:
    if source.ring != "core":
        return

    foreign = {name.partition(".")[0] for name in source.imports} - sys.stdlib_module_names

    assert foreign <= {"anyio", "pydantic", "pydantic_core", PACKAGE}


@each_source
def test_every_file_and_class_has_a_name_that_says_something(source: Source) -> None:
    classes = [node.name for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)]

    for name in (source.name.rpartition(".")[2], *classes):
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        assert not set(snake.split("_")) & WORDS_THAT_NAME_NOTHING, name
        assert snake not in NAMES_THAT_SAY_HOW, name
        assert not snake.endswith("service"), f"{name}: a service is the user's"
        assert not re.match(r"I[A-Z][a-z]", name), f"{name}: an interface is named like any other type"
