"""Replicas' messages between peers: many slots' in one message, sent once a turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from meshq.batch import Buffer
from meshq.ids import SYSTEM_SLOT, PeerId, Slot
from meshq.limits import MIB
from meshq.messages import Replicate
from meshq.peer.core.context import Context
from meshq.peer.core.links import Links
from meshq.peer.core.slots import Slots
from meshq.replication import wire
from meshq.replication.quorum import Node
from meshq.replication.words import Message
from meshq.streams.publish import check_payload

FRAMES = 64  # payload frames of one message
BYTES = MIB  # a message is closed once it is this big
COUNT = 1_024  # messages of replicas in one


@dataclass(slots=True)
class _Going:
    messages: list[msgspec.Raw] = field(default_factory=list)
    payloads: list[Buffer] = field(default_factory=list)
    bytes: int = 0


@dataclass
class Replicating:
    ctx: Context
    links: Links
    going: dict[PeerId, _Going] = field(default_factory=dict)  # of this turn

    def send(self, to: Node, slot: Slot, message: Message) -> None:
        raw, payloads = wire.encode(slot, Node(self.ctx.me.peer, self.ctx.me.disk), to, message)
        going = self.going.setdefault(to.peer, _Going())
        size = len(raw) + sum(map(len, payloads))  # a piece of a snapshot is in its message
        full = len(going.messages) >= COUNT or (going.messages and going.bytes + size > BYTES)
        if full or len(going.payloads) + len(payloads) > FRAMES:
            self._flush(to.peer, going)
            going = self.going[to.peer] = _Going()
        going.messages.append(raw)
        going.payloads += payloads
        going.bytes += size

    def flush(self) -> None:
        going, self.going = self.going, {}
        for peer, messages in going.items():
            self._flush(peer, messages)

    def _flush(self, peer: PeerId, going: _Going) -> None:
        if going.messages and not self.links.send(peer, Replicate(going.messages), tuple(going.payloads)):
            self.ctx.count("replication_unsent")

    def on_replicate(
        self, peer: PeerId, message: Replicate, payloads: Sequence[Buffer], slots: Slots
    ) -> None:
        """Raises: RemoteProtocolError."""
        for outer, inner in wire.decode(message, payloads, check=check_payload):
            exists = outer.slot < self.ctx.registry.slots or outer.slot == SYSTEM_SLOT
            if outer.to_disk == self.ctx.me.disk and exists:
                slots.on_message(Node(peer, outer.from_disk), Slot(outer.slot), inner)
