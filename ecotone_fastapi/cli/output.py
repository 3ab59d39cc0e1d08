"""What goes where: answers to the standard output, remarks and errors to the standard error, colours to terminals."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from ecotone_fastapi.core.errors import ConfigurationError, EcotoneError
from ecotone_fastapi.core.texts import printable

_WIDTH_OF_A_FILE = 200


def say(answer: RenderableType = "") -> None:
    """Print a part of the answer."""
    _print(console(), answer)


@contextmanager
def only_json() -> Iterator[None]:
    """Leave the standard output to the one JSON document: whatever else is printed goes to the standard error."""
    before = _answers.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _answers.reset(before)


# Where the document goes; nothing while other things are printed, too.
_answers: ContextVar[TextIO | None] = ContextVar("ecotone_answers", default=None)


def say_json(answer: object) -> None:
    """Print the answer for machines: one JSON document, without colours."""
    text = json.dumps(answer, indent=2, ensure_ascii=False, default=str)
    print(text, file=_answers.get() or sys.stdout, flush=True)


def is_for_machines() -> bool:
    """Whether the answer is one JSON document, and nothing else."""
    return _answers.get() is not None


def remark(text: RenderableType) -> None:
    """Tell people something that is no part of the answer."""
    _print(console(stderr=True), text)


def show_error(error: EcotoneError) -> None:
    """Print an error without its traceback: what is wrong, what was tried, what to do."""
    name = "Error" if type(error) is ConfigurationError else type(error).__name__
    remark(Text.assemble((f"{name}: ", "bold red"), str(error)))


def error_told(error: BaseException, code: int) -> dict[str, Any]:
    """Return an error for machines.

    Args:
        error: What was raised.
        code: The exit code of the process.
    """
    return {"error": _told(error), "code": code}


def _told(error: BaseException) -> dict[str, Any]:
    if not isinstance(error, EcotoneError):
        # What is wrong with an option names it only in its message for people.
        what = str(getattr(error, "format_message", error.__str__)())
        what = what or ("interrupted" if isinstance(error, KeyboardInterrupt) else "")
        return {"type": type(error).__name__, "what": what, "tried": "", "hint": ""}
    told: dict[str, Any] = {
        "type": type(error).__name__, "what": error.what, "tried": error.tried, "hint": error.hint
    }  # fmt: skip
    if isinstance(error, ConfigurationError) and error.problems:
        told["problems"] = [_told(one) for one in error.problems]
    return told


def harmless(text: str) -> str:
    """Return a text without what terminals take for commands: whoever sends a message can write anything into it."""
    return printable(text, kept="\n\t")


class _HarmlessConsole(Console):
    """Writes what is asked of it and no commands that somebody else has put into a text."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Make it harmless before its width is measured."""
        return super().render_str(harmless(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Make harmless what came in another way; colours are not written yet, and what moves the cursor is apart."""
        for one in super().render(renderable, options):
            yield one if one.control else one._replace(text=harmless(one.text))


@contextmanager
def progress_bars(*, hidden: bool = False) -> Iterator[Progress]:
    """Show bars while something takes its time; to a terminal alone."""
    to = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=to, transient=True, disable=hidden or not to.is_terminal) as bars:
        yield bars


def console(*, stderr: bool = False) -> Console:
    """Return the console for a stream as it is now: programs and tests replace streams."""
    made = _HarmlessConsole(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _WIDTH_OF_A_FILE
    return made


def _print(to: Console, what: RenderableType) -> None:
    to.print(what, soft_wrap=isinstance(what, str | Text))
