"""`Ecotone`: one application, its handlers, its channels and what extends it, put together, checked and run."""

from ecotone_fastapi.app.ecotone import Ecotone

__all__ = ["Ecotone"]
