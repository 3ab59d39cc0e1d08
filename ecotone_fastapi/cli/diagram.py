"""`ecotone diagram`: the flow of messages, as text of Mermaid or as JSON."""

from dataclasses import asdict
from typing import Annotated

import typer

from ecotone_fastapi.cli.application import AppArgument, FactoryOption, JsonOption, address_of, load
from ecotone_fastapi.cli.output import remark, say, say_json
from ecotone_fastapi.operations.diagram import diagram_of
from ecotone_fastapi.operations.excerpt import excerpt
from ecotone_fastapi.operations.mermaid import flowchart

# What programs that draw Mermaid take unless they are configured otherwise.
_MOST_EDGES, _LONGEST_TEXT = 500, 50_000


def diagram(
    app: AppArgument = None,
    *,
    factory: FactoryOption = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="NAME",
            help="Only what leads to this message, handler, channel, aggregate or projection, and what comes of it; "
            "repeatable.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Draw which messages reach which handlers, through which channels, and what comes of them: text of Mermaid."""
    drawn = diagram_of(load(address_of(app, factory=factory), quiet=True).assembly)
    if only:
        drawn = excerpt(drawn, only)
    text = flowchart(drawn)
    if json:
        say_json({"mermaid": text, **asdict(drawn)})
        return
    say(text.removesuffix("\n"))
    if len(drawn.edges) > _MOST_EDGES or len(text) > _LONGEST_TEXT:
        remark("this is more than Mermaid draws by default: raise its maxEdges and maxTextSize, or take a part: --only")
