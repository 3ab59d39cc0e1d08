"""How what others have written is read, and kept from the driver before. No server is needed for that."""

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.frame import FrameTypes, marshal, unmarshal
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from ecotone_fastapi.adapters.rabbitmq.properties import Properties, properties_of
from ecotone_fastapi.adapters.rabbitmq.sealing import SealingReader, sealed, unsealed
from tests.adapters import strangers

# ---------------------------------------------------------------------------------------------------- the properties

texts = st.text(max_size=20)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001
    lambda moment: moment.replace(microsecond=0)
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | texts
    | moments
    | st.binary(max_size=20).map(bytearray),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


def written(properties: dict[str, Any]) -> bytes:
    """The properties as the driver writes them."""
    return Basic.Properties(**properties).marshal()


@given(
    headers=st.dictionaries(texts, values, max_size=5),
    short=st.fixed_dictionaries(
        {},
        optional={
            name: st.text(min_size=1, max_size=20)
            for name in (
                "content_type",
                "content_encoding",
                "correlation_id",
                "reply_to",
                "expiration",
                "message_id",
                "message_type",
                "user_id",
                "app_id",
            )
        },
    ),
    others=st.fixed_dictionaries(
        {}, optional={"delivery_mode": st.just(2), "priority": st.integers(0, 255), "timestamp": moments}
    ),
)
def test_properties_are_read_as_the_driver_reads_them(
    headers: dict[str, Any], short: dict[str, str], others: dict[str, Any]
) -> None:
    data = written({"headers": headers, **short, **others})
    theirs = unmarshal(strangers.content(data, b""))[2]
    assert isinstance(theirs, ContentHeader)

    ours = properties_of(data)

    assert ours.headers == theirs.properties.headers
    assert ours.type == theirs.properties.message_type
    for name in ("content_type", "correlation_id", "expiration", "message_id", "timestamp"):
        assert getattr(ours, name) == getattr(theirs.properties, name)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"t\x07", True),
        (b"b\xff", -1),
        (b"B\xff", 255),
        (b"s\xff\xff", -1),
        (b"u\xff\xff", 65_535),
        (b"I\xff\xff\xff\xff", -1),
        (b"i\xff\xff\xff\xff", 2**32 - 1),
        (b"l" + b"\xff" * 8, -1),
        (b"L" + b"\xff" * 8, -1),
        (b"f\x3f\xc0\0\0", 1.5),
        (b"d\x3f\xf8" + b"\0" * 6, 1.5),
        (b"D\x02\0\0\0\x7d", Decimal("1.25")),
        (b"D\x02\xff\xff\xff\xff", Decimal("-0.01")),
        (b"T" + (1_000).to_bytes(8, "big"), datetime(1970, 1, 1, 0, 16, 40, tzinfo=UTC)),
        (b"T" + (1_700_000_000_000).to_bytes(8, "big"), datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        (b"T" + b"\xff" * 8, 2**64 - 1),
        (b"V", None),
        (b"\0", None),
        (b"S\0\0\0\x01\xff", "�"),
        (b"x\0\0\0\x01\xff", b"\xff"),
        (b"Zanything", b"anything"),
    ],
)
def test_every_type_of_value_is_known(value: bytes, expected: Any) -> None:
    read = properties_of(strangers.headers((b"before", b"t\x01"), (b"value", value))).headers

    assert read == {"before": True, "value": expected}
    assert type(read["value"]) is type(expected)


def test_a_value_of_an_unknown_type_takes_the_rest_of_its_table_and_nothing_else() -> None:
    inner = b"F" + strangers.table((b"unknown", b"Z123"), (b"lost", b"t\x01"))

    read = properties_of(
        strangers.properties(
            (strangers.HEADERS, strangers.table((b"inner", inner), (b"after", b"t\x01"))),
            (strangers.MESSAGE_ID, strangers.short(b"1")),
        )
    )

    assert read.headers == {"inner": {"unknown": b"123\x04lostt\x01"}, "after": True}
    assert read.message_id == "1"


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_as_far_as_it_goes(data: bytes) -> None:
    assert isinstance(properties_of(data), Properties)


def test_what_is_cut_short_is_read_up_to_there() -> None:
    whole = strangers.properties(
        (strangers.CONTENT_TYPE, strangers.short(b"text/plain")),
        (strangers.HEADERS, strangers.table((b"a", strangers.text(b"1")), (b"b", b"T" + bytes(8)))),
        (strangers.MESSAGE_ID, strangers.short(b"1")),
    )

    for end in range(len(whole)):
        cut = properties_of(whole[:end])
        assert cut.content_type in (None, "text/plain"[: max(0, end - 3)])
        assert cut.message_id in (None, "")
    assert properties_of(whole).message_id == "1"


def test_lists_that_lie_about_their_length_are_not_read_again_and_again() -> None:
    """Each says that it is as long as four gigabytes and has to end with the one around it."""
    lie = b"A\xff\xff\xff\xff" * 30

    assert properties_of(strangers.headers((b"lies", lie + b"t\x01" * 1_000))).headers.keys() == {"lies"}


