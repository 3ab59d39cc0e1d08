"""What becomes of failures: what a projection stands still at is written down, told and tried again later."""

import logging
import traceback
from dataclasses import dataclass, field
from datetime import timedelta

from ecotone_fastapi.core.errors import ProjectionError
from ecotone_fastapi.modelling.event_storage import StoredEvent
from ecotone_fastapi.modelling.projecting import Projector
from ecotone_fastapi.modelling.projection_leases import Settings
from ecotone_fastapi.modelling.projection_store import Halt

logger: logging.Logger = logging.getLogger("ecotone_fastapi.projections")


@dataclass
class Round:
    """What became of one look at all versions.

    Attributes:
        handled: How many events were handled.
        busy: Whether there may be more to do at once.
        at_end: Whether everything was handled that could be seen when it was looked for.
        failures: What cannot be handled.
    """

    handled: int = 0
    busy: bool = False
    at_end: bool = False
    failures: list[ProjectionError] = field(default_factory=list)


class Halts:
    """Writes down what one projection cannot handle.

    Args:
        projector: The projection.
        settings: When it is tried again.
    """

    def __init__(self, projector: Projector, settings: Settings) -> None:
        self._projector = projector
        self._settings = settings

    def of(
        self, event: StoredEvent | None, error: Exception, before: Halt | None, *, stream: str = "", version: int = 0
    ) -> Halt:
        """Return what is written down about a failure."""
        now = self._projector.gateway.clock.now()
        position = None if event is None or event.position is None else str(event.position)
        stream, version = (stream, version) if event is None else (event.stream, event.version)
        same = before is not None and (before.stream, before.stream_version) == (stream, version)
        attempts = before.attempts + 1 if same and before is not None else 1
        return Halt(
            error_type=f"{type(error).__module__}.{type(error).__qualname__}",
            error_message=str(error),
            traceback="".join(traceback.format_exception(error)),
            stream=stream,
            stream_version=version,
            position=position,
            event="" if event is None else event.name,
            since=before.since if same and before is not None else now,
            attempts=attempts,
            retry_at=now + timedelta(seconds=self._settings.delay(attempts)),
        )

    def failed(self, halt: Halt, error: Exception) -> ProjectionError:
        """Log a failure, and return it as an error."""
        name, where = self._projector.name, f"version {halt.stream_version} of the stream {halt.stream!r}"
        if halt.attempts == 1:
            logger.error("projection %s stands still at %s", name, where, exc_info=error)
        else:
            logger.warning("projection %s stands still at %s, attempt %s: %s", name, where, halt.attempts, error)
        failed = ProjectionError(
            f"the projection {name!r} stands still at {where}: {halt.event or 'no event'}",
            tried=f"{type(error).__name__}: {error}".splitlines()[0]
            + f"; attempt {halt.attempts} of as many as it takes",
            hint=f"mend the handler or the event; ecotone projection retry {name} does not wait for "
            f"{halt.retry_at.isoformat(timespec='seconds')}",
            stream=halt.stream,
            version=halt.stream_version,
            position=halt.position,
        )
        failed.__cause__ = error
        return failed

    def waits(self, halt: Halt) -> bool:
        """Whether it is too early to try again."""
        return halt.retry_at > self._projector.gateway.clock.now()
