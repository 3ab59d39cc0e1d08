"""The suite for stores: everything that keeps something for a feature, beside the messages on channels."""

from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from ecotone_fastapi.core.errors import DeadLetterNotFoundError
from ecotone_fastapi.core.message import HeaderName, Message
from ecotone_fastapi.messaging.dead_letter_store import DeadLetterFilter, DeadLetterStore, ParkedMessage
from ecotone_fastapi.testing.conformance.hooks import Hooks

_FIRST = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


def parked(parked_id: str, *, minutes: int = 0) -> ParkedMessage:
    """Return a dead letter that was parked so many minutes after the first."""
    return ParkedMessage(
        id=parked_id,
        message=Message(b"hello", {HeaderName.id: f"message of {parked_id}", "tenant": "acme"}),
        channel="orders",
        endpoint="Orders.place",
        error_type="shop.orders.OutOfStock",
        error_message="none left",
        traceback="Traceback (most recent call last): …",
        attempts=3,
        deliveries=4,
        parked_at=_FIRST + timedelta(minutes=minutes),
        first_failed_at=_FIRST + timedelta(minutes=minutes, seconds=-90.5),
    )


def _letters() -> list[ParkedMessage]:
    """Four dead letters that differ in everything that can be asked for."""
    return [
        replace(parked("a"), message=_message(b'{"order": "50%_of"}', tenant="acme")),
        replace(
            parked("b", minutes=1),
            endpoint="Orders.cancel",
            message=_message("Grüße".encode(), tenant="Acme", quoted='say "tenant": "x"', city="Łódź"),
            error_type="builtins.OutOfStock",
            error_message="None left",
        ),
        replace(
            parked("c", minutes=2),
            channel="mails",
            endpoint=None,
            message=_message(b"\xff\xfe\x00 raw", **{"x, ": '"tenant": "acme"', 'x"tenant': "acme"}),
            error_type="shop.orders.NotOutOfStock",
            traceback="in handler.py, line 7: it's 100% broken \\ here",
        ),
        replace(parked("d", minutes=3), channel="mails", message=_message(b"5000_of", first="1", tenant="acme")),
    ]


def _message(payload: bytes, **headers: str) -> Message[bytes]:
    return Message(payload, headers)


def _after(minutes: float) -> datetime:
    return _FIRST + timedelta(minutes=minutes)


_MEANT = [
    pytest.param(which, meant, id=str(which))
    for which, meant in [
        (DeadLetterFilter(), "abcd"),
        (DeadLetterFilter(endpoint="Orders.place"), "ad"),
        (DeadLetterFilter(endpoint="Orders"), ""),
        (DeadLetterFilter(channel="mails"), "cd"),
        (DeadLetterFilter(channel="mail%"), ""),
        (DeadLetterFilter(channel="mails", endpoint="Orders.place"), "d"),
        (DeadLetterFilter(error_type="shop.orders.OutOfStock"), "ad"),
        (DeadLetterFilter(error_type="OutOfStock"), "abd"),
        (DeadLetterFilter(error_type="outofstock"), ""),
        (DeadLetterFilter(error_type="orders.OutOfStock"), "ad"),
        (DeadLetterFilter(since=_after(1)), "bcd"),
        (DeadLetterFilter(since=_after(1).astimezone(timezone(timedelta(hours=9)))), "bcd"),
        (DeadLetterFilter(until=_after(1)), "a"),
        (DeadLetterFilter(since=_after(1), until=_after(3)), "bc"),
        (DeadLetterFilter(tenant="acme"), "ad"),
        (DeadLetterFilter(headers={"tenant": "Acme"}), "b"),
        (DeadLetterFilter(headers={"tenant": "acme", "first": "1"}), "d"),
        (DeadLetterFilter(headers={"tenant": "x"}), ""),
        (DeadLetterFilter(headers={"tenant": ""}), ""),
        (DeadLetterFilter(headers={"city": "Łódź"}), "b"),
        (DeadLetterFilter(headers={"quoted": 'say "tenant": "x"'}), "b"),
        (DeadLetterFilter(headers={'x"tenant': "acme"}), "c"),
        (DeadLetterFilter(text="none left"), "acd"),
        (DeadLetterFilter(text="50%_of"), "a"),
        (DeadLetterFilter(text="0_of"), "d"),
        (DeadLetterFilter(text="Grüße"), "b"),
        (DeadLetterFilter(text="Łódź"), "b"),
        (DeadLetterFilter(text="it's 100% broken \\ here"), "c"),
        (DeadLetterFilter(text="NotOutOfStock"), "c"),
        (DeadLetterFilter(text=" raw"), "c"),
        (DeadLetterFilter(text="\x00 raw"), "c"),
        (DeadLetterFilter(text="\ud800", endpoint="\ud800", headers={"\x00": "\ud800"}), ""),
        (DeadLetterFilter(text="'; DROP TABLE ecotone_dead_letter; --"), ""),
        (DeadLetterFilter(text="none left", channel="mails", tenant="acme", since=_after(0)), "d"),
    ]
]


