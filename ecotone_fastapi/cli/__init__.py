"""The command line: `ecotone run | list | explain | doctor | diagram | migrate | deadletter | …`.

$ ecotone run shop.main:ecotone notifications
"""

from ecotone_fastapi.cli.commands import commands, main

__all__ = ["commands", "main"]
