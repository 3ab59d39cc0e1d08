"""What goes where: answers to the standard output, remarks and errors to the standard error, colours to terminals."""

import json
import os

from rich.console import Console, RenderableType
from rich.text import Text

from ecotone_fastapi.core.errors import ConfigurationError, EcotoneError

_WIDTH_OF_A_FILE = 200


def say(answer: RenderableType = "") -> None:
    """Print a part of the answer."""
    _print(console(), answer)


def say_json(answer: object) -> None:
    """Print the answer for machines: one JSON document, without colours."""
    print(json.dumps(answer, indent=2, ensure_ascii=False, default=str), flush=True)  # noqa: T201


def remark(text: RenderableType) -> None:
    """Tell people something that is no part of the answer."""
    _print(console(stderr=True), text)


def show_error(error: EcotoneError) -> None:
    """Print an error without its traceback: what is wrong, what was tried, what to do."""
    name = "Error" if type(error) is ConfigurationError else type(error).__name__
    remark(Text.assemble((f"{name}: ", "bold red"), str(error)))


def console(*, stderr: bool = False) -> Console:
    """Return the console for a stream as it is now: programs and tests replace streams."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _WIDTH_OF_A_FILE
    return made


def _print(to: Console, what: RenderableType) -> None:
    to.print(what, soft_wrap=isinstance(what, str | Text))
