"""Metrics: the four of the messaging conventions, and what an operator of ours wants to know besides.

    ecotone = Ecotone([OrderService], channels=[...], plugins=[database, Metrics()])

Only the API of OpenTelemetry is used here: who is told what was measured is for the provider to say.
"""

import logging
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from weakref import WeakKeyDictionary

from opentelemetry.metrics import Meter, MeterProvider, get_meter

from ecotone_fastapi.adapters.opentelemetry.conventions import APPLICATION, SCHEMA_URL, SCOPE
from ecotone_fastapi.adapters.opentelemetry.instruments import Instruments
from ecotone_fastapi.adapters.opentelemetry.measuring import Measuring
from ecotone_fastapi.adapters.opentelemetry.observing import Observing, Sight, observed
from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.pipeline import Order, Stage
from ecotone_fastapi.core.plugin import Assembly

logger: logging.Logger = logging.getLogger("ecotone_fastapi.metrics")


@dataclass
class _Made:
    """What was made by one meter."""

    instruments: Instruments
    observing: Observing | None = None


# A meter keeps the callbacks of the first gauge of a name and not those of another: applications that have one, at the
# same time or one after the other, share it.
_made: WeakKeyDictionary[Meter, _Made] = WeakKeyDictionary()


class Metrics:
    """The plugin that measures: what is sent, received, settled and handled, and how everything is.

    Durations and counts are recorded when they happen. Depths, ages, lags and states are looked at every `interval`
    seconds in a task beside the application; whoever collects is shown what was seen last and asks no server. What was
    seen too long ago is not shown, and what could not be asked is told by `ecotone.observation.failed`.

    Looking costs a few statements for each database and projection, and a question to a broker for each channel. Every
    process of an application does it, and shows the same depths and lags, because they are those of servers: take the
    maximum over processes, not the sum.

    The provider is looked for when the application is put together, and once more when it starts. When there is none
    by then, nothing is plugged in, and nothing is paid for it.

    Args:
        meter_provider: Makes the instruments; that of the process unless told otherwise.
        interval: Seconds between two looks; with `None` nobody looks, and there are durations and counts alone.
        application: What the application is called, as an attribute of the scope of all instruments. Two applications
            that run in one process need plugins and names of their own to be told apart; otherwise the service name of
            the provider's resource is enough.

    Raises:
        ConfigurationError: The interval is no time.

    Example:
        >>> from opentelemetry.sdk.metrics import MeterProvider
        >>> async with Ecotone([], plugins=[Metrics(MeterProvider(), interval=5.0)]).running() as ecotone:
        ...     print((await ecotone.health()).ready)
        True
    """

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        *,
        interval: float | None = 15.0,
        application: str | None = None,
    ) -> None:
        if interval is not None and not 0 < interval < math.inf:
            raise ConfigurationError(
                f"Metrics(interval={interval!r}) would never look",
                hint="give it some seconds, interval=15.0, or None",
            )
        self._meter_provider = meter_provider
        self._interval = interval
        self._application = application
        self._observing: Observing | None = None
        self._sights: list[Sight] = []
        self._measured: list[Assembly] = []  # where it was plugged in when they started

    def __repr__(self) -> str:
        return f"Metrics(interval={self._interval})"

    def install(self, assembly: Assembly) -> None:
        """Watch the work on channels, stand around handlers in consumers, and look at everything else."""
        meter = self._meter()
        if _is_for_nobody(meter):
            assembly.add_lifespan(partial(self._looking_again, assembly))
            return
        self._add(assembly, meter)

    @asynccontextmanager
    async def _looking_again(self, assembly: Assembly) -> AsyncIterator[None]:
        """Plug in when there is a provider by now."""
        meter = self._meter()
        if _is_for_nobody(meter):
            logger.info("nothing is measured: there is no provider of OpenTelemetry")
        elif not any(one is assembly for one in self._measured):
            assembly.add_late(self, lambda: self._add(assembly, meter))
            self._measured.append(assembly)
        yield

    def _add(self, assembly: Assembly, meter: Meter) -> None:
        known = _made.get(meter)
        if known is None:
            known = _made[meter] = _Made(Instruments(meter))
        measuring = Measuring(known.instruments, assembly.gateway)
        assembly.add_watcher(measuring)
        assembly.add_interceptor(measuring.count_redelivery, stage=Stage.RECEIVE, order=Order.TRACING)
        assembly.add_interceptor(measuring.measure, stage=Stage.RECEIVE, order=Order.RETRY + 1)
        if self._interval is not None:
            if known.observing is None:
                known.observing = Observing(meter)
            self._observing = known.observing
            sight = Sight(assembly, self._interval)
            self._sights.append(sight)
            assembly.add_lifespan(partial(observed, self._observing, sight))

    def _meter(self) -> Meter:
        named = None if self._application is None else {APPLICATION: self._application}
        return get_meter(SCOPE, version("ecotone-fastapi"), self._meter_provider, SCHEMA_URL, named)

    async def refresh(self) -> None:
        """Look now, and not only when the next interval is over: for programs that end soon, and for tests.

        Nothing is looked at that does not run, and nothing without a provider or an interval.
        """
        for sight in self._sights:
            if self._observing is not None and sight in self._observing.sights:
                await sight.look()


def _is_for_nobody(meter: Meter) -> bool:
    """Whether it is one of the API itself, which measures nothing, or waits for a provider."""
    return type(meter).__module__.startswith(Meter.__module__)
