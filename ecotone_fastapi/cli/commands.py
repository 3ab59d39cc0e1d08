"""All commands together, and what becomes of errors."""

import importlib.metadata
from itertools import takewhile
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ecotone_fastapi.cli.asyncapi import asyncapi
from ecotone_fastapi.cli.deadletter import deadletter
from ecotone_fastapi.cli.diagram import diagram
from ecotone_fastapi.cli.doctor import doctor
from ecotone_fastapi.cli.explain import explain
from ecotone_fastapi.cli.list import list_
from ecotone_fastapi.cli.migrate import migrate
from ecotone_fastapi.cli.output import error_told, is_for_machines, say, say_json, show_error
from ecotone_fastapi.cli.pause import pause, resume
from ecotone_fastapi.cli.projection import projection
from ecotone_fastapi.cli.run import run
from ecotone_fastapi.cli.scheduled import scheduled
from ecotone_fastapi.cli.status import status
from ecotone_fastapi.core.errors import ConfigurationError, EcotoneError


class ReportingGroup(TyperGroup):
    """Shows errors of ours as people read them, and ends with 2 when the caller can mend them, else with 1."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what stands before the name of the command."""
        ctx.meta[_FOR_MACHINES] = "--json" in takewhile(lambda one: one != "--", args)
        try:
            return super().parse_args(ctx, args)
        except typer.Exit:
            raise
        except Exception as error:
            _tell_machines(ctx, error, getattr(error, "exit_code", 1))
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except EcotoneError as error:
            code = 2 if isinstance(error, ConfigurationError) else 1
            show_error(error)
            _tell_machines(ctx, error, code)
            raise typer.Exit(code) from None
        except typer.Exit:
            raise
        except KeyboardInterrupt as error:
            _tell_machines(ctx, error, _INTERRUPTED)
            raise
        except Exception as error:
            # Whoever calls this wants one document, whatever happens; people get the traceback.
            _tell_machines(ctx, error, getattr(error, "exit_code", 1))
            raise


_FOR_MACHINES = "ecotone_fastapi.cli.for_machines"
_INTERRUPTED = 130  # what shells take for a process that Ctrl+C has ended


def _tell_machines(context: Any, error: BaseException, code: int) -> None:
    # What is wrong with the options is found before --json itself is read.
    if is_for_machines() or context.meta[_FOR_MACHINES]:
        say_json(error_told(error, code))


commands: typer.Typer = typer.Typer(
    name="ecotone",
    cls=ReportingGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
"""The command line as a Typer application, for programs that put it under commands of their own."""


def _version(*, wanted: bool) -> None:
    if wanted:
        say(importlib.metadata.version("ecotone-fastapi"))
        raise typer.Exit


@commands.callback(
    epilog="The application is named on the command line, by ECOTONE_APP, or by app in the table tool.ecotone of the "
    "pyproject.toml in this directory."
)
def _ecotone(
    version: Annotated[
        bool, typer.Option("--version", callback=lambda value: _version(wanted=value), is_eager=True, help="Say which.")
    ] = False,
) -> None:
    """Run, watch, explain, examine and migrate an Ecotone application."""


commands.command("run")(run)
commands.command("list")(list_)
commands.command("status")(status)
commands.command("explain")(explain)
commands.command("diagram")(diagram)
commands.command("asyncapi")(asyncapi)
commands.command("doctor")(doctor)
commands.command("migrate")(migrate)
commands.command("pause")(pause)
commands.command("resume")(resume)
commands.add_typer(deadletter, name="deadletter")
commands.add_typer(scheduled, name="scheduled")
commands.add_typer(projection, name="projection")


def main() -> None:
    """Be the console script `ecotone`."""
    commands()
