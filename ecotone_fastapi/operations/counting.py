"""Depths and ages of many channels: those of one database are asked for together."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from ecotone_fastapi.core.channel import Channel
from ecotone_fastapi.operations.asking import Answer, Question, Subject, TellsAge, TellsDepth, ask_all


class CountsTogether(Protocol):
    """Tells of several channels at once what each could tell for itself. A database adapter offers it as a service."""

    def covers(self, channel: Channel) -> bool:
        """Whether it can tell of this channel."""
        ...

    async def waiting(self, names: Sequence[str]) -> Mapping[str, tuple[int, float | None]]:
        """Return depth and oldest age of channels by their names; those that are left out are empty.

        Raises:
            ChannelError: The server cannot be reached.
        """
        ...


async def ask_about(
    channels: Mapping[str, Channel],
    together: CountsTogether | None = None,
    others: Mapping[Subject, Question] | None = None,
) -> dict[Subject, Answer]:
    """Ask how many messages channels have and how old they are, and whatever else is asked at the same time.

    Args:
        channels: The channels, by their names.
        together: Tells of several of them at once.
        others: What else is asked.

    Returns:
        The answers: `("depth of", name)` and `("age of", name)` of each channel that tells.
    """
    covered = [name for name, one in channels.items() if together is not None and together.covers(one)]
    questions: dict[Subject, Question] = dict(others or {})
    if together is not None and covered:
        questions[_TOGETHER] = partial(together.waiting, covered)
    for name, channel in channels.items():
        if name not in covered:
            questions |= _about(name, channel)
    answers = await ask_all(questions)
    counted = answers.pop(_TOGETHER, Answer())
    for name in covered:
        if counted.problem is not None:
            depth, age = Answer(problem=counted.problem), Answer(problem=counted.problem)
        else:
            depth, age = map(Answer, counted.value.get(name, (0, None)))
        answers |= {("depth of", name): depth, ("age of", name): age}
    return answers


_TOGETHER: Subject = ("depth of", "all channels of the database")


def _about(name: str, channel: Channel) -> dict[Subject, Question]:
    questions: dict[Subject, Question] = {}
    if isinstance(channel, TellsDepth):
        questions["depth of", name] = channel.depth
    if isinstance(channel, TellsAge):
        questions["age of", name] = channel.oldest_age
    return questions
