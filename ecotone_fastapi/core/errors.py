"""The error tree. Every error says what and where, what was tried, and what to do.

EcotoneError
├── ConfigurationError                  found at start; never raised while handling a message
│   ├── DuplicateHandlerError           two handlers for one command or query
│   ├── UnresolvableParameterError      nobody supplies this parameter
│   ├── UnknownChannelError             @asynchronous names a channel nobody gave
│   ├── MissingServiceError             a feature is used without the store it needs
│   ├── UnsupportedCapabilityError      the channel cannot delay, order, …
│   ├── NotInstalledError               a bus was asked for in an application without Ecotone
│   └── MissingExtraError (ImportError) a driver is not installed
├── RoutingError
│   ├── HandlerNotFoundError            no handler for this command or query
│   └── UnknownEndpointError            a received message names a handler that is gone
├── ConversionError (ValueError)        payload and type do not fit
│   └── HeaderError                     a header is missing or does not fit
├── ChannelError (ConnectionError)      the broker refused or vanished; always worth a retry
│   ├── SendError                       some messages of a batch were not accepted
│   ├── OutcomeUnknownError             the server did not confirm what it was sent
│   └── LeaseLostError                  the delivery belongs to another consumer by now
├── HandlerCancelledError               a handler in a consumer awaited something that was cancelled
├── ConsumerStoppedError                a consumer does not go on behind a message that failed
├── AggregateNotFoundError (LookupError)
├── DeadLetterNotFoundError (LookupError)
├── DocumentNotFoundError (LookupError)
├── RowNotFoundError (LookupError)      a query of one row has found none
├── DuplicateDocumentError              another document has this id already
├── AggregateError                      an aggregate cannot be saved or read as it is
├── ConcurrencyError                    somebody else saved first
├── TransactionAbortedError             a statement failed in it, and the handler went on
└── ProjectionError                     a projection stopped; carries position and event
"""

from collections.abc import Mapping, Sequence
from typing import Any


