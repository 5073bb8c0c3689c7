"""The peer's core: takes each event to the part that decides, and collects what is to be done.

    MessageArrived ──> requests (by key)  ──> Hello/Ping        sessions
                                              Resolve/Watch     naming     ──> registrar ──> slots
                                              Produce           publishing ──> slots ──> disk ──> receipts
                                              Read/Credit       reading    <── deliveries <─┘
                                              Ask               admin
                                              Replicate, Beat   replicating ──> slots, liveness
    LinkMessage    ──> registrar (answers of who leads it), admin
    Ticked         ──> links, registrar, liveness, slots (elections, checkpoints), placing, sessions

Nothing here does I/O, reads a clock or draws a random number: the shell and the simulator drive the same
object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, assert_never

from meshq.entries import Entry
from meshq.errors import MeshqError
from meshq.ids import SYSTEM_SLOT, Slot
from meshq.levels import check_understood
from meshq.peer.core.absences import Absences
from meshq.peer.core.admin import Admin
from meshq.peer.core.changes import Changes
from meshq.peer.core.clocks import Clocks
from meshq.peer.core.compacting import Compacting
from meshq.peer.core.consuming import Consuming
from meshq.peer.core.context import Context, CoreSettings, Me
from meshq.peer.core.declared import Declared
from meshq.peer.core.desks import GROUPS
from meshq.peer.core.disks import Disks
from meshq.peer.core.draining import Draining
from meshq.peer.core.events import (
    PEERS,
    BatchesFetched,
    BatchesSurveyed,
    Effect,
    Event,
    LinkDown,
    LinkMessage,
    LinkProbeWanted,
    LinkUp,
    MalformedArrived,
    MemberSeen,
    MembershipNoticed,
    MessageArrived,
    PayloadsDeleted,
    PayloadsRead,
    PeersRegistered,
    ProposalMade,
    RoomMeasured,
    RoundTripsMeasured,
    RowsRead,
    SessionClosed,
    Settle,
    SlotLogRead,
    Ticked,
    TimeSought,
    UdpSeen,
    WritesDone,
    WritesFailed,
)
from meshq.peer.core.fanning import FanOut
from meshq.peer.core.fetching import Fetching
from meshq.peer.core.group_answers import GroupAnswers
from meshq.peer.core.group_parts import GroupParts
from meshq.peer.core.grouping import Grouping
from meshq.peer.core.handing_over import hand_over
from meshq.peer.core.health import Health
from meshq.peer.core.hosts import Tail
from meshq.peer.core.leaving import Leaving
from meshq.peer.core.links import Links
from meshq.peer.core.liveness import Liveness
from meshq.peer.core.lookups import LOOKUPS
from meshq.peer.core.membership import MembershipView
from meshq.peer.core.mending import Mending
from meshq.peer.core.naming import Naming
from meshq.peer.core.overview import Overview
from meshq.peer.core.pacing import Pacing
from meshq.peer.core.placing import Placing
from meshq.peer.core.publishing import Publishing
from meshq.peer.core.reactions import Reactions
from meshq.peer.core.reading import Reading
from meshq.peer.core.recovering import Recovering
from meshq.peer.core.registrar import Registrar
from meshq.peer.core.replicating import Replicating
from meshq.peer.core.requests import Requests
from meshq.peer.core.rereading import Rereading
from meshq.peer.core.retaining import Retaining
from meshq.peer.core.slots import Slots
from meshq.peer.core.whereabouts import Whereabouts
from meshq.registry import commands
from meshq.registry.state import GENESIS_DISK, Registry
from meshq.replication.placement import genesis_config
from meshq.replication.quorum import Config, Node
from meshq.replication.system import system_genesis
from meshq.security.certificates import Certificate

if TYPE_CHECKING:
    import random

TICK_S = 0.1
LONE_TICK_S = 0.5  # with nobody to wait for
RECHECK_S = 1.0  # how long an expired certificate may go on reading
PRESENTED_MAX = 64  # certificates shown at the door and not registered here yet; the oldest makes room


class PeerCore:
    """One peer. `restore_*`, then `start`, then `handle` for everything that happens."""

    def __init__(
        self,
        me: Me,
        registry: Registry,
        *,
        settings: CoreSettings,
        random_id: Callable[[], bytes],
        rng: random.Random,
    ) -> None:
        self.ctx = Context(me, settings, registry, random_id)
        self.reactions, self.changes = Reactions(self), Changes(self)
        self._make_slots(rng)
        self._make_placement()
        self._make_registry()
        self._make_admin()
        self.requests = Requests(self)
        self._next_tick = 0.0
        self._recheck_at = 0.0

    def _make_slots(self, rng: random.Random) -> None:
        """Other peers, the slots held here, and what clients do with them."""
        ctx, react = self.ctx, self.reactions
        self.links = Links(
            ctx, react.on_peer_up, react.on_peer_down, react.on_peer_message, react.on_welcome,
            react.on_peer_gone,
        )  # fmt: skip
        self.disks = Disks(ctx, react.on_rolled_back)
        self.replicating = Replicating(ctx, self.links)
        self.slots = slots = Slots(
            Node(ctx.me.peer, ctx.me.disk), ctx.out, ctx.disk, rng, self._genesis_of, self.replicating.send,
            react, ctx.count, Pacing(ctx.settings.move_bytes_s),
        )  # fmt: skip
        ctx.sessions.on_closed = react.on_session_gone
        self.publishing = Publishing(ctx, slots)
        self.reading = Reading(ctx, slots)
        self.consuming = Consuming(ctx, slots, rng)
        self.retaining = Retaining(ctx, slots)
        self.compacting = Compacting(ctx, slots, self.retaining.is_looking)
        self.retaining.is_rewritten = self.compacting.is_busy

    def _make_placement(self) -> None:
        """Who is there, and where slots live."""
        ctx, links, slots = self.ctx, self.links, self.slots
        self.absences = Absences(ctx, links, slots)
        self.placing = Placing(ctx, links, slots, self.absences)
        self.liveness = Liveness(ctx, links, slots)
        self.whereabouts = Whereabouts(ctx, links, slots, self.placing)
        self.leaving = Leaving(ctx, links, slots, self.placing, self.whereabouts)
        self.membership = MembershipView(ctx, links, self.liveness)
        self.clocks = Clocks(ctx, self.membership.journal)
        ctx.clock_trusted = self.clocks.is_trusted

    def _make_registry(self) -> None:
        ctx = self.ctx
        leader = self.whereabouts.registry_leader
        self.registrar = Registrar(ctx, self.links, self.slots, self.changes.on_changes, leader)
        self.slots.system = self.registrar.stream
        self.consuming.burying.propose = self.registrar.propose
        self.consuming.burying.check_copies = self.publishing.receipts.check
        self.naming = Naming(ctx, self.registrar)
        self.declared = Declared(ctx, self.links, self.registrar)

    def _make_admin(self) -> None:
        """What administrators ask for, much of it of all peers together."""
        ctx, links, slots = self.ctx, self.links, self.slots
        fan_out = FanOut(ctx, links)
        self.mending = Mending(ctx, slots, fan_out)
        self.rereading = Rereading(ctx, slots, fan_out)
        self.fetching = Fetching(ctx, slots, self.reading, self.consuming, self.mending, self.rereading)
        self.draining = Draining(ctx, links, fan_out, self.registrar, slots, self.absences)
        self.health = Health(ctx, slots, self.placing, fan_out)
        overview = Overview(
            ctx, links, self.registrar, slots, self.whereabouts, self.declared, self.health, self.clocks
        )
        grouping = Grouping(
            ctx, fan_out, self.registrar, GroupAnswers(ctx, GroupParts(ctx, slots, self.consuming.desks))
        )
        self.admin = Admin(
            ctx, self.registrar, slots, self.whereabouts, self.membership.journal, fan_out, self.draining,
            Recovering(ctx, links, fan_out, slots, self.absences), self.mending, self.rereading,
            self.declared, grouping, overview,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------ beginning
    def restore_registry(self, rows: Mapping[bytes, bytes], entries: Iterable[Entry]) -> None:
        """Before any other slot; `entries` is the system slot's whole log."""
        self.registrar.restore(rows, entries)
        self.placing.on_peers_changed()

    def restore_local(self, rows: Mapping[bytes, bytes]) -> None:
        """What this peer keeps for itself; before any slot. Raises: StoreCorrupt."""
        self.disks.restore(rows)
        self.slots.frozen = self.disks.is_rolled_back
        self.clocks.restore(rows)

    def restore_slot(
        self, slot: Slot, rows: Mapping[bytes, bytes], *, tail: Tail, aside: Mapping[bytes, bytes]
    ) -> None:
        """`tail` are the entries behind the rows' applied index, with their payloads; `aside` is what is
        there of a snapshot.
        """
        self.slots.hosting.restore(slot, rows, tail=tail, aside=aside, now=self.ctx.now)

    def start(self, *, now: float, wall_ms: int, room_bytes: int) -> list[Effect]:
        """After restoring: what was left undone is taken up again. Raises: UsageError when this software is
        too old for the mesh.
        """
        check_understood(self.ctx.registry.level, self.ctx.settings.level)
        self._set_time(now, wall_ms)
        self.ctx.since_ms = wall_ms
        self.ctx.disk.room_bytes = room_bytes
        self.clocks.start()
        self.tell_peers()
        self.slots.hosting.begin([SYSTEM_SLOT], now=now)
        self.slots.hosting.begin((Slot(i) for i in range(self.ctx.registry.slots)), now=now)
        self.slots.tick()
        self.rereading.start()
        return self._take()

    def _set_time(self, now: float, wall_ms: int) -> None:
        self.ctx.now, self.ctx.wall_ms = now, wall_ms
        self.ctx.mesh_ms = self.clocks.on_time(now, wall_ms)
        self.slots.now, self.slots.wall_ms, self.ctx.disk.now = now, self.ctx.mesh_ms, now

    def tell_peers(self) -> None:
        self.liveness.on_peers_changed()
        self.ctx.out.append(PeersRegistered(tuple(self.ctx.known_peers())))

    def _genesis_of(self, slot: Slot) -> Config:
        if slot == SYSTEM_SLOT:
            founders = [Node(peer, GENESIS_DISK) for peer in self.ctx.registry.founders]
            return system_genesis(founders, first=Node(self.ctx.me.registry_peer, GENESIS_DISK))
        owners, witness = self.ctx.registry.genesis_owners[slot], self.ctx.registry.genesis_witnesses[slot]
        nodes = [Node(peer, GENESIS_DISK) for peer in owners]
        return genesis_config(nodes, Node(witness, GENESIS_DISK) if witness is not None else None)

    def on_presented(self, certificate: Certificate) -> None:
        """A peer this copy of the registry has not heard of showed a valid certificate: let it in
        meanwhile.
        """
        if certificate.curve_key in self.ctx.registry.peer_of_key:
            return
        if len(self.ctx.presented) >= PRESENTED_MAX:
            self.ctx.presented.pop(next(iter(self.ctx.presented)))
        self.ctx.presented[certificate.curve_key] = certificate
        self.tell_peers()

    def on_own_record(self, addresses: tuple[str, ...], incarnation: tuple[int, int]) -> None:
        """Where this peer can be found now, and the incarnation in which it says so."""
        self.whereabouts.changed |= self.membership.on_own_record(addresses, incarnation)

    def deadline(self) -> float:
        due, desks = self.liveness.support.due, self.consuming.desks
        return min(self._next_tick, self.slots.wake(), due, desks.wake_at)

    # ------------------------------------------------------------------------------------- handling
    def handle(self, event: Event, *, now: float, wall_ms: int) -> list[Effect]:
        self._set_time(now, wall_ms)
        match event:
            case MessageArrived():
                self.requests.on_message(event)
            case WritesDone():
                self.ctx.disk.on_done(event.tokens, event.room_bytes)
            case WritesFailed():
                self.ctx.disk.on_failed(event.error, event.room_bytes)
                self.changes.look_for_deleted = True  # a deletion may be among what was taken back
            case BatchesFetched():
                self.fetching.on_fetched(event)
            case TimeSought():
                if event.seek.sub[0][0] == GROUPS:
                    self.consuming.on_sought(event)
                elif event.seek.sub[0][0] == LOOKUPS:
                    self.ctx.lookups.on_sought(event)
                else:
                    self.reading.on_sought(event)
            case LinkMessage():
                self.links.on_link_message(event.peer, event.message)
            case LinkUp():
                self.links.on_link_up(event.peer)
            case LinkDown():
                self.links.on_link_down(event.peer, event.reason)
            case MemberSeen() | UdpSeen() | RoundTripsMeasured() | MembershipNoticed():
                self.whereabouts.changed |= self.membership.on_news(event)
            case LinkProbeWanted():
                self.links.probe(event.peer, event.payload)
            case SlotLogRead():
                self.fetching.on_log_read(event)
            case RowsRead():
                self.slots.on_rows_read(event.slot, event.to, event.rows)
            case PayloadsRead():
                self.fetching.on_payloads_read(event)
            case BatchesSurveyed():
                self.retaining.on_surveyed(event)
            case PayloadsDeleted():
                self.slots.on_payloads_deleted(event)
            case SessionClosed():
                self.consuming.on_unsent(event.session, event.unsent)
                self.ctx.sessions.close(event.session)
            case MalformedArrived():
                self.ctx.fail(event.session, 0, event.error)
            case ProposalMade():
                self._on_proposal(event)
            case RoomMeasured():
                self.ctx.disk.room_bytes = event.room_bytes
            case Ticked():
                self._on_tick()
            case _:
                assert_never(event)
        return self._take()

    def _on_tick(self) -> None:
        self.liveness.tick()
        self.slots.tick()
        self.consuming.desks.tick()
        if self.ctx.now < self._next_tick - TICK_S / 2:
            return  # what is nearly due is done with a beat: every waking costs an idle host
        self._next_tick = self.ctx.now + (LONE_TICK_S if self._is_lone() else TICK_S)
        self.links.tick()
        self.registrar.tick()
        self.changes.tick()
        self.absences.tick()
        self.declared.tick()
        self.health.tick()
        self.clocks.tick()
        self.placing.tick()
        self.leaving.tick()
        self.draining.tick()
        self.disks.tick()
        self.admin.tick()
        self.retaining.tick()
        self.compacting.tick()
        self.mending.tick()
        self.rereading.tick()
        self.ctx.sessions.tick(self.ctx.now)
        self.publishing.receipts.tick()
        if self.ctx.now >= self._recheck_at:
            self._recheck_at = self.ctx.now + RECHECK_S
            self.ctx.recheck_sessions()

    def _is_lone(self) -> bool:
        """Whether nobody else belongs to the mesh, and nothing waits to be tried again."""
        return not self.links.states and len(self.ctx.known_peers()) <= 1 and not self.registrar.is_busy

    def hand_over(self, *, now: float, wall_ms: int) -> tuple[int, list[Effect]]:
        """Before a clean stop: let others lead. How many slots still have to be given away; ask again."""
        self._set_time(now, wall_ms)
        left = hand_over(self.slots)
        return left, self._take()

    def checkpoint(self, *, now: float, wall_ms: int) -> list[Effect]:
        """Write all state rows (before a clean stop)."""
        self._set_time(now, wall_ms)
        self.slots.saving.checkpoint_all()
        self.clocks.save()
        return self._take()

    def _take(self) -> list[Effect]:
        desks = self.consuming.desks
        self.slots.flush()
        while desks.stirred:
            desks.propose()
            self.slots.flush()
        if self.whereabouts.changed:
            self.whereabouts.changed = False
            routes = self.whereabouts.routes()
            for session in self.ctx.sessions.states:
                if session[0] != PEERS:
                    self.ctx.send(session, routes)
        if self.whereabouts.news:
            self.whereabouts.flush()
        if self.replicating.going:
            self.replicating.flush()
        self.publishing.receipts.flush()
        desks.flush()  # first: who is pushed records of a partition knows that it is its own
        if self.ctx.deliveries.ready:
            self.reading.flush()
        out = self.ctx.out[:]
        self.ctx.out.clear()
        return out

    def _on_proposal(self, event: ProposalMade) -> None:
        def done(result: int | MeshqError) -> None:
            self.ctx.out.append(Settle(event.ticket, result))

        try:
            self.registrar.propose(commands.decode(event.command), done)
        except MeshqError as e:
            done(e)
