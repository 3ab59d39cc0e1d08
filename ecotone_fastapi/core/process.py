"""Which process this is, as operators find it."""

import os
import socket


def this_process() -> str:
    """Return host and process id, as in `web-1:4711`: after a fork another one than before."""
    return f"{socket.gethostname()}:{os.getpid()}"
