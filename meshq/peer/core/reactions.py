"""Reactions: what follows in the other parts when one of them says that something happened.

A part knows what it is about and no more; who else has to hear of it stands here. What follows when the
registry changed is in `changes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshq.batch import Buffer
from meshq.errors import MeshqError, NotOwner
from meshq.ids import PeerId, Ref, Session, Slot
from meshq.messages import (
    KEEP_ALL,
    Answer,
    Failure,
    Pong,
    ServerMessage,
    Welcome,
)
from meshq.peer.core.events import (
    TellRolledBack,
)
from meshq.peer.core.hosts import Host
from meshq.peer.core.registrar import REGISTRY
from meshq.replication.quorum import Node
from meshq.streams.applied import Compacted, Retained, Stored
from meshq.streams.groups.table import GroupApplied

if TYPE_CHECKING:
    from meshq.peer.core.core import PeerCore


@dataclass
class Reactions:
    core: PeerCore

    # ------------------------------------------------------------------------------------------ slots
    def on_stored(self, host: Host, stored: Stored, payload: Buffer, copies: Mapping[Node, int]) -> None:
        """A batch is committed in a slot led here. `copies`: up to which entry each node has it on disk."""
        info = self.core.ctx.topic(stored.partition.topic_id)
        self.core.publishing.on_stored(host, stored, payload, copies, info)
        self.core.consuming.desks.on_stored(stored, payload)
        if info is not None and info.retain != KEEP_ALL:
            self.core.retaining.on_stored(stored.partition)
            self.core.compacting.on_stored(stored.partition)

    def on_retained(self, retained: Retained) -> None:
        self.core.reading.on_retained(retained)
        self.core.consuming.desks.on_retained(retained)
        self.core.retaining.on_retained(retained)

    def on_group(self, applied: GroupApplied) -> None:
        """An entry about a group is committed."""
        self.core.consuming.desks.on_applied(applied)

    def on_compacted(self, applied: Compacted) -> None:
        self.core.compacting.on_compacted(applied)

    def on_written(self, host: Host) -> None:
        """What was compacted is on disk."""
        self.core.compacting.on_written(host)

    def on_lost(self, host: Host, error: MeshqError) -> None:
        """What was proposed there is not decided."""
        self.core.publishing.receipts.on_lost(host, error)
        self.core.consuming.desks.on_refused(host.slot, error)
        self.core.retaining.on_lost(host)
        self.core.compacting.on_lost(host)

    def on_session_gone(self, session: Session) -> None:
        self.core.ctx.deliveries.on_session_gone(session)
        self.core.consuming.on_session_gone(session)

    def on_refused(self, ref: Ref, error: MeshqError) -> None:
        """Somebody who waits for what was proposed waits in vain."""
        (door, _), number = ref
        if door == REGISTRY:
            self.core.registrar.on_refused(number, error)
        else:
            self.core.ctx.fail(*ref, error)

    def on_members(self) -> None:
        """Who keeps copies has changed."""
        self.core.liveness.on_roles_changed()  # the leader tells those that keep one, whatever its role did
        self.core.placing.on_slot_changed()

    def on_role(self, host: Host) -> None:
        """Who leads has changed."""
        self.core.placing.on_slot_changed()
        self.core.liveness.on_roles_changed()
        self.core.whereabouts.on_role(host)
        if host.leads:
            self.core.changes.look_for_deleted = True
            self.core.consuming.burying.on_led(host.slot)
            self.core.registrar.doubt_level()
            self.core.retaining.on_role(host)
            self.core.compacting.on_role(host)
        else:
            self._end_reads_of(host.slot)
            self.core.consuming.on_slot_lost(host.slot)

    def _end_reads_of(self, slot: Slot) -> None:
        for partition in self.core.ctx.deliveries.partitions_read():
            if self.core.ctx.slot_of(partition) == slot:
                gone = NotOwner(f"slot {slot} is not led here any more", retry_after_ms=50)
                self.core.reading.on_partition_gone(partition, gone)

    # ---------------------------------------------------------------------------------- other peers
    def on_peer_up(self, peer: PeerId) -> None:
        self.core.whereabouts.on_peer_up(peer)
        self.core.slots.on_peer_linked(peer)

    def on_peer_down(self, peer: PeerId) -> None:
        self.core.registrar.on_link_down(peer)

    def on_welcome(self, peer: PeerId, message: Welcome) -> None:
        self.core.disks.judge(peer, message.disk, message.epoch, message.boot)
        self.core.clocks.on_heard(peer, message.now_ms)
        if message.rolled_back:
            self.core.disks.on_told(peer)

    def on_rolled_back(self, peer: PeerId) -> None:
        self.core.slots.freeze()
        self.core.ctx.out.append(TellRolledBack(peer))

    def on_peer_gone(self, peer: PeerId) -> None:
        self.core.liveness.on_gone(peer)

    def on_peer_message(self, peer: PeerId, message: ServerMessage) -> None:
        match message:
            case Answer() | Failure():
                if not self.core.registrar.on_answer(message):
                    self.core.admin.on_answer(peer, message)
            case Pong():
                round_trip_s = self.core.links.on_pong(peer, message.token)
                self.core.clocks.on_heard(peer, message.now_ms, round_trip_s=round_trip_s)
            case _:
                pass  # Routes: every peer computes its own
