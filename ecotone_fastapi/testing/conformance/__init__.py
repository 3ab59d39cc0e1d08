"""Suites that every adapter must pass: subclass one in a test file, say how to reach the server, and run pytest.

The cases are coroutines. They run under the pytest plugin of anyio, which is installed with this package.
"""

from ecotone_fastapi.core.errors import ConfigurationError

try:
    import pytest
except ImportError as _error:
    raise ConfigurationError(
        "the conformance suites are pytest classes, and pytest is not installed", hint="pip install pytest"
    ) from _error

# Before the suites are imported: a failing assert shall show both of its sides.
pytest.register_assert_rewrite(__name__)

from ecotone_fastapi.testing.conformance.channels import ChannelConformance  # noqa: E402
from ecotone_fastapi.testing.conformance.inbox import InboxConformance  # noqa: E402
from ecotone_fastapi.testing.conformance.stores import StoreConformance  # noqa: E402

__all__ = ["ChannelConformance", "InboxConformance", "StoreConformance"]
