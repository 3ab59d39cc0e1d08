"""Many questions to many servers: asked together, and answered by a value or by the reason why there is none."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import anyio

from ecotone_fastapi.core.current import current_scope
from ecotone_fastapi.core.errors import EcotoneError
from ecotone_fastapi.core.texts import in_one_line

logger: logging.Logger = logging.getLogger("ecotone_fastapi.overview")

_ANSWERING = 5.0  # seconds that all servers together have to answer
_AT_ONCE = 4  # questions: a pool of connections has others to serve


@runtime_checkable
class TellsDepth(Protocol):
    """A channel that knows how many messages it has."""

    async def depth(self) -> int:
        """Count the messages that wait or are lent."""
        ...


@runtime_checkable
class TellsAge(Protocol):
    """A channel that knows how old its messages are."""

    async def oldest_age(self) -> float | None:
        """Return for how many seconds the oldest message has been ready; `None` when none is."""
        ...


@dataclass
class Answer:
    """What was answered.

    Args:
        value: The answer.
        problem: Why there is none.
    """

    value: Any = None
    problem: str | None = None


Subject = tuple[str, str]
"""What is asked, and about what: `("depth of", "orders")`."""

Question = Callable[[], Awaitable[Any]]
"""Asks a server."""


async def ask_all(questions: Mapping[Subject, Question]) -> dict[Subject, Answer]:
    """Ask several at a time; those who have not answered in time have told nothing."""
    answers = {key: Answer(problem=f"no answer within {_ANSWERING:.0f} seconds") for key in questions}
    # In a handler all of them are asked on the one connection of its transaction.
    limiter = anyio.CapacityLimiter(1 if current_scope() is not None else _AT_ONCE)

    async def ask(key: Subject, question: Question) -> None:
        async with limiter:
            try:
                answers[key] = Answer(await question())
            except EcotoneError as error:
                answers[key] = Answer(problem=in_one_line(error))
            except Exception as error:
                logger.exception("the %s %s cannot tell how it is", *key)
                answers[key] = Answer(problem=in_one_line(error))

    with anyio.move_on_after(_ANSWERING):
        async with anyio.create_task_group() as tasks:
            for key, question in questions.items():
                tasks.start_soon(ask, key, question)
    return answers
