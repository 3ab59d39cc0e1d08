"""A message knows the type of what it says."""

from dataclasses import dataclass
from typing import assert_type

from ecotone_fastapi.core.message import Message


@dataclass(frozen=True)
class PlaceOrder:
    order_id: str


def a_message_keeps_the_type_of_its_payload(message: Message[PlaceOrder]) -> None:
    assert_type(message.payload, PlaceOrder)
    assert_type(message.with_headers({"tenant": "acme"}), Message[PlaceOrder])


def another_payload_is_another_type(message: Message[PlaceOrder]) -> None:
    assert_type(message.with_payload(b"{}"), Message[bytes])
    assert_type(message.caused(1), Message[int])
