"""`ecotone asyncapi`: the AsyncAPI document of an application, for generators, portals and people."""

import json as json_
from pathlib import Path
from typing import Annotated

import typer

from ecotone_fastapi.cli.application import AppArgument, FactoryOption, JsonOption, address_of, load
from ecotone_fastapi.cli.output import remark, say_json
from ecotone_fastapi.core.errors import ConfigurationError


def asyncapi(
    app: AppArgument = None,
    *,
    factory: FactoryOption = False,
    title: Annotated[
        str | None,
        typer.Option("--title", help="The name of the application; else that of the FastAPI application it serves."),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option("--version", help="Its version; else that of the FastAPI application it serves."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it to a file instead.", dir_okay=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print the AsyncAPI 3 document of all channels and of the messages that go through them, as JSON."""
    document = load(address_of(app, factory=factory), quiet=True).asyncapi(title=title, version=version)
    if output is None:
        say_json(document)
        return
    try:
        output.write_text(json_.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror}") from error
    found = {"channels": document["channels"], "messages": document["components"]["messages"]}
    counts = {name: len(all_) for name, all_ in found.items()}
    if json:
        say_json({"output": str(output), **counts})
    else:
        remark(f"{output}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
