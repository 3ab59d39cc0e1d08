"""The codes of AMQP in what a server says, for those who count failures by their kind."""

import re

_WORDS = re.compile(r"\b[A-Z]+(?:_[A-Z]+)+\b")
# Of the specification of AMQP 0-9-1, where they are written in small letters.
_CODES = frozenset(
    (
        "content-too-large",
        "no-route",
        "no-consumers",
        "connection-forced",
        "invalid-path",
        "access-refused",
        "not-found",
        "resource-locked",
        "precondition-failed",
        "frame-error",
        "syntax-error",
        "command-invalid",
        "channel-error",
        "unexpected-frame",
        "resource-error",
        "not-allowed",
        "not-implemented",
        "internal-error",
    )
)


def code_in(told: str) -> str | None:
    """Return the code in what a server has said, if there is one.

    Example:
        >>> code_in("NOT_FOUND - no queue 'orders' in vhost '/'")
        'amqp:not-found'
    """
    for word in _WORDS.findall(told):
        code = word.lower().replace("_", "-")
        if code in _CODES:
            return f"amqp:{code}"
    return None
