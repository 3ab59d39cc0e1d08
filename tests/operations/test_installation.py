"""Versions of Python and of packages are compared with what our own metadata say."""

import importlib.metadata
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecotone_fastapi.core.examination import Finding, Level, version_numbers
from ecotone_fastapi.operations.installation import Requirement, examine_installation


class Version(NamedTuple):
    major: int
    minor: int
    micro: int


def by_place(findings: list[Finding]) -> dict[str, Finding]:
    return {one.where: one for one in findings}


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | None], None]:
    """Lets a package seem to be installed in another version, or not at all."""
    real = importlib.metadata.version

    def pretend(package: str, version: str | None) -> None:
        def told(name: str) -> str:
            if name != package:
                return real(name)
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "version", told)

    return pretend


def test_what_is_installed_here_fits() -> None:
    findings = by_place(list(examine_installation()))

    assert {one.level for one in findings.values()} == {Level.OK}
    assert "pydantic 2." in findings["packages"].what
    assert findings["packages"].what.count("asyncpg") == 1
    assert findings["ecotone-fastapi"].what == f"{importlib.metadata.version('ecotone-fastapi')} is installed"


def test_a_package_that_is_too_old_is_a_problem(versions: Callable[[str, str | None], None]) -> None:
    versions("pydantic", "2.6.4")

    finding = by_place(list(examine_installation()))["pydantic"]

    assert (finding.level, finding.what) == (Level.PROBLEM, "2.6.4 is installed, and >=2.7 is needed")
    assert 'pip install "pydantic>=2.7"' in finding.hint


def test_a_driver_that_is_too_old_is_a_problem_and_one_that_is_absent_is_none(
    versions: Callable[[str, str | None], None],
) -> None:
    versions("asyncpg", "0.28.0")
    assert by_place(list(examine_installation()))["asyncpg"].level is Level.PROBLEM

    versions("asyncpg", None)
    findings = by_place(list(examine_installation()))
    assert "asyncpg" not in findings
    assert "asyncpg" not in findings["packages"].what


def test_a_package_that_is_absent_is_a_problem(versions: Callable[[str, str | None], None]) -> None:
    versions("uvicorn", None)

    finding = by_place(list(examine_installation()))["uvicorn"]

    assert finding.level is Level.PROBLEM
    assert finding.what.startswith("is not installed")


@pytest.mark.parametrize(
    ("version", "level"),
    [(Version(3, 10, 14), Level.PROBLEM), (Version(3, 11, 0), Level.OK), (Version(3, 99, 0), Level.WARNING)],
)
def test_python_is_one_that_was_tested(monkeypatch: pytest.MonkeyPatch, version: Version, level: Level) -> None:
    monkeypatch.setattr(sys, "version_info", version)

    finding = by_place(list(examine_installation()))["Python"]

    assert finding.level is level
    assert f"{version.major}.{version.minor}.{version.micro}" in finding.what


def test_a_checkout_that_was_never_installed_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(name: str) -> importlib.metadata.PackageMetadata:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", told)

    (finding,) = examine_installation()

    assert finding.level is Level.WARNING


@pytest.mark.parametrize(
    ("requirement", "fitting", "others"),
    [
        ("fastapi>=0.115", ["0.115.0", "0.115", "1.0", "0.115.0rc1"], ["0.114.9", "0.9"]),
        ("sqlalchemy[asyncio]>=2.0.40", ["2.0.40", "2.1.0b1"], ["2.0.4", "1.4"]),
        ("some<3,>=2", ["2", "2.9.9"], ["3.0", "1.9"]),
        ("some~=2.7.1", ["2.7.1", "2.7.9"], ["2.8", "2.7"]),
        ("some~=2.7", ["2.7", "2.8"], ["3.0"]),
        ("some==2.*", ["2.5"], ["3.0"]),
        ("some==2.0", ["2", "2.0.0"], ["2.0.1"]),
        ("some!=2.7.*", ["2.6"], ["2.7.3"]),
        ("some!=2.7", ["2.7.3"], ["2.7.0"]),
        ("some<=2", ["2.0"], ["2.1"]),
        ("some>2", ["2.1"], ["2.0"]),
        ("some", ["0.0.1"], []),
    ],
)
def test_requirements_are_read_as_packages_write_them(requirement: str, fitting: list[str], others: list[str]) -> None:
    wanted = Requirement.parse(requirement)

    assert [one for one in fitting if not wanted.is_met_by(one)] == []
    assert [one for one in others if wanted.is_met_by(one)] == []


def test_a_requirement_of_an_extra_is_optional() -> None:
    assert Requirement.parse('asyncpg>=0.29; extra == "postgresql"').optional
    assert not Requirement.parse('tomli>=2; python_version < "3.11"').optional


@given(st.text())
def test_any_text_has_numbers_or_none(text: str) -> None:
    assert all(isinstance(one, int) for one in version_numbers(text))
