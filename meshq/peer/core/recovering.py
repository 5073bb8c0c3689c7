"""Recovering: what `meshq recover` finds out, what it refuses, and what it does.

Only a person can know that peers are gone for good. What can be known here is asked of everybody that is
left, and contradicts the person where it can:

    a peer named as gone is seen by somebody       refused: it is not gone
    a peer that is not named does not answer       refused: it may have more than all that do
    a slot still has a majority, or a leader       left alone

A majority is one of voters that can elect somebody: not of those that have heard of a generation of which no
log is left, nor of those that lack what they may have acknowledged.

Of every other slot the most advanced copy goes on, in a new generation (replication/generations.py). A plan
says of each what is certain to be kept: entries up to the one its copy knows to be decided. What was
acknowledged behind that may be missing, so the time of that entry is since when records may be missing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from meshq.errors import MeshqError, Refused, RemoteProtocolError, StoreCorrupt, UsageError
from meshq.ids import SYSTEM_SLOT, PeerId, Session, Slot
from meshq.messages import Answer, Ask
from meshq.peer.core.absences import Absences
from meshq.peer.core.context import Context
from meshq.peer.core.fanning import FanOut
from meshq.peer.core.hosts import Host
from meshq.peer.core.links import Links
from meshq.peer.core.slots import Slots
from meshq.replication.generations import generation_of, number_of, show_term
from meshq.replication.quorum import Config, Node, decode_config, encode_config
from meshq.replication.words import GenerationSeen, Role

FACTS, SLOTS = "recover.facts", "recover.slots"  # asked of other peers


@dataclass(frozen=True, slots=True)
class Copy:
    """One node's copy of a slot, as it tells."""

    node: Node
    slot: Slot
    config: Config
    last: tuple[int, int]  # term and index of its log's end
    kept: tuple[int, int]
    since_ms: int
    leads: bool
    may: bool  # it can go on alone
    term: int  # the newest that it has heard of; in a plan, that any of the slot's copies has
    frozen: bool  # part of its log is lost, and it votes for nobody who may not have that


@dataclass
class _Plan:
    left: set[Node] = field(default_factory=set)
    steps: list[Copy] = field(default_factory=list)
    unheld: set[Slot] = field(default_factory=set)  # that go on although their copy's voters are left
    without: list[Slot] = field(default_factory=list)  # of which no copy is left