# -------------------------------------------------------------------------------------------------------- the frames


def frames_of(data: bytes) -> list[FrameTypes]:
    frames = []
    while data:
        length, channel, frame = unmarshal(data)
        assert channel in (0, 1)
        frames.append(frame)
        data = data[length:]
    return frames


STRANGE = strangers.headers((b"\xff", strangers.text(b"value")))
STREAM = b"".join(
    (
        marshal(Basic.QosOk(), 1),
        marshal(Basic.Deliver("ecotone-1", 7, True, "orders", "placed"), 1),
        strangers.content(STRANGE, b"first"),
        marshal(Heartbeat(), 0),
        marshal(Basic.Deliver("ecotone-1", 8, False, "", "queue"), 1),
        strangers.content(b"\0\0", b"second"),
        marshal(Basic.CancelOk("ecotone-1"), 1),
    )
)


def assert_is_sealed(data: bytes) -> None:
    """To the driver it looks like any other frames."""
    frames = frames_of(data)
    kinds = [Basic.QosOk, Basic.Deliver, ContentHeader, ContentBody, Heartbeat, Basic.Deliver, ContentHeader]
    assert [type(frame) for frame in frames] == [*kinds, ContentBody, Basic.CancelOk]
    delivers = [frame for frame in frames if isinstance(frame, Basic.Deliver)]
    assert [(one.consumer_tag, one.delivery_tag, one.redelivered) for one in delivers] == [
        ("ecotone-1", 7, True),
        ("ecotone-1", 8, False),
    ]
    assert {(one.exchange, one.routing_key) for one in delivers} == {("", "")}
    headers = [frame for frame in frames if isinstance(frame, ContentHeader)]
    assert [header.body_size for header in headers] == [5, 6]
    assert [unsealed(header).headers for header in headers] == [{"�": "value"}, {}]
    assert [frame.value for frame in frames if isinstance(frame, ContentBody)] == [b"first", b"second"]


def test_frames_are_sealed_so_that_the_driver_can_read_them() -> None:
    rest = STREAM[:9]
    arrived = bytearray(STREAM + rest)

    assert_is_sealed(sealed(arrived))

    assert arrived == rest  # what is no whole frame stays


@pytest.mark.parametrize("size", [1, 7, 8, 100, len(STREAM)])
async def test_frames_may_come_in_parts_of_any_size(size: int) -> None:
    socket = asyncio.StreamReader()
    reader = SealingReader(socket)

    async def read(frames: int) -> bytes:
        data = bytearray()
        for _ in range(frames):
            head = await reader.readexactly(1) + await reader.readexactly(6)
            data += head + await reader.readexactly(int.from_bytes(head[3:]) + 1)
        return bytes(data)

    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read(9))
        for start in range(0, len(STREAM), size):
            socket.feed_data(STREAM[start : start + size])
            await checkpoint()
    assert_is_sealed(reading.result())
    assert not reader.at_eof()
    socket.feed_eof()
    assert reader.at_eof()


async def test_a_large_payload_passes_as_it_is() -> None:
    payload = bytes(range(256)) * 2_000
    socket = asyncio.StreamReader()
    reader = SealingReader(socket)
    socket.feed_data(strangers.content(STRANGE, payload))
    socket.feed_eof()

    header, *parts = frames_of(await reader.read())

    assert isinstance(header, ContentHeader)
    assert header.body_size == len(payload)
    assert b"".join(part.value for part in parts if isinstance(part, ContentBody)) == payload


async def test_a_connection_that_ends_within_a_frame_is_noticed() -> None:
    socket = asyncio.StreamReader()
    reader = SealingReader(socket)
    socket.feed_data(STREAM[:20])
    socket.feed_eof()
    whole = unmarshal(STREAM)[0]

    assert not reader.at_eof()
    assert await reader.readexactly(whole) == STREAM[:whole]
    with pytest.raises(asyncio.IncompleteReadError) as raised:
        await reader.readexactly(100)
    assert raised.value.partial == STREAM[whole:20]
    assert reader.at_eof()
    assert await reader.read() == b""


async def test_what_is_no_frame_is_left_to_the_driver() -> None:
    """A server of another version answers like this, and hangs up."""
    socket = asyncio.StreamReader()
    reader = SealingReader(socket)
    socket.feed_data(b"AMQP\x00\x00\x09\x01")
    socket.feed_eof()

    assert await reader.read(4) == b"AMQP"
    assert await reader.read() == b"\x00\x00\x09\x01"
    assert reader.at_eof()


async def test_a_connection_that_breaks_raises_what_the_socket_raises() -> None:
    socket = asyncio.StreamReader()
    reader = SealingReader(socket)
    socket.set_exception(ConnectionResetError("gone"))

    with pytest.raises(ConnectionResetError, match="gone"):
        await reader.readexactly(1)
