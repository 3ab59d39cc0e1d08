"""Personal data: a converter of the user's encrypts what is written of a marked type, in the store and beside it."""

import hashlib
import json
import secrets
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import pytest
from pydantic import TypeAdapter

from ecotone_fastapi import (
    EventStore,
    applies,
    command_handler,
    event_sourced,
    message_name,
    query_handler,
)
from ecotone_fastapi.adapters.memory import MemoryEvents, MemorySnapshots
from ecotone_fastapi.core.errors import AggregateError
from ecotone_fastapi.modelling.event_storage import START, EventStorage
from ecotone_fastapi.modelling.snapshots import SnapshotStore
from ecotone_fastapi.testing import flow_test


def personal(cls: type) -> type:
    """Mark a class whose objects are about a person: `person_id` says about whom."""
    cls.is_personal = True  # type: ignore[attr-defined]
    return cls


class Sealing:
    """Encrypts by a key for each person. Who deletes the key deletes all that was ever written about the person.

    The cipher is one for a test: a real one comes from a library.
    """

    content_type = "application/vnd.shop.sealed"

    def __init__(self) -> None:
        self.keys: dict[str, bytes] = {}

    def handles(self, type_: Any) -> bool:
        return getattr(type_, "is_personal", False)

    def encode(self, value: Any) -> bytes:
        key = self.keys.setdefault(value.person_id, secrets.token_bytes(16))
        plain = TypeAdapter(type(value)).dump_json(value)
        return json.dumps({"person": value.person_id, "sealed": _mixed(plain, key).hex()}).encode()

    def decode(self, data: bytes, type_: Any) -> Any:
        envelope = json.loads(data)
        if envelope["person"] not in self.keys:
            raise ValueError(f"the key of {envelope['person']} was deleted")
        plain = _mixed(bytes.fromhex(envelope["sealed"]), self.keys[envelope["person"]])
        return TypeAdapter(type_).validate_json(plain)


def _mixed(data: bytes, key: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(data, cycle(hashlib.sha256(key).digest()), strict=False))


@personal
@message_name("patient.admitted")
@dataclass(frozen=True)
class PatientWasAdmitted:
    person_id: str
    name: str


@message_name("patient.moved")
@dataclass(frozen=True)
class PatientWasMoved:
    room: int


@personal
@event_sourced(identifier="person_id", stream="patient", snapshots=2)
@dataclass
class Patient:
    person_id: str
    name: str = ""
    room: int = 0

    @classmethod
    @command_handler("patient.admit")
    def admit(cls, who: dict[str, str]) -> PatientWasAdmitted:
        return PatientWasAdmitted(who["id"], who["name"])

    @command_handler("patient.move")
    def move(self, room: int) -> PatientWasMoved:
        return PatientWasMoved(room)

    @query_handler("patient.where")
    def where(self) -> str:
        return f"{self.name} in {self.room}"

    @applies
    def admitted(self, event: PatientWasAdmitted) -> None:
        self.person_id, self.name = event.person_id, event.name

    @applies
    def moved(self, event: PatientWasMoved) -> None:
        self.room = event.room


async def test_events_and_snapshots_of_a_marked_type_are_written_encrypted_and_read_again() -> None:
    sealing, storage, snapshots = Sealing(), MemoryEvents(), MemorySnapshots()
    async with flow_test(
        [Patient], converters=[sealing], services={EventStorage: storage, SnapshotStore: snapshots}
    ) as flow:
        await flow.send({"id": "1", "name": "Ada Lovelace"}, to="patient.admit")
        await flow.send(5, to="patient.move", headers={"aggregate.id": "1"})
        store: EventStore = flow.ecotone.assembly.services[EventStore]  # type: ignore[assignment]

        admitted, moved = (await storage.read_all(after=START, limit=10)).events
        assert b"Ada" not in admitted.body
        assert '"content_type":"application/vnd.shop.sealed"' in admitted.headers_text
        assert moved.body == b'{"room":5}'
        snapshot = await snapshots.load("patient-1")
        assert snapshot is not None
        assert b"Ada" not in snapshot.body

        everything = [event.payload async for event in store.all()]
        assert everything == [PatientWasAdmitted("1", "Ada Lovelace"), PatientWasMoved(5)]
        assert await flow.ask("1", to="patient.where") == "Ada Lovelace in 5"
        assert flow.published == everything


async def test_who_deletes_the_key_of_a_person_deletes_what_was_written_about_it() -> None:
    sealing = Sealing()
    async with flow_test([Patient], converters=[sealing]) as flow:
        await flow.send({"id": "1", "name": "Ada Lovelace"}, to="patient.admit")
        await flow.send({"id": "2", "name": "Grace Hopper"}, to="patient.admit")
        del sealing.keys["1"]

        with pytest.raises(AggregateError, match="the key of 1 was deleted"):
            await flow.ask("1", to="patient.where")
        assert await flow.ask("2", to="patient.where") == "Grace Hopper in 0"
