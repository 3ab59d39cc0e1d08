"""`Tracing`: one trace from the HTTP request to the last asynchronous effect.

    ecotone = Ecotone([OrderService], channels=[orders], plugins=[database, Tracing()])

Only the API of OpenTelemetry is used here: which spans are kept, and who gets them, is for the provider to say.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import get_args

from opentelemetry import trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import NoOpTracer, ProxyTracer, Tracer, TracerProvider

from ecotone_fastapi.adapters.opentelemetry.conventions import SCHEMA_URL, SCOPE
from ecotone_fastapi.adapters.opentelemetry.guarding import Guarded
from ecotone_fastapi.adapters.opentelemetry.interceptors import Interceptors, ProcessParent, is_of_users
from ecotone_fastapi.adapters.opentelemetry.propagation import Propagation
from ecotone_fastapi.adapters.opentelemetry.spans import apart
from ecotone_fastapi.adapters.opentelemetry.watching import Watching
from ecotone_fastapi.core import Assembly, Order, Stage
from ecotone_fastapi.core.errors import ConfigurationError

logger: logging.Logger = logging.getLogger("ecotone_fastapi.tracing")


class Tracing:
    """The plugin that traces messages, in the semantic conventions of OpenTelemetry.

    There is a span around each message on a bus until its unit of work is over (`send PlaceOrder`), around each run of
    a handler (`handle OrderService.place_order`), where a message for a channel is made (`create orders`) and handed
    over (`send orders`), around a received message with all that is decided about it (`process orders`), where it is
    settled (`ack orders`), and around each batch of a projection (`project balances`).

    The context of `create` travels in the headers of the message, as plain texts, through databases and brokers. It is
    never replaced on the way: retries, dead letters and replays are found by it. Stored events have that of the handler
    that has stored them. Batches are linked to what they are made of and belong to none of it.

    The provider is looked for when the application is put together, and once more when it starts. When there is none
    by then, nothing is plugged in, and nothing is paid for it.

    Args:
        provider: Makes the spans; that of the process unless told otherwise.
        propagator: Writes headers; that of the process unless told otherwise.
        process_parent: With `creation`, handling a message is part of the trace that has created it, unless something
            else is going on where it is received; with `link` it is always a trace of its own, with links to both.
        projection_handlers: Whether each handler in a batch of a projection has a span, too, linked to where its event
            comes from; that costs something for each event. Without, a batch that fails tells which event and handler
            it was.
        receive: Whether there are spans of receiving, too. They begin when a consumer begins to wait for what it
            receives; waiting in vain is none.

    Raises:
        ConfigurationError: This makes no spans, or nothing can have such a parent.

    Example:
        >>> from ecotone_fastapi import Ecotone
        >>> ecotone = Ecotone([], plugins=[Tracing()])
    """

    def __init__(
        self,
        provider: TracerProvider | None = None,
        *,
        propagator: TextMapPropagator | None = None,
        process_parent: ProcessParent = "creation",
        receive: bool = False,
        projection_handlers: bool = False,
    ) -> None:
        if provider is not None and (isinstance(provider, type) or not hasattr(provider, "get_tracer")):
            raise ConfigurationError(
                f"Tracing({provider!r}) is given no provider", hint="write Tracing(TracerProvider()), or Tracing()"
            )
        if process_parent not in get_args(ProcessParent):
            raise ConfigurationError(
                f"Tracing(process_parent={process_parent!r}): a received message has no such parent",
                hint='"creation" is the trace that created it, "link" is a trace of its own',
            )
        self._provider = provider
        self._propagator = propagator
        self._process_parent: ProcessParent = process_parent
        self._receive = receive
        self._projection_handlers = projection_handlers
        self._traced: list[Assembly] = []  # where it was plugged in when they started

    def __repr__(self) -> str:
        return f"Tracing(process_parent={self._process_parent!r})"

    def install(self, assembly: Assembly) -> None:
        """Stand around messages at all four stages, and watch the work on channels; if anybody wants to know.

        Raises:
            ConfigurationError: Another plugin does that already.
        """
        if any(isinstance(one, Tracing) and one is not self for one in assembly.plugins):
            raise ConfigurationError(
                "there are two plugins that trace, and every span would be there twice", hint="keep one Tracing(...)"
            )
        tracer = self._tracer()
        if _is_for_nobody(tracer):
            assembly.add_lifespan(partial(self._looking_again, assembly))
            return
        self._add(assembly, tracer)

    @asynccontextmanager
    async def _looking_again(self, assembly: Assembly) -> AsyncIterator[None]:
        """Plug in when there is a provider by now."""
        tracer = self._tracer()
        if _is_for_nobody(tracer):
            logger.info("nothing is traced: there is no provider of OpenTelemetry")
        elif not any(one is assembly for one in self._traced):
            assembly.add_late(self, lambda: self._add(assembly, tracer))
            self._traced.append(assembly)
        yield

    def _add(self, assembly: Assembly, tracer: Tracer) -> None:
        spans, propagation = Guarded(tracer), Propagation(self._propagator)
        around = Interceptors(assembly, spans, propagation, self._process_parent)
        assembly.add_interceptor(around.dispatch, stage=Stage.DISPATCH, order=Order.TRACING)
        # Just inside of what sends a message away: only where the handler really runs.
        inside = Order.ASYNCHRONOUS + 1
        assembly.add_interceptor(around.handle, stage=Stage.HANDLE, order=inside, when=is_of_users)
        assembly.add_interceptor(around.send, stage=Stage.SEND, order=Order.TRACING)
        assembly.add_interceptor(around.process, stage=Stage.RECEIVE, order=Order.TRACING)
        # Just inside of those who judge a failure: they swallow it.
        assembly.add_interceptor(around.note, stage=Stage.RECEIVE, order=Order.FAILURE + 2)
        assembly.add_beginning(apart)  # a consumer outlives the request or the span in which it was started
        assembly.add_watcher(
            Watching(
                spans,
                propagation,
                assembly.gateway.clock,
                joins=self._process_parent == "creation",
                receive=self._receive,
                handlers=self._projection_handlers,
            )
        )

    def _tracer(self) -> Tracer:
        return trace.get_tracer(SCOPE, version("ecotone-fastapi"), self._provider, SCHEMA_URL)


def _is_for_nobody(tracer: Tracer) -> bool:
    return isinstance(tracer, NoOpTracer | ProxyTracer)
