"""Measures the work on channels and in handlers, when it is done."""

import logging
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any
from weakref import WeakSet

from ecotone_fastapi.adapters.opentelemetry import conventions
from ecotone_fastapi.adapters.opentelemetry.guarding import Faults
from ecotone_fastapi.adapters.opentelemetry.instruments import Instruments
from ecotone_fastapi.adapters.opentelemetry.spans import type_of
from ecotone_fastapi.core.channel import Destination, destination_of
from ecotone_fastapi.core.errors import LeaseLostError, OutcomeUnknownError, SendError
from ecotone_fastapi.core.gateway import Gateway
from ecotone_fastapi.core.message import HeaderName, failed_attempts
from ecotone_fastapi.core.pipeline import Call, Proceed
from ecotone_fastapi.core.watching import Operation, Work

logger: logging.Logger = logging.getLogger("ecotone_fastapi.metrics")

Attributes = dict[str, str | int]


class Measuring:
    """The watcher and the interceptors behind `Metrics`.

    All attributes are of few values: names of channels, handlers and classes, never ids.

    Args:
        instruments: Where it is recorded.
        gateway: Knows the channels and the handlers.
    """

    def __init__(self, instruments: Instruments, gateway: Gateway) -> None:
        self._instruments = instruments
        self._gateway = gateway
        self._known: dict[object, Attributes] = {}
        self._lost: WeakSet[LeaseLostError] = WeakSet()
        self._faults = Faults(logger)

    def watch(self, work: Work) -> AbstractContextManager[object]:
        """Measure one operation on a channel, or a batch of a projection."""
        return _Measured(self, work)

    async def count_redelivery(self, call: Call, proceed: Proceed) -> Any:
        """Count a message that somebody had before and told nothing about; outside of those who judge failures."""
        delivery = call.delivery
        if delivery is not None and delivery.count > 1 and delivery.count - 1 > failed_attempts(delivery.message):
            try:
                self._instruments.redeliveries.add(1, _place(self._source_of(call)))
            except Exception as error:
                self._faults.tell("a redelivery could not be counted", error)
        return await proceed(call)

    async def measure(self, call: Call, proceed: Proceed) -> Any:
        """Measure one run of a handler; inside of those who judge failures and of those who run it again at once."""
        began = time.perf_counter()
        try:
            result = await proceed(call)
        except BaseException as error:
            self._ran(call, time.perf_counter() - began, error)
            raise
        self._ran(call, time.perf_counter() - began, None)
        return result

    def _ran(self, call: Call, seconds: float, error: BaseException | None) -> None:
        try:
            attributes = self._of_run(call)
            self._instruments.process_duration.record(
                seconds, attributes if error is None else _failed(attributes, error)
            )
            if isinstance(error, LeaseLostError):
                self._count_lost(error, _place(self._source_of(call)))
        except Exception as fault:
            self._faults.tell("the run of a handler could not be measured", fault)

    def ended(self, work: Work, seconds: float, error: BaseException | None) -> None:
        """Record an operation that has ended; whatever is wrong with who records it, the operation goes on."""
        try:
            self._ended(work, seconds, error)
        except Exception as fault:
            self._faults.tell(f"the operation {work.name!r} could not be measured", fault)

    def _ended(self, work: Work, seconds: float, error: BaseException | None) -> None:
        told, attributes = self._instruments, self._of_work(work)
        with_error = attributes if error is None else _failed(attributes, error)
        match work.operation:
            case Operation.SEND:
                told.operation_duration.record(seconds, with_error)
                self._count_sent(work, attributes, error)
            case Operation.RECEIVE:
                if work.messages:
                    told.operation_duration.record(seconds, with_error)
                    told.consumed.add(len(work.messages), attributes)
                elif isinstance(error, Exception):
                    told.operation_duration.record(seconds, with_error)
                # Else it has waited in vain: that is no message late.
            case Operation.SETTLE:
                told.operation_duration.record(seconds, with_error)
                if work.attempted and error is None:
                    told.retries.add(len(work.messages), _of_retry(work, "delayed"))
                if isinstance(error, LeaseLostError):
                    self._count_lost(error, _place(_destination_of(work)))
            case Operation.PROCESS:
                told.process_duration.record(seconds, with_error)
                if isinstance(error, LeaseLostError):
                    self._count_lost(error, _place(_destination_of(work)))
            case Operation.RETRY if error is None:
                told.retries.add(1, _of_retry(work, "instant"))
            case Operation.PARK if error is None:
                told.parked.add(len(work.messages), _place(_destination_of(work)))
            case Operation.CLAIM:
                place = _place(_destination_of(work))
                told.claim_duration.record(seconds, place if error is None else _failed(place, error))
                if work.messages:
                    told.claim_size.record(len(work.messages), place)
            case Operation.LEASE if isinstance(error, LeaseLostError):
                self._count_lost(error, _place(_destination_of(work)))
            case Operation.COMMIT if error is not None:
                told.commit_unknown.add(1, {conventions.DATABASE: work.place})
            case _:
                pass
        if isinstance(error, OutcomeUnknownError):
            told.publish_unknown.add(error.messages, _place(_destination_of(work)))

    def _count_sent(self, work: Work, attributes: Attributes, error: BaseException | None) -> None:
        count, failed = len(work.messages), 0
        if isinstance(error, SendError):
            ids = set(error.failed)
            failed = sum(1 for message in work.messages if message.headers.get(HeaderName.id) in ids) or count
        elif error is not None:
            failed = count
        if failed and error is not None:
            self._instruments.sent.add(failed, _failed(attributes, error))
        if count > failed:
            self._instruments.sent.add(count - failed, attributes)

    def _count_lost(self, error: LeaseLostError, attributes: Attributes) -> None:
        # An ack in the transaction of a handler fails the ack and then the handler, with the same error.
        if error not in self._lost:
            self._lost.add(error)
            self._instruments.leases_lost.add(error.leases, attributes)

    def _of_work(self, work: Work) -> Attributes:
        # The channel and what stands in front of it have one name, and are two places.
        key = (work.operation, work.name, work.place, type(work.channel))
        known = self._known.get(key)
        if known is None:
            destination = _destination_of(work)
            known = self._known[key] = _about(destination, work.name, work.operation.value)
        return known

    def _of_run(self, call: Call) -> Attributes:
        endpoint = call.message.headers.get(HeaderName.endpoint)
        key = (call.channel, endpoint)
        known = self._known.get(key)
        if known is None:
            attributes = _about(self._source_of(call), conventions.PROCESS, conventions.PROCESS)
            # What a stranger has written into a header may be anything.
            if endpoint is None or self._gateway.endpoint(endpoint) is None:
                return attributes
            known = self._known[key] = {**attributes, conventions.CONSUMER_GROUP: endpoint}
        return known

    def _source_of(self, call: Call) -> Destination:
        name = call.channel or ""
        return destination_of(self._gateway.channels.get(name), name, sending=False)


