"""What the running task is handling: the only ambient state of the kernel.

>>> with conversation("import-7"):
...     print(current_correlation_id(), current_message())
import-7 None
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import anyio

from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.core.pipeline import Call, Scope


class Frame:
    """The message that the running task handles. Nested messages of one frame wait for each other.

    Attributes:
        owner: The gateway that handles it; messages that are sent through another one do not belong to its unit.
        message: What is sent now is caused by this message.
        scope: The unit of work.
        call: By which the task came to its handler; set as soon as there is one.
        turn: Held by the nested message that is being handled.
    """

    __slots__ = ("call", "message", "owner", "scope", "turn")

    call: Call  # to set it to `None` before there is one is not worth its time

    def __init__(self, owner: object, message: Message[Any], scope: Scope) -> None:
        self.owner: object = owner
        self.message: Message[Any] = message
        self.scope: Scope = scope
        self.turn: anyio.Lock | None = None

    def end(self) -> None:
        """Let nothing that is sent from now on belong to the unit: a handler may have left tasks behind."""
        self.scope.joinable, self.scope.closed = False, True

    def begin_anew(self) -> Scope:
        """End the unit, and return another one for the same message."""
        self.end()
        before = self.scope
        self.scope = Scope(before.connection, {key: before.cache[key] for key in before.shared} or None)
        return self.scope


class Conversation(Frame):
    """What messages belong to that are sent while none is handled. It is no frame of any gateway."""

    __slots__ = ("correlation_id",)

    def __init__(self, correlation_id: str) -> None:
        super().__init__(None, Message(None, {}), Scope())
        self.end()
        self.correlation_id: str = correlation_id


handled: ContextVar[Frame | None] = ContextVar("ecotone_handled", default=None)


def current_frame() -> Frame:
    """Return the frame of the running task, which has one."""
    frame = handled.get()
    assert frame is not None
    return frame


def current_scope() -> Scope | None:
    """Return the unit of work that the running task belongs to; `None` outside and after it."""
    frame = handled.get()
    return None if frame is None or frame.scope.closed else frame.scope


def current_message() -> Message[Any] | None:
    """Return the message that the running task handles; `None` outside."""
    frame = handled.get()
    return None if frame is None or isinstance(frame, Conversation) else frame.message


def current_call() -> Call | None:
    """Return the call by which the running task came to its handler, or to what stands around it; `None` outside.

    It tells the handler, the channel and the delivery. Which message is handled tells `current_message`.
    """
    return getattr(handled.get(), "call", None)


def current_correlation_id() -> str | None:
    """Return the correlation id that a message sent now would have; `None` when it would begin a conversation."""
    frame = handled.get()
    if frame is None or isinstance(frame, Conversation):
        return None if frame is None else frame.correlation_id
    headers = frame.message.headers
    return headers.get(HeaderName.correlation_id) or headers.get(HeaderName.id)


@contextmanager
def conversation(correlation_id: str) -> Iterator[None]:
    """Let what is sent in this block begin no conversation of its own, but belong to this one.

    A message that is sent while another one is handled belongs to the conversation of that one all the same.

    Args:
        correlation_id: The correlation id of the messages, unless their sender gives another one.

    Example:
        >>> with conversation("import-7"):
        ...     print(current_correlation_id())
        import-7
    """
    if current_message() is not None:
        yield
        return
    token = handled.set(Conversation(correlation_id))
    try:
        yield
    finally:
        handled.reset(token)


def noted(call: Call) -> Call:
    """Return the call; from now on it is the one that the running task is in."""
    frame = handled.get()
    if frame is not None:
        frame.call = call
    return call
