"""Where an application that is operated keeps its messages."""

import pytest


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database, of one kind after the other."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest) -> str | None:
    """The URL of an empty database; `None` for the memory of the process."""
    return None if request.param == "memory" else request.getfixturevalue(f"{request.param}_url")
