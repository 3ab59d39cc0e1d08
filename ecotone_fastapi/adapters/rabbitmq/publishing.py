"""Sends messages and returns when the server has confirmed them.

    >>> publisher = Publisher("amqp://guest:guest@127.0.0.1/")
    >>> await publisher.open()  # doctest: +SKIP
    >>> await publisher.publish([Outgoing(message, routing_key="orders")])  # doctest: +SKIP

All callers share one connection, on which nothing is received: a server that is short of memory stops to read from
those who publish, and acks must not wait behind that.
"""

import asyncio
import logging
import re
from collections.abc import Sequence

from ecotone_fastapi.adapters.rabbitmq.batches import Batch, Outgoing
from ecotone_fastapi.adapters.rabbitmq.session import Session
from ecotone_fastapi.core.errors import ChannelError, ConversionError
from ecotone_fastapi.core.message import HeaderName
from ecotone_fastapi.core.supervision import Pauses
from ecotone_fastapi.core.texts import in_one_line

__all__ = ["Outgoing", "Publisher"]

logger: logging.Logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 5.0  # seconds between two attempts to connect
_STABLE = 10.0  # seconds after which a connection that is lost was not a failed attempt
_FINISHING = 3.0  # seconds that a publisher which is closed waits for what is under way


class Publisher:
    """One connection for everything that a process publishes, kept up by itself.

    Args:
        url: Of the server.
        timeout: Seconds that the server has to accept a connection, and to confirm at least one message of a call. A
            call of `publish` ends in time whatever the server does.
        window: How many messages may be under way without a confirm.
        lean: Whether all frames of a window are written at once where the installed driver is known to allow that. It
            is faster by a factor; what arrives and what is confirmed is the same.

    Example:
        >>> Publisher("amqp://guest:guest@127.0.0.1/", timeout=5.0).connected
        False
    """

    def __init__(self, url: str, *, timeout: float = 10.0, window: int = 500, lean: bool = True) -> None:
        self._url = url
        self._timeout = timeout
        self._window = window
        self._lean = lean
        self._pauses = Pauses(first=0.2, longest=min(_LONGEST_PAUSE, timeout / 2), jitter=0.5)
        self._session: Session | None = None
        self._attempt: asyncio.Future[Session] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the server, as far as is known."""
        return self._session is not None and not self._session.lost.done()

    @property
    def blocked(self) -> bool:
        """Whether the server is connected but takes no messages, because it is short of memory or disk."""
        return self._session is not None and self._session.wire.blocked

    async def open(self) -> None:
        """Connect, and stay connected until `close`. May be called again.

        Raises:
            ChannelError: The server cannot be reached; `open` may be tried again.
        """
        async with self._opening:
            if self._supervisor is not None:
                return
            session = await self._connect()
            self._session = session
            self._attempt = asyncio.get_running_loop().create_future()
            self._supervisor = asyncio.create_task(self._supervise(session), name="ecotone: publish to RabbitMQ")

    async def close(self) -> None:
        """Let what is under way be confirmed, but not for long, and disconnect. May be called again."""
        async with self._opening:
            supervisor, self._supervisor = self._supervisor, None
            if supervisor is None:
                return
            attempt, self._attempt = self._attempt, None
            if attempt is not None:
                _end(attempt, _not_open())
            try:
                if self._session is not None:
                    await self._session.finish(min(self._timeout, _FINISHING))
            finally:
                supervisor.cancel()
                await asyncio.wait((supervisor,))
                session, self._session = self._session, None
                if session is not None:
                    await session.close()

    async def publish(self, outgoing: Sequence[Outgoing]) -> None:
        """Send messages; return when the server has confirmed all of them.

        Callers that publish at the same time share what is written. One that is cancelled disturbs no other; its
        messages may or may not arrive.

        Raises:
            SendError: The server refused some; the error names them. All others have arrived.
            ConversionError: The server has closed the channel because one of them is larger than it allows.
            ChannelError: The server cannot be reached, does not answer or takes no messages. What has happened to the
                messages is in its text: those that were written may have arrived.
        """
        if not outgoing:
            return
        loop = asyncio.get_running_loop()
        started = loop.time()
        session = self._session
        if session is None or session.lost.done() or self._attempt is None:
            session = await self._connected()
        batch = Batch(outgoing, loop, started)
        session.submit(batch)
        batch.timer = loop.call_later(self._timeout, self._look_at, batch, session, loop)
        try:
            await batch.done
        except ChannelError as error:
            _check_size(outgoing, error)
            raise
        finally:
            batch.timer.cancel()
            session.forget(batch)

    def _look_at(self, batch: Batch, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        """Give up on a batch that makes no progress."""
        due = batch.moved_at + self._timeout
        if due > loop.time():
            batch.timer = loop.call_at(due, self._look_at, batch, session, loop)
        else:
            session.give_up(batch, self._timeout)

    # ------------------------------------------------------------------------------------------------- supervision

    async def _connected(self) -> Session:
        """Wait for the attempt to connect that is made now or next."""
        if self._attempt is None:
            raise _not_open()
        try:
            async with asyncio.timeout(self._timeout):
                # The attempt belongs to everybody who waits for it.
                return await asyncio.shield(self._attempt)
        except TimeoutError:
            raise ChannelError(
                f"RabbitMQ could not be reached within {self._timeout:g} seconds; nothing was sent"
            ) from None

    async def _connect(self) -> Session:
        return await Session.open(self._url, timeout=self._timeout, window=self._window, lean=self._lean)

    async def _supervise(self, session: Session) -> None:
        """Replace the session whenever it is lost, until cancelled."""
        loop = asyncio.get_running_loop()
        failures, reported = 0, False
        while True:
            connected_at = loop.time()
            reason = await asyncio.shield(session.lost)
            failures = 1 if loop.time() - connected_at > _STABLE or session.confirmed else failures + 1
            logger.warning("the connection that publishes to RabbitMQ was lost: %s", reason)
            await session.close()
            # The first attempt is made at once: most often the server is there and has closed the channel only.
            pause = 0.0 if failures == 1 else self._pauses.after(failures)
            while True:
                if pause:
                    await asyncio.sleep(pause)
                try:
                    session = await self._connect()
                except ChannelError as error:
                    failures += 1
                    pause = self._pauses.after(failures)
                    if not reported:
                        logger.warning("%s; trying again", in_one_line(error))
                    reported = True
                    self._announce(error)
                else:
                    break
            if reported:
                logger.warning("publishing to RabbitMQ again")
            reported = False
            self._session = session
            self._announce(session)

    def _announce(self, outcome: Session | ChannelError) -> None:
        """Tell all who wait how the attempt has ended, and begin a new one."""
        if self._attempt is not None:  # else the publisher is being closed
            attempt, self._attempt = self._attempt, asyncio.get_running_loop().create_future()
            _end(attempt, outcome)


def _end(attempt: asyncio.Future[Session], outcome: Session | ChannelError) -> None:
    if isinstance(outcome, Session):
        attempt.set_result(outcome)
    else:
        attempt.set_exception(outcome)
        attempt.exception()  # nobody need have waited for it


def _check_size(outgoing: Sequence[Outgoing], error: ChannelError) -> None:
    """Tell a message that the server will never take from a server that cannot be reached."""
    found = _TOO_LARGE.search(error.what)
    if found is None:
        return
    for one in outgoing:
        if len(one.message.payload) > int(found[1]):
            raise ConversionError(
                f"message {one.message.headers.get(HeaderName.id, 'without id')} has {len(one.message.payload)} bytes, "
                f"and the server takes {found[1]}",
                hint="raise max_message_size of the server, or give the channel largest_body=, so that it is told "
                "before anything is sent",
            ) from error


_TOO_LARGE = re.compile(r"larger than (?:configured )?max size (\d+)")


def _not_open() -> ChannelError:
    return ChannelError("the publisher is not open; nothing was sent")
