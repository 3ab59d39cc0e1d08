"""A diagram as text of Mermaid, which GitHub, GitLab and many editors draw.

>>> escaped('the "first" order')
'the #34;first#34; order'
"""

import re

from ecotone_fastapi.operations.diagram import Diagram, EdgeKind, NodeKind

LONGEST_LABEL = 120  # characters; what is cut ends with a mark

# Brackets tell a shape, and quotes let any text stand between them.
_SHAPES = {
    NodeKind.COMMAND: '[/"{}"/]',
    NodeKind.QUERY: r'[\"{}"\]',
    NodeKind.EVENT: '(["{}"])',
    NodeKind.INTERNAL: '>"{}"]',
    NodeKind.CHANNEL: '[["{}"]]',
    NodeKind.HANDLER: '["{}"]',
    NodeKind.AGGREGATE: '{{{{"{}"}}}}',
    NodeKind.PROJECTION: '[("{}")]',
}
# Fill, border and text are told together, so that each is legible on a light page and on a dark one.
_COLOURS = {
    NodeKind.COMMAND: "fill:#dbeafe,stroke:#2563eb,color:#111827",
    NodeKind.QUERY: "fill:#dcfce7,stroke:#16a34a,color:#111827",
    NodeKind.EVENT: "fill:#ffedd5,stroke:#ea580c,color:#111827",
    NodeKind.INTERNAL: "fill:#f3f4f6,stroke:#6b7280,color:#111827",
    NodeKind.CHANNEL: "fill:#ede9fe,stroke:#7c3aed,color:#111827",
    NodeKind.HANDLER: "fill:#ffffff,stroke:#374151,color:#111827",
    NodeKind.AGGREGATE: "fill:#fef9c3,stroke:#ca8a04,color:#111827",
    NodeKind.PROJECTION: "fill:#ccfbf1,stroke:#0d9488,color:#111827",
}
_ARROWS = {EdgeKind.PUBLISHES: "-.->", EdgeKind.RECORDS: "-.->"}
_UNTOLD = (EdgeKind.ROUTES, EdgeKind.DELIVERS)  # an arrow without a word says as much

# Of these, none can be taken for markup where letters or digits stand on both sides.
_WITHIN_WORDS = re.compile(r"(?<=[^\W_])[._-](?=[^\W_])")
_WEB_ADDRESS = re.compile("www[.]", re.IGNORECASE)


def flowchart(diagram: Diagram) -> str:
    """Return a diagram as a flow chart from left to right, the same text for the same diagram."""
    lines = ["flowchart LR"]
    names = {node.id: f"n{number}" for number, node in enumerate(diagram.nodes, start=1)}
    used = {node.kind for node in diagram.nodes}
    lines += [f"  classDef {kind} {_COLOURS[kind]}" for kind in NodeKind if kind in used]
    lines += [
        f"  {names[node.id]}{_SHAPES[node.kind].format(escaped(node.label))}:::{node.kind}" for node in diagram.nodes
    ]
    for edge in diagram.edges:
        label = edge.label if edge.kind in _UNTOLD else str(edge.kind)
        arrow = _ARROWS.get(edge.kind, "-->") + (f'|"{escaped(label)}"|' if label else "")
        lines.append(f"  {names[edge.source]} {arrow} {names[edge.target]}")
    return "\n".join(lines) + "\n"


def escaped(label: str) -> str:
    """Return a label in which Mermaid finds nothing but text: no quotes, markup, comments, directives or icons."""
    text = " ".join(label.split()) or "(no name)"
    if len(text) > LONGEST_LABEL:
        text = text[: LONGEST_LABEL - 1].rstrip() + "…"
    kept = set() if _WEB_ADDRESS.search(text) else {found.start() for found in _WITHIN_WORDS.finditer(text)}
    return "".join(
        one if one.isalnum() or one in " (),/" or place in kept else f"#{ord(one)};" for place, one in enumerate(text)
    )
