"""13. A rule that spans everything, without an aggregate of it all: `python examples/13_consistency_boundary.py`

An e-mail address belongs to one user at a time. No user knows all addresses, and one aggregate of all users would make
everybody wait for everybody. Instead the decision is made on the events that have this address as a tag, wherever they
are; it holds as long as no other such event has come meanwhile. If one has, `append` raises a `ConcurrencyError`, and
with a database the command is run again by itself: then it sees what has come.

Only registrations of the same address wait for each other.
"""

import asyncio
from dataclasses import dataclass
from typing import Annotated

from ecotone_fastapi import Decisions, Tag, applies, command_handler
from ecotone_fastapi.testing import flow_test


@dataclass(frozen=True)
class UserWasRegistered:
    user_id: Annotated[str, Tag("user")]
    email: Annotated[str, Tag()]


@dataclass(frozen=True)
class UserHasLeft:
    user_id: Annotated[str, Tag("user")]
    email: Annotated[str, Tag()]


class EmailAddress:
    """What has to be known of an address to decide who gets it."""

    def __init__(self) -> None:
        self.owner: str | None = None

    @applies
    def when_registered(self, event: UserWasRegistered) -> None:
        self.owner = event.user_id

    @applies
    def when_left(self, event: UserHasLeft) -> None:
        self.owner = None


@dataclass(frozen=True)
class RegisterUser:
    user_id: str
    email: str


@command_handler
async def register(command: RegisterUser, decisions: Decisions) -> None:
    address = await decisions.load(EmailAddress, email=command.email)
    if address.state.owner is not None:
        raise ValueError(f"{command.email} belongs to {address.state.owner}")
    await decisions.append(UserWasRegistered(command.user_id, command.email), given=[address])


async def show() -> None:
    async with flow_test([register]) as flow:
        await flow.send(RegisterUser("ada", "ada@example.org"))
        try:
            await flow.send(RegisterUser("eve", "ada@example.org"))
        except ValueError as error:
            print(error)


if __name__ == "__main__":
    asyncio.run(show())


async def test_an_address_is_free_again_when_its_owner_has_left() -> None:
    async with flow_test([register]) as flow:
        await flow.given("user-ada", [UserWasRegistered("ada", "a@x.org"), UserHasLeft("ada", "a@x.org")])
        await flow.send(RegisterUser("eve", "a@x.org"))

        assert flow.published == [UserWasRegistered("eve", "a@x.org")]