@dataclass
class Recovering:
    ctx: Context
    links: Links
    fan_out: FanOut
    slots: Slots
    absences: Absences

    # ---------------------------------------------------------------------------------------- facts
    def on_ask_facts(self, session: Session, message: Ask) -> None:
        self.ctx.send(session, Answer(message.request, self._facts()))

    def _facts(self) -> dict[str, Any]:
        sees = [bytes(p) for p in self.ctx.registry.peers if self.absences.is_there(p)]
        copies = [self._copy(host) for host in self.slots.hosts.values()]
        me = self.ctx.me
        return {"peer": bytes(me.peer), "disk": me.disk, "sees": sees, "copies": copies}

    def _copy(self, host: Host) -> list[Any]:
        r = host.replica
        last, kept = r.last, r.kept()
        whole = not self.slots.frozen and not host.is_replaced and not host.is_emptied
        may = whole and not r.is_witness
        return [
            int(host.slot), encode_config(r.config), last.term, last.index, kept.term, kept.index,
            r.kept_ms(), r.role is Role.LEADER, may, r.term, r.frozen,
        ]  # fmt: skip

    # --------------------------------------------------------------------------------- plan and run
    def on_ask(self, session: Session, message: Ask, *, run: bool) -> None:
        """What would be done, or doing it. Raises: UsageError, Refused."""
        gone = self._gone(message)
        expected = message.args.get("plan") if run else None

        def on_facts(answers: list[dict[str, Any]]) -> None:
            try:
                plan = self._plan(gone, [self._facts(), *answers])
                if run and expected != self._digest(plan):
                    raise Refused("something has changed since: look at what would be done, and say it again")
            except MeshqError as e:
                self.ctx.fail(session, message.request, e)
                return
            if run:
                self._run(session, message, plan)
            else:
                self.ctx.send(session, Answer(message.request, self._show(plan)))

        self.fan_out.ask(FACTS, {}, on_facts)

    def _gone(self, message: Ask) -> set[PeerId]:
        names = message.args.get("gone")
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise UsageError("`gone` must be a list of peers' names")
        by_name = {r.facts.name: peer for peer, r in self.ctx.registry.peers.items()}
        unknown = [n for n in names if n not in by_name]
        if unknown:
            raise UsageError(f"no peer is called {unknown[0]!r}: `meshq peers` lists them")
        if self.ctx.me.name in names:
            raise UsageError(f"{self.ctx.me.name!r} is this peer, and not gone")
        return {by_name[n] for n in names}

    def _plan(self, gone: set[PeerId], facts: list[dict[str, Any]]) -> _Plan:
        """Raises: Refused, RemoteProtocolError."""
        copies: list[Copy] = []
        plan = _Plan()
        seen: dict[PeerId, PeerId] = {}
        for fact in facts:
            try:
                node = Node(PeerId(fact["peer"]), fact["disk"])
                seen |= {PeerId(p): node.peer for p in fact["sees"]}
                copies += [_read(node, row) for row in fact["copies"]]
            except (KeyError, TypeError, ValueError, StoreCorrupt) as e:
                raise RemoteProtocolError(f"facts of a peer that cannot be read: {e}") from None
            plan.left.add(node)
        self._refuse(gone, {n.peer for n in plan.left}, seen)
        for slot in (SYSTEM_SLOT, *map(Slot, range(self.ctx.registry.slots))):
            self._plan_slot(plan, slot, [c for c in copies if c.slot == slot and c.node in c.config.nodes()])
        if not plan.steps and not plan.without:
            raise Refused("every slot has a majority of its voters left: there is nothing to recover")
        return plan

    def _refuse(self, gone: Collection[PeerId], left: Collection[PeerId], seen: dict[PeerId, PeerId]) -> None:
        for peer in gone:
            if peer in seen or peer in left:
                by = self._name(seen.get(peer, peer))
                raise Refused(f"{self._name(peer)!r} is not gone: {by!r} sees it. Nothing was changed")
        for peer in self.ctx.registry.peers:
            if peer not in gone and peer not in left:
                raise Refused(
                    f"{self._name(peer)!r} is not named as gone and does not answer, and may have more than "
                    f"all that do: start it, or say --gone {self._name(peer)} too. Nothing was changed"
                )

    @staticmethod
    def _plan_slot(plan: _Plan, slot: Slot, copies: list[Copy]) -> None:
        """A majority counts where one of its voters has that configuration, or may have it. Where all of them
        tell of another one, a crash made them forget it, and nobody would ever be elected by it. A copy of an
        older generation than was heard of elects nobody, nor does one whose log is damaged.
        """
        newest = max((c.term for c in copies), default=0)
        told = {c.node: c.config for c in copies}
        unable = {c.node for c in copies if c.frozen or _is_older(c, newest)}

        def is_held(config: Config) -> bool:
            voters = [n for n in plan.left if config.is_voter(n)]
            held = any(told.get(n, config) == config for n in voters)
            return config.has_majority(plan.left - unable) and held

        if any(c.leads or (is_held(c.config) and not _is_older(c, newest)) for c in copies):
            return
        able = [c for c in copies if c.may]
        if not able:
            plan.without.append(slot)
            return
        step = max(able, key=lambda c: (c.last, c.node in c.config.voters, c.node))
        plan.steps.append(replace(step, term=newest))
        if step.config.has_majority(plan.left):
            plan.unheld.add(slot)

    def _run(self, session: Session, message: Ask, plan: _Plan) -> None:
        left = [[bytes(n.peer), n.disk] for n in sorted(plan.left)]
        wanted: dict[PeerId, list[list[int]]] = {}
        for step in plan.steps:
            row = [int(step.slot), *step.last, *([step.term] if _is_older(step, step.term) else [])]
            wanted.setdefault(step.node.peer, []).append(row)
        failed: list[list[Any]] = []
        mine = wanted.pop(self.ctx.me.peer, [])
        if mine:
            failed += self._go_on(mine, plan.left, plan.unheld)

        def done(answers: list[dict[str, Any]]) -> None:
            told = {a.get("peer") for a in answers}
            for answer in answers:
                failed.extend(answer.get("failed", []))
            for peer, rows in wanted.items():
                if bytes(peer) not in told:
                    failed.extend([row[0], f"{self._name(peer)} did not answer"] for row in rows)
            value = {**self._show(plan), "failed": [[_slot_name(s), text] for s, text in failed]}
            self.ctx.send(session, Answer(message.request, value))

        each = {p: {"slots": rows} for p, rows in wanted.items()}
        self.fan_out.ask(SLOTS, {"left": left, "unheld": sorted(plan.unheld)}, done, each=each)

    def on_ask_slots(self, session: Session, message: Ask) -> None:
        """Another peer has the plan, and this one's copies are the most advanced. Raises: UsageError."""
        rows, left, unheld = (message.args.get(x, []) for x in ("slots", "left", "unheld"))
        try:
            failed = self._go_on(rows, {Node(PeerId(p), d) for p, d in left}, {Slot(s) for s in unheld})
        except (TypeError, ValueError) as e:
            raise UsageError(f"slots to recover that cannot be read: {e}") from None
        self.ctx.send(session, Answer(message.request, {"peer": bytes(self.ctx.me.peer), "failed": failed}))

    def _go_on(self, rows: list[list[int]], left: set[Node], unheld: set[Slot]) -> list[list[Any]]:
        """Slots that could not, and why."""
        failed: list[list[Any]] = []
        for slot, term, index, *heard in rows:
            host = self.slots.hosts.get(Slot(slot))
            if host is None or (host.replica.last.term, host.replica.last.index) != (term, index):
                failed.append([slot, "its log is another one by now"])
                continue
            draw = int.from_bytes(self.ctx.random_id()[:2], "big")
            try:
                for newest in heard:  # what it has not heard of itself is to be followed by another one
                    self.slots.tell(host, GenerationSeen(newest))
                self.slots.recover(host, left, draw=draw, unheld=host.slot in unheld)
            except MeshqError as e:
                failed.append([slot, str(e)])
                continue
            self.ctx.count("slots_recovered")
        return failed

    # -------------------------------------------------------------------------------------- showing
    def _digest(self, plan: _Plan) -> str:
        """Of what a person agreed to."""
        rows = [(int(s.slot), s.node, s.last, s.kept) for s in plan.steps]
        return repr((sorted(plan.left), rows, plan.without))

    def _show(self, plan: _Plan) -> dict[str, Any]:
        return {
            "plan": self._digest(plan),
            "slots": [self._show_step(s) for s in plan.steps],
            "without_a_copy": [_slot_name(s) for s in plan.without],
        }

    def _show_step(self, s: Copy) -> dict[str, Any]:
        return {
            "slot": _slot_name(s.slot),
            "peer": self._name(s.node.peer),
            "last": f"{s.last[1]} of term {show_term(s.last[0])}",
            "kept": s.kept[1],
            "kept_term": show_term(s.kept[0]),
            "missing_since_ms": s.since_ms or None,
            "members": sorted({self._name(n.peer) for n in s.config.nodes()}),
            "generation": number_of(generation_of(s.term)) + 1,
        }

    def _name(self, peer: PeerId) -> str:
        registered = self.ctx.registry.peers.get(peer)
        return registered.facts.name if registered else peer.hex()


def _read(node: Node, row: list[Any]) -> Copy:
    slot, config, last_term, last_index, kept_term, kept_index, since_ms, leads, may, *more = row
    last, kept = (int(last_term), int(last_index)), (int(kept_term), int(kept_index))
    term, frozen = more[:2] if len(more) > 1 else (last_term, False)  # an older version tells neither
    return Copy(
        node, Slot(int(slot)), decode_config(config), last, kept, int(since_ms), bool(leads), bool(may),
        int(term), bool(frozen),
    )  # fmt: skip


def _is_older(copy: Copy, newest: int) -> bool:
    return generation_of(copy.last[0]) < generation_of(newest)


def _slot_name(slot: int) -> str:
    return "registry" if slot == SYSTEM_SLOT else str(int(slot))