class _Measured:
    """One operation, while it is measured."""

    __slots__ = ("_began", "_measuring", "_work")

    def __init__(self, measuring: Measuring, work: Work) -> None:
        self._measuring = measuring
        self._work = work
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._measuring.ended(self._work, time.perf_counter() - self._began, error)


def _destination_of(work: Work) -> Destination:
    if work.operation in (Operation.PROCESS, Operation.LEASE):
        return Destination(system=conventions.EVENT_STORE, name=work.place)
    return destination_of(work.channel, work.place, sending=work.operation is Operation.SEND)


def _about(destination: Destination, name: str, type_: str) -> Attributes:
    return {**_place(destination), conventions.OPERATION_NAME: name, conventions.OPERATION_TYPE: type_}


def _place(destination: Destination) -> Attributes:
    attributes: Attributes = {
        conventions.SYSTEM: destination.system,
        conventions.DESTINATION_NAME: destination.name,
    }
    if destination.address is not None:
        attributes[conventions.SERVER_ADDRESS] = destination.address
        if destination.port is not None:
            attributes[conventions.SERVER_PORT] = destination.port
    return attributes


def _of_retry(work: Work, kind: str) -> Attributes:
    # What was sent on a bus comes from no channel.
    return {**(_place(_destination_of(work)) if work.place else {}), conventions.RETRY_KIND: kind}


def _failed(attributes: Attributes, error: BaseException) -> Attributes:
    return {**attributes, conventions.ERROR_TYPE: type_of(error)}
