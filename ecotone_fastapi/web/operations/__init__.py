"""The operations of an application over HTTP: closed until `Ecotone(..., operations=[Depends(...)])` opens them."""

from ecotone_fastapi.web.operations.opening import Operated, checked
from ecotone_fastapi.web.operations.router import operations_router

__all__ = ["Operated", "checked", "operations_router"]
