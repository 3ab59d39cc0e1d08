"""The names of the semantic conventions are those of the version that they are said to be of."""

import importlib
import pkgutil
from typing import Any

import pytest
from opentelemetry.semconv import _incubating, attributes
from opentelemetry.semconv._incubating.attributes.messaging_attributes import MessagingOperationTypeValues
from opentelemetry.semconv.attributes.error_attributes import ErrorTypeValues
from opentelemetry.semconv.schemas import Schemas

from ecotone_fastapi.adapters.opentelemetry import conventions

OURS = "ecotone"
NAMES = {name: value for name, value in vars(conventions).items() if name.isupper()}
TYPES = {"CREATE", "SEND", "RECEIVE", "PROCESS", "SETTLE"}


def known() -> set[Any]:
    """All names of attributes and metrics that the package of the conventions has."""
    found: set[Any] = set()
    for package in (attributes, _incubating.attributes, _incubating.metrics):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            constants = vars(importlib.import_module(module.name))
            found |= {value for name, value in constants.items() if name.isupper() and isinstance(value, str)}
    return found


@pytest.fixture(scope="module")
def conventional() -> set[Any]:
    for name in ("attributes", "metrics"):
        importlib.import_module(f"{_incubating.__name__}.{name}")
    return known()


@pytest.mark.parametrize(
    "name", [name for name, value in NAMES.items() if isinstance(value, str) and "." in value and "://" not in value]
)
def test_a_name_is_conventional_or_begins_with_our_own(name: str, conventional: set[Any]) -> None:
    value = NAMES[name]

    assert name == "SEMCONV_VERSION" or value.startswith(f"{OURS}.") or value in conventional


@pytest.mark.parametrize("name", sorted(TYPES))
def test_a_type_of_operation_is_conventional(name: str) -> None:
    assert NAMES[name] in {value.value for value in MessagingOperationTypeValues}


def test_the_version_is_one_of_the_schemas() -> None:
    assert conventions.SCHEMA_URL in {schema.value for schema in Schemas}
    assert conventions.SCHEMA_URL.endswith(conventions.SEMCONV_VERSION)


def test_an_error_without_a_type_is_called_as_agreed() -> None:
    assert ErrorTypeValues.OTHER.value == conventions.ERROR_OTHER
