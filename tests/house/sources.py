"""The sources of the package, read but not imported: what the rules of the house are checked on."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "ecotone_fastapi"


@dataclass(frozen=True)
class Source:
    """One module of the package."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def ring(self) -> str:
        """The part of the package that the module belongs to: core, adapters, app, …"""
        return self.name.split(".")[1] if "." in self.name else ""

    @property
    def is_written(self) -> bool:
        """Whether there is more than a docstring."""
        return any(not isinstance(node, ast.Expr) for node in self.tree.body)

    @property
    def imports(self) -> set[str]:
        """What is imported anywhere in the module, as dotted names; `from a import b` gives `a.b`."""
        names: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        return names


@cache
def sources() -> dict[str, Source]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Source(name, path, ast.parse(path.read_text("utf-8"), str(path)))
    return found
