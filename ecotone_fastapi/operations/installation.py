"""Whether what is installed is what the package says that it needs: Python, and its dependencies.

>>> Requirement.parse("fastapi>=0.115").is_met_by("0.99.1")
False
"""

import importlib.metadata
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from ecotone_fastapi.core.examination import Finding, Level, version_numbers

_PACKAGE = "ecotone-fastapi"
_TOPIC = "versions"
# `asyncpg>=0.29; extra == "postgresql"`, as the metadata of our own package have it.
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;\s*(.*))?")
_BOUND = re.compile(r"(>=|<=|==|!=|~=|<|>)\s*([0-9][0-9A-Za-z.*+!-]*)")
_PYTHON_TESTED = re.compile(r"Programming Language :: Python :: (\d+\.\d+)")


@dataclass(frozen=True)
class Requirement:
    """What a package has to be.

    Args:
        package: Its name.
        bounds: The versions that fit, as `>=` and `2.7`.
        optional: Whether it is needed for an extra only.
    """

    package: str
    bounds: tuple[tuple[str, str], ...]
    optional: bool = False

    @classmethod
    def parse(cls, text: str) -> "Requirement":
        """Read a requirement as metadata have it."""
        found = _REQUIREMENT.match(text.strip())
        assert found is not None, text
        name, bounds, marker = found.groups()
        return cls(name, tuple(_BOUND.findall(bounds)), marker is not None and "extra" in marker)

    def is_met_by(self, version: str) -> bool:
        """Whether a version fits."""
        return all(_fits(version, operator, bound) for operator, bound in self.bounds)

    def __str__(self) -> str:
        return ", ".join(f"{operator}{bound}" for operator, bound in self.bounds) or "any version"


def _fits(version: str, operator: str, bound: str) -> bool:
    have, wanted = version_numbers(version), version_numbers(bound)
    width = max(len(have), len(wanted))
    # Without a number behind it, 2.7 is 2.7.0; behind a `*` nothing counts.
    prefix = have[: len(wanted)] == wanted
    left, right = (one + (0,) * (width - len(one)) for one in (have, wanted))
    match operator:
        case ">=":
            return left >= right
        case "<=":
            return left <= right
        case ">":
            return left > right
        case "<":
            return left < right
        case "~=":
            return left >= right and have[: len(wanted) - 1] == wanted[:-1]
        case "!=":
            return not (prefix if bound.endswith("*") else left == right)
        case _:
            return prefix if bound.endswith("*") else left == right


def examine_installation() -> Iterator[Finding]:
    """Find out whether Python and all packages that are needed have versions that are supported."""
    try:
        metadata = importlib.metadata.metadata(_PACKAGE)
        requirements = [Requirement.parse(one) for one in importlib.metadata.requires(_PACKAGE) or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            Level.WARNING,
            _TOPIC,
            _PACKAGE,
            "is not installed, but imported from a directory: what it needs cannot be told",
            "install it: pip install .",
        )
        return
    yield Finding(Level.OK, _TOPIC, _PACKAGE, f"{metadata['Version']} is installed")
    python = Requirement("Python", tuple(_BOUND.findall(", ".join(metadata.get_all("Requires-Python") or ()))))
    classifiers = metadata.get_all("Classifier") or ()
    yield _examine_python(python, [found[1] for one in classifiers if (found := _PYTHON_TESTED.fullmatch(one))])
    fitting = []
    for requirement in requirements:
        if requirement.package.lower().replace("_", "-") == _PACKAGE:
            continue  # an extra that consists of others
        finding = _examine_package(requirement)
        if finding is None:
            fitting.append(f"{requirement.package} {importlib.metadata.version(requirement.package)}")
        elif finding.level is not Level.OK:
            yield finding
    yield Finding(Level.OK, _TOPIC, "packages", ", ".join(dict.fromkeys(fitting)) or "none is needed")


def _examine_python(wanted: Requirement, tested: list[str]) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if not wanted.is_met_by(version):
        return Finding(
            Level.PROBLEM, _TOPIC, "Python", f"{version} is running, and {wanted} is needed", "use another Python"
        )
    newest = max(tested, key=version_numbers, default=version)
    if version_numbers(version)[:2] > version_numbers(newest):
        return Finding(
            Level.WARNING, _TOPIC, "Python", f"{version} is running, and {newest} is the newest that was tested"
        )
    return Finding(Level.OK, _TOPIC, "Python", version)


def _examine_package(requirement: Requirement) -> Finding | None:
    """Return what is wrong with a package; `None` when it fits, and a finding that is fine when nobody wants it."""
    try:
        version = importlib.metadata.version(requirement.package)
    except importlib.metadata.PackageNotFoundError:
        if requirement.optional:
            return Finding(Level.OK, _TOPIC, requirement.package, "is not installed, and not needed")
        return Finding(
            Level.PROBLEM,
            _TOPIC,
            requirement.package,
            f"is not installed, and {requirement} is needed",
            f'install it: pip install "{requirement.package}{str(requirement).replace(" ", "")}"',
        )
    if requirement.is_met_by(version):
        return None
    return Finding(
        Level.PROBLEM,
        _TOPIC,
        requirement.package,
        f"{version} is installed, and {requirement} is needed",
        f'install another one: pip install "{requirement.package}{str(requirement).replace(" ", "")}"',
    )
