"""Places in which a process kills itself, as `kill -9` would: `FAULTS_CRASH=handled:3` at the third time there."""

import os
import signal
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ecotone_fastapi.core import Assembly, Call, Channel, Message, Order, Proceed, Stage


class Crashes:
    """A plugin that ends the process in a place, when it is there for the so manieth time.

    Places: `dispatched` (a command has returned, the response has not), `handling` (before a consumed message's
    handler runs), `handled` (after its handler, before the commit), `settled` (after the commit, before an ack of its
    own), `published` (a broker has confirmed, and nobody has taken note).

    Args:
        where: `place:number`, or nothing.
    """

    def __init__(self, where: str) -> None:
        self._place, _, number = where.partition(":")
        self._number = int(number or 1)
        self._seen: Counter[str] = Counter()

    def reach(self, place: str) -> None:
        """Be in a place."""
        self._seen[place] += 1
        if place == self._place and self._seen[place] == self._number:
            os.kill(os.getpid(), signal.SIGKILL)

    def install(self, assembly: Assembly) -> None:
        async def around_dispatch(call: Call, proceed: Proceed) -> Any:
            result = await proceed(call)
            self.reach("dispatched")
            return result

        async def around_handler(call: Call, proceed: Proceed) -> Any:
            if call.delivery is None:
                return await proceed(call)
            self.reach("handling")
            result = await proceed(call)
            self.reach("handled")
            return result

        async def around_unit(call: Call, proceed: Proceed) -> Any:
            result = await proceed(call)
            self.reach("settled")
            return result

        if not self._place:
            return
        assembly.add_interceptor(around_dispatch, stage=Stage.DISPATCH, order=Order.TRACING)
        assembly.add_interceptor(around_handler, stage=Stage.HANDLE, order=Order.STATE)
        assembly.add_interceptor(around_unit, stage=Stage.RECEIVE, order=Order.STATE)
        for channel in assembly.channels.values():
            if not channel.capabilities.transactional:
                self._watch(channel)

    def _watch(self, channel: Channel) -> None:
        send = channel.send

        async def send_and_reach(messages: Sequence[Message[bytes]]) -> None:
            await send(messages)
            self.reach("published")

        vars(channel)["send"] = send_and_reach
