"""Messages of one call, published so that none overtakes another one of its partition key.

In one window of confirms the server may refuse a message and take the next one. Here a message is published when those
of its key before it are confirmed; if one is refused, those behind it are not sent.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from ecotone_fastapi.adapters.rabbitmq.batches import Outgoing
from ecotone_fastapi.core.errors import ChannelError, SendError
from ecotone_fastapi.core.message import HeaderName

Publish = Callable[[Sequence[Outgoing]], Awaitable[None]]


async def publish_in_rounds(publish: Publish, outgoing: Sequence[Outgoing]) -> None:
    """Publish messages, of each key one at a time.

    Args:
        publish: Publishes some of them, and returns when they are confirmed.
        outgoing: The messages.

    Raises:
        SendError: Some were refused, or not sent because one of their key was refused; the error names both.
        ChannelError: The server could not be reached; a note tells how many were sent before that.
    """
    refused: list[str] = []
    stopped: set[str | None] = set()
    cause: SendError | None = None
    sent = 0
    for everybody in _rounds(outgoing):
        some = [one for one in everybody if _key(one) not in stopped]
        refused += [_id(one) for one in everybody if _key(one) in stopped]
        try:
            if some:
                await publish(some)
        except SendError as error:
            cause = cause or error
            refused += error.failed
            stopped |= {_key(one) for one in some if _id(one) in set(error.failed)} - {None}
        except ChannelError as error:
            if sent:
                error.add_note(f"{sent} of {len(outgoing)} messages were sent before that")
            raise
        sent += len(some)
    if cause is not None and len(refused) > len(cause.failed):
        raise SendError(
            f"{cause.what}; {len(refused) - len(cause.failed)} more were refused or stand behind one of their key",
            failed=refused,
            hint=cause.hint,
        ) from cause
    if cause is not None:
        raise cause


def _rounds(outgoing: Sequence[Outgoing]) -> Sequence[Sequence[Outgoing]]:
    places: Counter[str] = Counter()
    rounds: list[list[Outgoing]] = [[]]
    for one in outgoing:
        key = _key(one)
        place = 0 if key is None else places[key]
        if key is not None:
            places[key] += 1
        if place == len(rounds):
            rounds.append([])
        rounds[place].append(one)
    return rounds


def _key(outgoing: Outgoing) -> str | None:
    return outgoing.message.headers.get(HeaderName.partition_key)


def _id(outgoing: Outgoing) -> str:
    return outgoing.message.headers.get(HeaderName.id, "without id")