@pytest.mark.anyio
class StoreConformance(Hooks):
    """What every store must do. Subclass it and implement a hook for each store that the adapter has.

    A hook that is not implemented skips the cases that need it, and the reason says so. Within a case, all calls of a
    hook open the same store, as two processes would; each case begins with an empty one.

    Example:
        ```python
        class TestMemoryStores(StoreConformance):
            @pytest.fixture(autouse=True)
            def memory(self) -> None:
                self.store = MemoryDeadLetters()

            @asynccontextmanager
            async def dead_letters(self) -> AsyncIterator[DeadLetterStore]:
                yield self.store
        ```
    """

    # ---------------------------------------------------------------------------------------------------------- hooks

    def dead_letters(self) -> AbstractAsyncContextManager[DeadLetterStore]:
        """Hook: open the store of dead letters, and close it in the end."""
        self._skip_without("dead_letters", "a store of dead letters")

    # --------------------------------------------------------------------------------------------------- dead letters

    async def test_a_parked_message_is_kept_with_every_detail(self) -> None:
        """Bytes, headers, failure and counts are the same for every process."""
        letter = parked("one")
        async with self.dead_letters() as store:
            await store.park(letter)

        async with self.dead_letters() as store:
            assert await store.get("one") == letter
            assert list(await store.list()) == [letter]
            assert await store.count() == 1

    @pytest.mark.parametrize(
        "payload",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"\x00", id="one zero byte"),
            pytest.param(bytes(range(256)), id="every byte"),
            pytest.param(b"\xff" * 1024 * 1024, id="1 MiB"),
        ],
    )
    async def test_any_parked_bytes_survive(self, payload: bytes) -> None:
        """A message that could not be decoded is kept as it came."""
        async with self.dead_letters() as store:
            await store.park(replace(parked("one"), message=Message(payload, {HeaderName.id: "one"})))

            assert (await store.get("one")).message.payload == payload

    async def test_any_text_survives(self) -> None:
        """Headers, errors and tracebacks may say anything, at any length."""
        text = "Grüße, 世界 \N{PILE OF POO} \"'`\\ {} %s $1 :name; --\r\n\t"
        letter = replace(
            parked("one"),
            message=Message(b"", {HeaderName.id: "one", "empty": "", "text": text, "Ключ": "x" * 4096}),
            error_message=text * 1000,
            traceback=text * 1000,
        )

        async with self.dead_letters() as store:
            await store.park(letter)

            assert await store.get("one") == letter

    async def test_a_failure_without_endpoint_is_kept(self) -> None:
        """A message whose handler could not even be told is a dead letter, too."""
        letter = replace(parked("one"), endpoint=None, traceback="", attempts=0, first_failed_at=None)

        async with self.dead_letters() as store:
            await store.park(letter)

            assert await store.get("one") == letter

    async def test_one_message_may_be_parked_for_several_handlers(self) -> None:
        """The id in the dead letter tells them apart, not the id of the message."""
        message = Message(b"hello", {HeaderName.id: "message"})
        letters = [replace(parked(parked_id), message=message) for parked_id in ("one", "two")]

        async with self.dead_letters() as store:
            for letter in letters:
                await store.park(letter)

            assert [await store.get("one"), await store.get("two")] == letters

    async def test_parking_again_replaces_what_is_there(self) -> None:
        """A message that was replayed and failed again is one dead letter, with its latest failure."""
        again = replace(parked("one", minutes=1), error_message="again", attempts=9, endpoint=None)

        async with self.dead_letters() as store:
            await store.park(parked("one"))
            await store.park(again)

            assert await store.get("one") == again
            assert await store.count() == 1

    async def test_the_newest_are_listed_first_page_by_page(self) -> None:
        """Whatever the order of parking was."""
        async with self.dead_letters() as store:
            for minutes in (3, 1, 5, 2, 4):
                await store.park(parked(f"after {minutes}", minutes=minutes))

            assert [letter.id for letter in await store.list()] == [f"after {minutes}" for minutes in (5, 4, 3, 2, 1)]
            assert [letter.id for letter in await store.list(limit=2)] == ["after 5", "after 4"]
            assert [letter.id for letter in await store.list(limit=2, offset=3)] == ["after 2", "after 1"]
            assert list(await store.list(offset=5)) == []

    async def test_a_deleted_message_is_gone(self) -> None:
        """The others stay."""
        async with self.dead_letters() as store:
            await store.park(parked("one"))
            await store.park(parked("two"))
            await store.delete("one")

            assert [letter.id for letter in await store.list()] == ["two"]
            assert await store.count() == 1
            with pytest.raises(DeadLetterNotFoundError, match="one"):
                await store.get("one")
            with pytest.raises(DeadLetterNotFoundError, match="one"):
                await store.delete("one")

    async def test_what_says_something_else_by_now_is_not_deleted(self) -> None:
        """Who has read it before it was edited neither replays nor deletes what it says now."""
        async with self.dead_letters() as store:
            odd = {"id": "1", "quote": 'it\'s "so"', "umlaut": "ä\U0001f600"}
            before = replace(parked("one"), message=Message(b"\x00\xff'", odd))
            for after in (Message(b"\x00\xff", odd), Message(b"\x00\xff'", {**odd, "more": "1"})):
                await store.park(replace(before, message=after))
                with pytest.raises(DeadLetterNotFoundError, match="one"):
                    await store.delete("one", saying=before.message)
                assert (await store.get("one")).message == after
            await store.park(before)
            await store.delete("one", saying=(await store.get("one")).message)

            assert await store.count() == 0

    async def test_an_empty_dead_letter_is_no_error(self) -> None:
        """There is nothing to list and nothing to get."""
        async with self.dead_letters() as store:
            assert list(await store.list()) == []
            assert await store.count() == 0
            with pytest.raises(DeadLetterNotFoundError, match="nobody"):
                await store.get("nobody")

    @pytest.mark.parametrize(("which", "meant"), _MEANT)
    async def test_those_that_are_meant_are_found(self, which: DeadLetterFilter, meant: str) -> None:
        """Listing, counting and deleting agree on it, with one another and with every other store."""
        async with self.dead_letters() as store:
            for letter in _letters():
                await store.park(letter)

            assert "".join(await store.ids(which)) == meant
            assert "".join(letter.id for letter in await store.list(which)) == meant[::-1]
            assert "".join(letter.id for letter in await store.list(which, limit=1, offset=1)) == meant[::-1][1:2]
            assert await store.count(which) == len(meant)
            assert await store.delete_all(which) == len(meant)
            assert await store.count(which) == 0
            assert "".join(await store.ids()) == "".join(one for one in "abcd" if one not in meant)

    async def test_all_can_be_deleted(self) -> None:
        """Without a filter, everything is meant."""
        async with self.dead_letters() as store:
            assert await store.delete_all() == 0
            await store.park(parked("one"))
            await store.park(parked("two"))

            assert list(await store.ids()) == ["one", "two"]
            assert await store.delete_all() == 2
            assert await store.count() == 0

    async def test_parking_takes_part_in_the_transaction(self) -> None:
        """A message is parked with what else the transaction writes, or not at all."""
        async with self.dead_letters() as store:
            async with self._rolled_back():
                await store.park(parked("rolled back"))
            async with self.transaction():
                await store.park(parked("committed"))

            assert [letter.id for letter in await store.list()] == ["committed"]

    async def test_deleting_takes_part_in_the_transaction(self) -> None:
        """A replay that fails leaves the dead letter where it is."""
        async with self.dead_letters() as store:
            await store.park(parked("kept"))
            await store.park(parked("deleted"))
            async with self._rolled_back():
                await store.delete("kept")
                await store.delete_all()
            async with self.transaction():
                await store.delete("deleted")

            assert [letter.id for letter in await store.list()] == ["kept"]
