"""Diagrams as text of Mermaid: read by Mermaid itself, drawn by a browser, and checked by a grammar of our own."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecotone_fastapi.operations.diagram import Diagram, Edge, EdgeKind, Node, NodeKind
from ecotone_fastapi.operations.mermaid import LONGEST_LABEL, escaped, flowchart
from tests.operations.mermaid_js import MermaidJs, drawn, installed

SHAPES = {
    "command": "lean_right", "query": "lean_left", "event": "stadium", "internal": "odd", "channel": "subroutine",
    "handler": "square", "aggregate": "hexagon", "projection": "cylinder",
}  # fmt: skip

# What has been taken for something else than text by one version of Mermaid or another.
NASTY = [
    'say "hello"',
    "a#b",
    "a#quot;b",
    "a&amp;b",
    "<script>alert(1)</script>",
    "<b>bold</b>",
    "a|b",
    "[x]",
    "{x}",
    "(x)",
    "x]] --> y",
    'x"] --> y["',
    "`code`",
    "**bold**",
    "_private_",
    "__init__",
    "~~gone~~",
    "1. first",
    "- item",
    "+ item",
    "# title",
    "> said",
    "    code",
    "%% comment",
    "%%{init: {}}%%",
    "end",
    "subgraph",
    "style x:#fff;",
    "classDef a:#b;",
    "click a",
    "graph",
    "a;b",
    "a\nb",
    "a\\nb",
    "tab\there",
    "www.example.org",
    "http://example.org/?a=b#c",
    "me@example.org",
    "fa:fa-car",
    "x@{ shape: rect }",
    "a:::b",
    "$$x^2$$",
    "O'Reilly",
    "Größe",
    "注文",
    "🙂",
    "ﬂ°°35¶ß",
    "",
    " ",
    "-",
    ".",
    "...",
    "x-->y",
    "x --- y",
    "order.*",
    "dict[str, list[int]]",
    "a.b.c_d-e",
    "2024.",
    "2024. x",
    "===",
    "---",
    "\x00\x1b[31m",
]


def chart(*labels: str) -> Diagram:
    """A diagram with a node of each kind for each label, and edges with these labels."""
    nodes = [Node(f"{kind}:{number}", kind, label, "") for number, label in enumerate(labels) for kind in NodeKind]
    edges = [Edge(nodes[0].id, nodes[number + 1].id, EdgeKind.DELIVERS, label) for number, label in enumerate(labels)]
    return Diagram(tuple(nodes), tuple(edges))


def shown(label: str) -> str:
    """What people see of a label: lines and tabs are blanks, and what is too long is cut."""
    text = " ".join(label.split()) or "(no name)"
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1].rstrip() + "…"


# ------------------------------------------------------------------------------------------------ a grammar of our own

LABEL = r'"(?:[^\W_]|[ (),/]|(?<=[^\W_])[._-](?=[^\W_])|#\d+;)+"'
BRACKETS = [
    (r"\[/", r"/\]"), (r"\[\\", r"\\\]"), (r"\(\[", r"\]\)"), (">", r"\]"), (r"\[\[", r"\]\]"), (r"\[", r"\]"),
    (r"\{\{", r"\}\}"), (r"\[\(", r"\)\]"),
]  # fmt: skip
KINDS = "|".join(NodeKind)
SENTENCES = [
    rf"  classDef ({KINDS}) fill:#[0-9a-f]{{6}},stroke:#[0-9a-f]{{6}},color:#[0-9a-f]{{6}}",
    *(rf"  n\d+{left}{LABEL}{right}:::({KINDS})" for left, right in BRACKETS),
    rf"  n\d+ (-->|-\.->)(\|{LABEL}\|)? n\d+",
]


def check_grammar(text: str) -> None:
    first, *others = text.removesuffix("\n").split("\n")
    assert first == "flowchart LR"
    for line in others:
        assert any(re.fullmatch(sentence, line) for sentence in SENTENCES), line


@given(st.lists(st.text(), max_size=5))
def test_any_label_fits_the_grammar(labels: list[str]) -> None:
    check_grammar(flowchart(chart(*labels)))


@given(st.text())
def test_a_label_can_be_told_from_what_was_made_of_it(label: str) -> None:
    assert re.sub(r"#(\d+);", lambda found: chr(int(found[1])), escaped(label)) == shown(label)


@pytest.mark.parametrize("label", NASTY)
def test_what_looks_like_something_else_fits_the_grammar(label: str) -> None:
    check_grammar(flowchart(chart(label)))


def test_names_of_python_stay_legible() -> None:
    assert escaped("OrderService.place_order") == "OrderService.place_order"
    assert escaped("outbox/order-mails") == "outbox/order-mails"


def test_a_label_that_is_too_long_is_cut_with_a_mark() -> None:
    assert escaped("x" * (LONGEST_LABEL + 1)) == "x" * (LONGEST_LABEL - 1) + "#8230;"
    assert escaped("x" * LONGEST_LABEL) == "x" * LONGEST_LABEL


def test_the_text_of_a_diagram_is_always_the_same() -> None:
    diagram = Diagram(
        (
            Node("event:a", NodeKind.EVENT, "OrderWasPlaced", ""),
            Node("handler:b", NodeKind.HANDLER, "Order.place", ""),
        ),
        (Edge("event:a", "handler:b", EdgeKind.ROUTES), Edge("handler:b", "event:a", EdgeKind.PUBLISHES)),
    )

    assert flowchart(diagram) == (
        "flowchart LR\n"
        "  classDef event fill:#ffedd5,stroke:#ea580c,color:#111827\n"
        "  classDef handler fill:#ffffff,stroke:#374151,color:#111827\n"
        '  n1(["OrderWasPlaced"]):::event\n'
        '  n2["Order.place"]:::handler\n'
        "  n1 --> n2\n"
        '  n2 -.->|"publishes"| n1\n'
    )


# -------------------------------------------------------------------------------------------------------- the real one


@pytest.fixture(scope="module")
def mermaid() -> Iterator[MermaidJs]:
    program = MermaidJs(installed())
    yield program
    program.close()


def test_mermaid_reads_every_node_and_every_edge(mermaid: MermaidJs) -> None:
    diagram = chart(*NASTY)

    read = mermaid.read(flowchart(diagram))

    numbers = {node.id: f"n{number}" for number, node in enumerate(diagram.nodes, start=1)}
    assert read.nodes == [(numbers[one.id], shown(one.label), SHAPES[one.kind], one.kind) for one in diagram.nodes]
    assert read.edges == [
        # An edge with a label that is empty has none.
        (numbers[one.source], numbers[one.target], shown(one.label) if one.label else "", "normal")
        for one in diagram.edges
    ]


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_mermaid_reads_any_label(mermaid: MermaidJs, labels: list[str]) -> None:
    read = mermaid.read(flowchart(chart(*labels)))

    assert [label for _, label, _, _ in read.nodes] == [shown(label) for label in labels for _ in NodeKind]


def test_mermaid_reads_a_diagram_without_anything(mermaid: MermaidJs) -> None:
    read = mermaid.read(flowchart(Diagram((), ())))

    assert (read.nodes, read.edges) == ([], [])


@pytest.mark.parametrize("kind", EdgeKind)
def test_mermaid_reads_what_an_edge_says(mermaid: MermaidJs, kind: EdgeKind) -> None:
    nodes = (Node("a", NodeKind.HANDLER, "a", ""), Node("b", NodeKind.AGGREGATE, "b", ""))

    ((start, end, label, stroke),) = mermaid.read(flowchart(Diagram(nodes, (Edge("a", "b", kind),)))).edges

    assert (start, end) == ("n1", "n2")
    assert label == ("" if kind in (EdgeKind.ROUTES, EdgeKind.DELIVERS) else kind)
    assert stroke == ("dotted" if kind in (EdgeKind.PUBLISHES, EdgeKind.RECORDS) else "normal")


def test_a_browser_draws_every_label_as_it_is(mermaid: MermaidJs, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no chromium")
    # Nobody can keep it from making icons and from reading what is its own form of characters.
    labels = [label for label in NASTY if label.isprintable() and not label.startswith(("fa:", "ﬂ"))]
    diagram = Diagram(
        tuple(Node(f"handler:{number}", NodeKind.HANDLER, label, "") for number, label in enumerate(labels)), ()
    )

    (seen,) = drawn(mermaid.home, browser, [flowchart(diagram)], tmp_path)

    assert [one.strip() for one in seen] == [shown(label) for label in labels]
