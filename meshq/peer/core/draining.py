"""Draining: a peer that is to leave gives its slots to others first, and goes when nothing is there any more.

    `meshq leave` ──> SetStanding(LEAVING) ──> the ring is without it: every leader walks its slots off it
                                           ──> the registry's leader surveys: no slot has it, nor does it vote
                                           ──> SetStanding(LEFT) ──> it stops, and is let in no more

A survey asks every peer that can be reached for the slots it leads, and which of them are without the one in
question. It is over when every slot is told of by a leader whose registry knows that the peer is leaving: one
that did not would place it again. A slot that nobody leads keeps a peer from leaving, as it must.

Who has left is told so by everybody that still has a connection to it: its own are refused from then on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from meshq.errors import MeshqError, Refused, UsageError
from meshq.ids import SYSTEM_SLOT, PeerId, Session
from meshq.messages import Answer, Ask, HasLeft
from meshq.peer.core.absences import Absences
from meshq.peer.core.context import Context
from meshq.peer.core.events import PeerLeft
from meshq.peer.core.fanning import FanOut
from meshq.peer.core.links import Links
from meshq.peer.core.registrar import Registrar
from meshq.peer.core.slots import Slots
from meshq.registry.commands import LEAVING, LEFT, MEMBER, SetStanding

SURVEY_S = 1.0
FAIL_OVER_S = 5.0  # how long slots without a leader are waited for before a request is refused
AGAIN_S, AGAIN_MAX = 0.5, 64
GOODBYE_S = 2.0  # a connection to who has left is kept so long
PLACEMENT = "placement"  # asked of other peers: what they lead, and what of it a peer has no part of


@dataclass(frozen=True, slots=True)
class Survey:
    """Slots by who told of them: `clear` are led and without the peer, `held` led and with it; the others
    nobody is known to lead.
    """

    clear: int
    held: int
    total: int
    asked: int  # peers that could be reached, this one included


@dataclass
class Draining:
    ctx: Context
    links: Links
    fan_out: FanOut
    registrar: Registrar
    slots: Slots
    absences: Absences
    _round_at: float = 0.0
    _gone: bool = False
    _again: list[tuple[float, Callable[[], None]]] = field(default_factory=list)  # AGAIN_MAX
    _told: dict[PeerId, float] = field(default_factory=dict)  # who has left, and when it was told

    def tick(self) -> None:
        registry = self.ctx.registry
        due = [call for at, call in self._again if at <= self.ctx.now]
        self._again = [x for x in self._again if x[0] > self.ctx.now]
        for call in due:
            self._when_possible(call)
        if self.ctx.me.peer in registry.left:
            self._go()
        for peer in [p for p in registry.left if p not in self._told]:
            self._told[peer] = self.ctx.now
            self.links.send(peer, HasLeft(registry.version))
        for peer in [p for p, at in self._told.items() if at < self.ctx.now - GOODBYE_S]:
            if peer in registry.left:
                self.links.forget(peer)
            else:
                del self._told[peer]  # so long ago that the registry forgot it
        if self.ctx.now < self._round_at or not registry.leaving or not self.registrar.leads():
            return
        self._round_at = self.ctx.now + SURVEY_S
        for peer, since in list(registry.leaving.items()):
            self._when_possible(partial(self.survey, peer, partial(self._on_survey, peer, since)))

    def _when_possible(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(MeshqError):  # too many questions under way: this one is left
            call()

    def on_has_left(self, message: HasLeft) -> None:
        """Another peer knows it already."""
        mine = self.ctx.registry.peers.get(self.ctx.me.peer)
        if mine is not None and message.version > mine.version:
            self._go()

    def _go(self) -> None:
        if not self._gone:
            self._gone = True
            self.ctx.out.append(PeerLeft())

    def _on_survey(self, peer: PeerId, since: int, found: Survey) -> None:
        """`since`: the leaving that was asked about; it may have been taken back, and begun again."""
        gone = found.clear == found.total and not self._votes(peer)
        if gone and self.ctx.registry.leaving.get(peer) == since and self.registrar.leads():
            self.registrar.propose(SetStanding(peer, LEFT, since), lambda _: None)

    def _votes(self, peer: PeerId) -> bool:
        host = self.slots.hosts.get(SYSTEM_SLOT)
        if host is None:
            return False
        config = host.replica.config
        return any(n.peer == peer for n in (*config.voters, *config.outgoing))

    # ------------------------------------------------------------------------------------ surveying
    def survey(self, peer: PeerId, done: Callable[[Survey], None]) -> None:
        since = self.ctx.registry.leaving.get(peer, 0)
        mine = self._placement(peer)

        def merge(answers: list[dict[str, Any]]) -> None:
            clear, held = mine
            for answer in answers:
                c, h, version = (answer.get(k) for k in ("clear", "held", "version"))
                if isinstance(c, bytes) and isinstance(h, bytes) and isinstance(version, int):
                    held |= int.from_bytes(h, "big")
                    if version >= since:
                        clear |= int.from_bytes(c, "big")
            total = self.ctx.registry.slots
            clear &= ~held & ((1 << total) - 1)
            done(Survey(clear.bit_count(), held.bit_count(), total, len(answers) + 1))

        self.fan_out.ask(PLACEMENT, {"peer": bytes(peer)}, merge)

    def _placement(self, peer: PeerId) -> tuple[int, int]:
        """Slots led here, as bits: those that are certain to be without the peer, and the others."""
        clear = held = 0
        for host in self.slots.led():
            if host.slot != SYSTEM_SLOT:
                without = all(n.peer != peer for n in host.replica.config.nodes())
                if without and host.replica.is_settled:
                    clear |= 1 << host.slot
                else:
                    held |= 1 << host.slot
        return clear, held

    def on_ask_placement(self, session: Session, message: Ask) -> None:
        clear, held = self._placement(PeerId(_bytes(message, "peer")))
        size = (self.ctx.registry.slots + 7) // 8
        bits = {"clear": clear.to_bytes(size, "big"), "held": held.to_bytes(size, "big")}
        self.ctx.send(session, Answer(message.request, {**bits, "version": self.ctx.registry.version}))

    # --------------------------------------------------------------------------- what operators ask
    def on_ask_leave(self, session: Session, message: Ask) -> None:
        """Begin; answered when that is registered. Raises: Refused, UsageError."""
        peer = self._peer(message)
        self._check_others(peer)
        until = self.ctx.now + FAIL_OVER_S

        def begin(found: Survey) -> None:
            lost = found.total - found.clear - found.held
            waits = self.ctx.now < until and len(self._again) < AGAIN_MAX
            if lost and waits:  # perhaps one is just being elected
                self._again.append((self.ctx.now + AGAIN_S, lambda: self.survey(peer, begin)))
                return
            if lost and peer not in self.ctx.registry.leaving:
                name = self._name(peer)
                text = (
                    f"{lost} of {found.total} slots have no leader, so nothing of them could be moved off "
                    f"{name!r}: start the peers that are away, or `meshq recover` what is lost with them"
                )
                self.ctx.fail(session, message.request, Refused(text))
                return
            self._propose(session, message, SetStanding(peer, LEAVING))

        self.survey(peer, begin)

    def on_ask_stay(self, session: Session, message: Ask) -> None:
        """Take it back."""
        peer = self._peer(message)
        if peer not in self.ctx.registry.leaving:
            raise UsageError(f"{self._name(peer)!r} is not leaving")
        self._propose(session, message, SetStanding(peer, MEMBER))

    def on_ask_progress(self, session: Session, message: Ask) -> None:
        """How far it is. Raises: UsageError."""
        peer = self._peer(message)
        standing = self.ctx.registry.standing(peer)

        def done(found: Survey) -> None:
            value = {
                "name": self._name(peer),
                "standing": standing,
                "slots": found.total,
                "left": found.total - found.clear if standing != "left" else 0,
                "leaderless": found.total - found.clear - found.held,
                "votes": self._votes(peer),
                "peers_asked": found.asked,
            }
            self.ctx.send(session, Answer(message.request, value))

        self.survey(peer, done)

    def _check_others(self, peer: PeerId) -> None:
        registry = self.ctx.registry
        others = registry.peers.keys() - registry.leaving.keys() - {peer}
        others = {p for p in others if not registry.is_witness(p)}
        if others and not any(map(self.absences.is_there, others)):
            names = ", ".join(sorted(registry.peers[p].facts.name for p in others))
            raise Refused(f"none of the other peers ({names}) is there to take over: start them first")

    def _propose(self, session: Session, message: Ask, command: SetStanding) -> None:
        def done(result: int | MeshqError) -> None:
            if isinstance(result, MeshqError):
                self.ctx.fail(session, message.request, result)
            else:
                self.ctx.send(session, Answer(message.request, {"version": result}))

        self.registrar.propose(command, done)

    def _peer(self, message: Ask) -> PeerId:
        """Whom it is about; this peer, when nobody is named."""
        name = message.args.get("peer", self.ctx.me.name)
        registry = self.ctx.registry
        for peers in (registry.peers, registry.left):
            for peer, registered in peers.items():
                if registered.facts.name == name:
                    return peer
        raise UsageError(f"no peer is called {name!r}: `meshq peers` lists them")

    def _name(self, peer: PeerId) -> str:
        registry = self.ctx.registry
        return (registry.peers.get(peer) or registry.left[peer]).facts.name


def _bytes(message: Ask, name: str) -> bytes:
    value = message.args.get(name)
    if not isinstance(value, bytes):
        raise UsageError(f"`{message.what}` needs `{name}`, bytes")
    return value