class EcotoneError(Exception):
    """Anything this package raises on its own account.

    Args:
        what: What happened, and where.
        tried: What was looked at or attempted before giving up.
        hint: What the reader can do about it.

    Attributes:
        nested: Whether it concerns a message that was sent while another one was handled. Then it is a fault of that
            handler, and not of who sent the first message.
    """

    def __init__(self, what: str, *, tried: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.nested = False
        self.what = what
        self.tried = tried
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.tried:
            lines.append(f"Tried: {self.tried}")
        if self.hint:
            lines.append(f"Hint: {self.hint}")
        return "\n".join(lines)


class ConfigurationError(EcotoneError):
    """The wiring is wrong. Raised at start, never while a message is handled.

    When several things are wrong, `problems` holds one error for each, so that one start shows them all.
    """

    problems: Sequence["ConfigurationError"] = ()

    @classmethod
    def raise_all(cls, problems: Sequence["ConfigurationError"]) -> None:
        """Raise the only problem as it is, several as one error that lists them once each, and none not at all."""
        problems = list({str(problem): problem for problem in problems}.values())
        if not problems:
            return
        if len(problems) == 1:
            raise problems[0]
        report = cls(
            "\n\n".join([f"{len(problems)} things are wrong with the wiring:", *map(_name_and_text, problems)]),
        )
        report.problems = tuple(problems)
        raise report


def _name_and_text(error: EcotoneError) -> str:
    return f"{type(error).__name__}: {error}"


class DuplicateHandlerError(ConfigurationError):
    """Two handlers want the same command, query or endpoint id."""


class UnresolvableParameterError(ConfigurationError):
    """Nobody supplies a parameter of a handler or of one of its dependencies."""


class UnknownChannelError(ConfigurationError):
    """A channel is named that nobody gave to `Ecotone`."""


class MissingServiceError(ConfigurationError):
    """A feature is used without the store or service that it needs."""


class UnsupportedCapabilityError(ConfigurationError):
    """A feature needs something that the channel cannot do."""


class NotInstalledError(ConfigurationError):
    """A bus was asked for in an application that no `Ecotone` serves."""


class MissingExtraError(ConfigurationError, ImportError):
    """An adapter is used whose driver is not installed.

    Args:
        extra: The name of the extra, as in `pip install "ecotone-fastapi[extra]"`.
        module: The module that could not be imported.
    """

    def __init__(self, extra: str, module: str) -> None:
        super().__init__(f"the driver {module!r} is not installed", hint=f'pip install "ecotone-fastapi[{extra}]"')
        self.extra = extra
        self.module = module


class RoutingError(EcotoneError):
    """A message found no handler."""


class HandlerNotFoundError(RoutingError):
    """No handler takes this command or query."""


class UnknownEndpointError(RoutingError):
    """A received message names a handler that does not exist here (any more)."""


class ConversionError(EcotoneError, ValueError):
    """A payload and the type that it should have do not fit.

    Args:
        what: What should have been converted into what.
        details: pydantic's error list, when pydantic refused.
        tried: The converters or types that were tried.
        hint: What the reader can do about it.
    """

    def __init__(
        self, what: str, *, details: Sequence[Mapping[str, Any]] = (), tried: str = "", hint: str = ""
    ) -> None:
        super().__init__(what, tried=tried, hint=hint)
        self.details: tuple[Mapping[str, Any], ...] = tuple(details)


class HeaderError(ConversionError):
    """A header that a handler asks for is missing or does not fit its type."""


class ChannelError(EcotoneError, ConnectionError):
    """A broker or database refused or vanished. Trying again later is always worth it.

    Args:
        what: What happened, and where.
        tried: What was looked at or attempted before giving up.
        hint: What the reader can do about it.
        code: What the server itself calls it, if it has told: `amqp:not-found`, or `40P01` of PostgreSQL.
    """

    def __init__(self, what: str, *, tried: str = "", hint: str = "", code: str | None = None) -> None:
        super().__init__(what, tried=tried, hint=hint)
        self.code = code


class SendError(ChannelError):
    """A batch was accepted in part.

    Args:
        what: What happened, and on which channel.
        failed: The `id` headers of the messages that did not enter the channel; the others did.
        code: What the server itself calls it, if it says the same of all of them.
    """

    def __init__(
        self, what: str, *, failed: Sequence[str], tried: str = "", hint: str = "", code: str | None = None
    ) -> None:
        super().__init__(what, tried=tried, hint=hint, code=code)
        self.failed: tuple[str, ...] = tuple(failed)


class OutcomeUnknownError(ChannelError):
    """Messages were handed to a server that has told nothing about them: they may have arrived, or not.

    Args:
        what: What happened, and on which server.
        messages: How many messages that are.
    """

    def __init__(self, what: str, *, messages: int, tried: str = "", hint: str = "") -> None:
        super().__init__(what, tried=tried, hint=hint)
        self.messages = messages


class LeaseLostError(ChannelError):
    """Deliveries were settled too late: their lease ended, and somebody else has the messages now.

    Args:
        what: What was lost, and where.
        leases: How many leases that are.
    """

    def __init__(self, what: str, *, leases: int = 1, tried: str = "", hint: str = "") -> None:
        super().__init__(what, tried=tried, hint=hint)
        self.leases = leases


class HandlerCancelledError(EcotoneError):
    """A handler in a consumer awaited something that was cancelled, while nobody cancelled the handler itself."""


class ConsumerStoppedError(EcotoneError):
    """Raised while a consumer handles a message, it ends its run: what comes behind that message has to wait."""


class AggregateNotFoundError(EcotoneError, LookupError):
    """No aggregate has this identifier."""


class DeadLetterNotFoundError(EcotoneError, LookupError):
    """No dead letter has this id."""


class DocumentNotFoundError(EcotoneError, LookupError):
    """No document of the collection has this id."""


class RowNotFoundError(EcotoneError, LookupError):
    """A query that is to return one row has found none."""


class DuplicateDocumentError(EcotoneError):
    """A document was to be added, and the collection has one with this id already."""


class AggregateError(EcotoneError):
    """An aggregate cannot be saved, or read, as it is: that is a mistake in code, and not of the sender."""


class ConcurrencyError(EcotoneError):
    """Somebody else saved first.

    Args:
        what: What was to be saved.
        expected: The version that it was to have.
        actual: The version that it has; `None` where that is not known.
        passing: Whether the same message may succeed when it is handled again: not when its sender has said which
            version it expects.
        tried: What was looked at.
        hint: What the reader can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: int | None = None,
        actual: int | None = None,
        passing: bool = True,
        tried: str = "",
        hint: str = "",
    ) -> None:
        if expected is not None and not tried:
            tried = f"expected version {expected}, found {'another one' if actual is None else actual}"
        super().__init__(what, tried=tried, hint=hint)
        self.expected = expected
        self.actual = actual
        self.passing = passing


class TransactionAbortedError(EcotoneError):
    """A transaction could not be committed, because a statement had failed in it and the handler went on."""


class ProjectionError(EcotoneError):
    """A projection stands still, or cannot do what it was asked to.

    Args:
        what: Which one, and where.
        tried: What was looked at or attempted before giving up.
        hint: What the reader can do about it.
        stream: The stream of the event that cannot be handled.
        version: The version of the event there.
        position: The position of the event.
    """

    def __init__(
        self,
        what: str,
        *,
        tried: str = "",
        hint: str = "",
        stream: str | None = None,
        version: int | None = None,
        position: str | None = None,
    ) -> None:
        super().__init__(what, tried=tried, hint=hint)
        self.stream = stream
        self.version = version
        self.position = position
