"""One connection and its channel, from the first message to the loss of either."""

import asyncio
import logging
from collections import deque
from typing import Any

from ecotone_fastapi.adapters.rabbitmq.batches import Batch, Outgoing, Pen
from ecotone_fastapi.adapters.rabbitmq.codes import code_in
from ecotone_fastapi.adapters.rabbitmq.lean import LeanPen, unfit
from ecotone_fastapi.adapters.rabbitmq.plain import PlainPen
from ecotone_fastapi.adapters.rabbitmq.wire import Wire, client_name, is_meant_for_us
from ecotone_fastapi.core.errors import ChannelError

logger: logging.Logger = logging.getLogger(__name__)

_AT_ONCE = 50  # messages that are written before others on the loop have their turn
_ANY_SIZE = 2**31  # of a frame, where the server sets no limit
_LARGEST_WINDOW = 16 * 1024 * 1024  # bytes under way, beyond which nothing more is written


class Session:
    """Writes what callers submit, as far as the window allows, until the connection or the channel is lost.

    Args:
        wire: The connection.
        pen: Writes on it.
        window: How many messages may be under way without a confirm.

    Attributes:
        lost: Ends with the reason when the session is of no use any more.
        confirmed: Whether the server has ever said something about a message.
    """

    def __init__(self, wire: Wire, pen: Pen, window: int) -> None:
        self.wire = wire
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.confirmed: bool = False
        self._loop = asyncio.get_running_loop()
        self._pen = pen
        self._window = window
        self._batches: set[Batch] = set()
        self._unwritten: deque[Batch] = deque()
        self._under_way = 0
        self._bytes = 0
        self._heard_at = self._loop.time()
        self._flushing = False
        self._waiting_for_room: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, url: str, *, timeout: float, window: int, lean: bool) -> "Session":
        """Connect, and open a channel that confirms.

        Raises:
            ChannelError: That was not possible in time.
        """
        wire = await Wire.open(url, timeout=timeout, name=client_name("publish"))
        try:
            async with asyncio.timeout(timeout):
                channel = await wire.connection.channel(publisher_confirms=True, on_return_raises=True)
                underlay: Any = await channel.get_underlay_channel()
        except BaseException as error:
            wire.abort()
            if is_meant_for_us(error):
                raise
            await wire.close()
            told = str(error) or type(error).__name__
            raise ChannelError(f"RabbitMQ at {wire.connection} opens no channel: {told}", code=code_in(told)) from error
        largest = underlay.connection.connection_tune.frame_max or _ANY_SIZE
        pen: Pen
        if lean and (reason := unfit(underlay)) is None:
            pen = LeanPen(underlay, wire.writer, largest)
        else:
            if lean:
                logger.warning("publishing to RabbitMQ message by message, which is slower: %s", reason)
            pen = PlainPen(channel, largest)
        session = cls(wire, pen, window)
        underlay.closing.add_done_callback(session._channel_closed)
        return session

    def submit(self, batch: Batch) -> None:
        """Take over the messages of a call; they are written when the loop comes round, in order."""
        if self.lost.done():
            batch.fail("the connection to RabbitMQ was lost")
            return
        self._batches.add(batch)
        self._unwritten.append(batch)
        self._flush_soon()

    def forget(self, batch: Batch) -> None:
        """Let go of a batch that nobody waits for any more."""
        self._batches.discard(batch)

    def give_up(self, batch: Batch, seconds: float) -> None:
        """End a batch that has made no progress for some time."""
        if self.wire.blocked:
            batch.fail(
                f"RabbitMQ has blocked the connection for lack of memory or disk and confirmed none of them "
                f"for {seconds:g} seconds"
            )
            return
        silent = self._loop.time() - self._heard_at >= seconds
        batch.fail(f"RabbitMQ has confirmed none of them for {seconds:g} seconds")
        if silent and self._under_way:
            self.lose(f"the server has been silent for {seconds:g} seconds")

    def lose(self, reason: str) -> None:
        """End the session, and with it everything that is under way."""
        if self.lost.done():
            return
        self.lost.set_result(reason)
        for batch in tuple(self._batches):
            batch.fail(f"the connection to RabbitMQ was lost ({reason})")
        self._unwritten.clear()
        self.wire.abort()

    async def finish(self, seconds: float) -> None:
        """Wait until everything that was submitted has ended."""
        waiting = [batch.done for batch in self._batches if not batch.done.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=seconds)

    async def close(self) -> None:
        """Disconnect; end what is still under way."""
        if not self.lost.done():
            self.lost.set_result("it was closed")
            for batch in tuple(self._batches):
                batch.fail("the publisher was closed")
        if self._waiting_for_room is not None:
            self._waiting_for_room.cancel()
        await self.wire.close()
        await self._pen.close()

    # ----------------------------------------------------------------------------------------------------- writing

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what the window has room for; others on the loop have their turn in between."""
        self._flushing = False
        unwritten = self._unwritten
        while unwritten and unwritten[0].done.done():
            unwritten.popleft()
        if not unwritten or self.lost.done():
            return
        if self.wire.blocked:
            self._flush_when_unblocked()
            return
        part: list[tuple[Batch, Outgoing]] = []
        room = min(self._window - self._under_way, _AT_ONCE)
        while unwritten and len(part) < room and self._bytes < _LARGEST_WINDOW:
            batch = unwritten[0]
            if batch.done.done():
                unwritten.popleft()
                continue
            outgoing = batch.outgoing[batch.written]
            part.append((batch, outgoing))
            self._bytes += len(outgoing.message.payload)
            batch.written += 1
            if batch.written == len(batch.outgoing):
                unwritten.popleft()
        self._under_way += len(part)
        if part:
            try:
                self._pen.write(part, self._answered)
            except (OSError, RuntimeError) as error:  # the driver has ended the socket, and tells so a moment later
                self.lose(str(error) or type(error).__name__)
                return
        if unwritten and self._under_way < self._window and self._bytes < _LARGEST_WINDOW:
            self._flush_soon()

    def _answered(self, outgoing: Outgoing) -> None:
        self.confirmed = True
        self._heard_at = self._loop.time()
        self._under_way -= 1
        self._bytes -= len(outgoing.message.payload)
        # Refilled by halves: a window that is filled up message by message is written message by message.
        if self._unwritten and self._under_way <= self._window // 2 and self._bytes <= _LARGEST_WINDOW // 2:
            self._flush_soon()

    def _flush_when_unblocked(self) -> None:
        if self._waiting_for_room is None:
            self._waiting_for_room = asyncio.ensure_future(self.wire.unblocked())
            self._waiting_for_room.add_done_callback(self._unblocked)

    def _unblocked(self, waiting: asyncio.Task[None]) -> None:
        self._waiting_for_room = None
        if not waiting.cancelled():
            self._flush_soon()

    def _channel_closed(self, closing: asyncio.Future[None]) -> None:
        error = None if closing.cancelled() else closing.exception()
        self.lose(str(error) or type(error).__name__ if error is not None else "the server closed it")
