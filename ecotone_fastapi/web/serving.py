"""Which application of FastAPI is served, and what is put around it for that."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import APIRouter, FastAPI

from ecotone_fastapi.core.errors import ConfigurationError
from ecotone_fastapi.core.handler import Overrides
from ecotone_fastapi.web.correlation import CorrelationMiddleware, answer_unexpected, check_header
from ecotone_fastapi.web.edge import KEY, EcotoneMiddleware, Served
from ecotone_fastapi.web.errors import add_error_handlers


class Serving:
    """The application of FastAPI that an `Ecotone` serves: none, or one.

    Args:
        ecotone: What requests of the application find.
        overrides: Dependencies that are replaced, besides those that the application replaces.

    Attributes:
        app: The application.
    """

    def __init__(self, ecotone: Served, overrides: Overrides) -> None:
        self.app: FastAPI | None = None
        self._ecotone = ecotone
        self._overrides = overrides

    @asynccontextmanager
    async def during(self, app: FastAPI) -> AsyncIterator[None]:
        """Serve an application until the block ends.

        Raises:
            ConfigurationError: The application has an Ecotone, or this one has an application.
        """
        self._begin(app)
        try:
            yield
        finally:
            self.app = None
            delattr(app.state, KEY)

    def install(
        self,
        app: FastAPI,
        started: Callable[[], AbstractAsyncContextManager[None]],
        *,
        error_handlers: bool,
        correlation_header: str | None,
    ) -> None:
        """Serve an application from now on: with middleware, a lifespan and error handlers.

        Args:
            app: The application.
            started: What stands around its requests, within its own lifespan.
            error_handlers: Whether errors of messages are answered with their HTTP status.
            correlation_header: The header of the correlation id; `None` leaves it out.

        Raises:
            ConfigurationError: The application has an Ecotone, this one has an application, or it is too late.
        """
        self._check_free(app)
        if correlation_header is not None:
            check_header(correlation_header)
        try:
            app.add_middleware(EcotoneMiddleware, ecotone=self._ecotone)
            if correlation_header is not None:
                app.add_middleware(CorrelationMiddleware, header=correlation_header)
        except RuntimeError as error:
            raise ConfigurationError(
                "install(app) comes too late: the application has been started",
                hint="call it where the application is made, before the first request",
            ) from error
        self._begin(app)

        @asynccontextmanager
        async def lifespan(_: FastAPI) -> AsyncIterator[None]:
            async with started():
                yield

        app.include_router(APIRouter(lifespan=lifespan))
        if error_handlers:
            add_error_handlers(app)
            if correlation_header is not None and not {500, Exception} & app.exception_handlers.keys():
                app.add_exception_handler(Exception, answer_unexpected)

    def overrides(self) -> Overrides:
        """Return what replaces dependencies: what was given, and above it what the application says at this moment."""
        of_app = self.app.dependency_overrides if self.app is not None else None
        if not of_app:
            return self._overrides
        return {**self._overrides, **of_app} if self._overrides else of_app

    def _begin(self, app: FastAPI) -> None:
        self._check_free(app)
        self.app = app
        setattr(app.state, KEY, self._ecotone)

    def _check_free(self, app: FastAPI) -> None:
        if self.app is not None:
            served = "this" if self.app is app else "another"
            raise ConfigurationError(
                f"this Ecotone serves {served} application already",
                hint="use install(app) or its lifespan, once, and make one Ecotone for each application",
            )
        if getattr(app.state, KEY, None) is not None:
            raise ConfigurationError("another Ecotone serves this application already", hint="use one of them")
