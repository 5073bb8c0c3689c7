"""Receipts: when what may be said of a batch.

    acks     a receipt leaves                                                  offset   copies
    none     once the leader has taken the batch, on no disk yet               no       0
    leader   once it is on the leader's disk: lost with it, if no other came   no       1
    quorum   once it is committed, and on as many disks as the topic asks for  yes      those that have it

A slot with one voter has a mirror where the mesh has two peers: receipts wait for it while it can be expected
to answer (replication/mirrors.py), and leave with `copies=1` when it can't.

What waits here is bounded in number and by `WAIT_S`; what waits for longer, or for a leader that is one no
more, ends as `OutcomeUnknown`. It is looked at when somebody's disk has more than before, not at every event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from meshq.errors import MeshqError, NotEnoughCopies, OutcomeUnknown, Overloaded
from meshq.ids import PeerId, Ref, Session, Slot
from meshq.limits import RECEIPTS_WAITING_MAX
from meshq.messages import ACKS_NONE, Accepted, Produced, TopicInfo
from meshq.peer.core.context import Context
from meshq.peer.core.hosts import Host
from meshq.peer.core.slots import Slots
from meshq.replication.mirrors import Mirrors
from meshq.replication.quorum import Node

WAIT_S: Final = 30.0
RECEIPTS_PER_MESSAGE: Final = 1_024


class _Waiting(NamedTuple):
    entry: int  # its index
    base_offset: int | None  # None: it waits for the leader's disk alone
    copies_min: int
    refs: tuple[Ref, ...]
    until: float


@dataclass
class Receipts:
    ctx: Context
    slots: Slots
    _ready: dict[Session, list[Accepted]] = field(default_factory=dict)  # of this turn
    _waiting: dict[Slot, deque[_Waiting]] = field(default_factory=dict)
    _mirrors: dict[Slot, Mirrors] = field(default_factory=dict)  # of slots led, while they have one voter
    _seen: dict[Slot, object] = field(default_factory=dict)  # what was on whose disk at the last look
    _count: int = 0  # of all that waits

    # --------------------------------------------------------------------------------- what happens
    def check(self, slot: Slot, info: TopicInfo) -> None:
        """Before anything is appended. Raises: NotEnoughCopies, Overloaded."""
        if self._count >= RECEIPTS_WAITING_MAX:
            raise Overloaded(
                f"{self._count} batches wait here until other peers have them too", retry_after_ms=200
            )
        if info.copies_min <= 1:
            return
        host = self.slots.hosts[slot]
        there = self._there() | {self.ctx.me.peer}
        able = sum(node.peer in there for node in host.replica.config.keepers())
        if able < info.copies_min:
            self._refuse_for_good(info)
            raise NotEnoughCopies(
                f"topic {info.name!r} wants {info.copies_min} copies of a record, and {able} of the peers "
                f"that keep slot {slot} can be reached and have room (`meshq peers` shows which are away)",
                retry_after_ms=200,
            )

    def _refuse_for_good(self, info: TopicInfo) -> None:
        """Raises: NotEnoughCopies where the mesh has too few peers, so that waiting for some is in vain."""
        count, name = len(self.ctx.registry.ring_peers()), info.name
        if count < info.copies_min:
            there_are = f"{count} {'peer' if count == 1 else 'peers'}"
            raise NotEnoughCopies(
                f"topic {name!r} wants {info.copies_min} copies of a record (its `copies_min`), and the mesh "
                f"has {there_are} that could keep one: add peers (`meshq invite`) or want fewer: "
                f"`meshq topic set {name} --copies-min {count}`",
                retry_after_ms=1_000,
            )

    def on_appended(self, slot: Slot, index: int, ref: Ref, acks: int) -> None:
        """One that is not to wait for others has its place in the log."""
        if acks == ACKS_NONE:
            self._answer(ref, None, 0)
        else:
            self._wait(slot, _Waiting(index, None, 1, (ref,), self.ctx.now + WAIT_S))

    def on_stored(
        self,
        slot: Slot,
        index: int,
        base_offset: int,
        match: Mapping[Node, int],
        copies_min: int,
        refs: tuple[Ref, ...],
    ) -> None:
        """Committed. `match`: up to which entry each node has the log on disk."""
        mirrors = self._look_at_mirrors(self.slots.hosts[slot], match)
        copies = _copies(match, index)
        if copies >= copies_min and (mirrors is None or mirrors.have(match, index)):
            for ref in refs:
                self._answer(ref, base_offset, copies)
        elif refs:
            self._wait(slot, _Waiting(index, base_offset, copies_min, refs, self.ctx.now + WAIT_S))

    def on_lost(self, host: Host, error: MeshqError) -> None:
        """What was not committed was taken back, or this peer leads the slot no more."""
        kept: deque[_Waiting] = deque()
        if not host.leads:
            self._mirrors.pop(host.slot, None)
        for w in self._waiting.get(host.slot, ()):
            if w.base_offset is not None and host.leads:
                kept.append(w)
            else:
                self._fail(w, error)
        self._keep(host.slot, kept)

    def tick(self) -> None:
        for slot, waiting in list(self._waiting.items()):
            late = [w for w in waiting if self.ctx.now >= w.until]
            for w in late:
                self._fail(w, OutcomeUnknown(f"it is not known within {WAIT_S:g} s on whose disks it is"))
            self._keep(slot, deque(w for w in waiting if self.ctx.now < w.until))

    def flush(self) -> None:
        if self._waiting:
            for slot in list(self._waiting):
                self._look_again(slot)
        for session, receipts in self._ready.items():
            for i in range(0, len(receipts), RECEIPTS_PER_MESSAGE):
                self.ctx.send(session, Produced(receipts[i : i + RECEIPTS_PER_MESSAGE]))
        self._ready.clear()

    # ------------------------------------------------------------------------------- how it is done
    def _look_again(self, slot: Slot) -> None:
        host, kept = self.slots.hosts[slot], deque[_Waiting]()
        durable, match = host.replica.log.durable, host.replica.copies()
        mirrors = self._look_at_mirrors(host, match)
        seen = durable, tuple(match.items()), frozenset(mirrors.nodes) if mirrors else None
        if self._seen.get(slot) == seen:
            return
        for w in self._waiting[slot]:
            if w.base_offset is None:
                copies = 1 if durable >= w.entry else 0
                is_done = copies == 1
            else:
                copies = _copies(match, w.entry)
                is_done = copies >= w.copies_min and (mirrors is None or mirrors.have(match, w.entry))
            if is_done:
                for ref in w.refs:
                    self._answer(ref, w.base_offset, copies)
            else:
                kept.append(w)
        self._keep(slot, kept)
        if kept:
            self._seen[slot] = seen

    def _look_at_mirrors(self, host: Host, match: Mapping[Node, int]) -> Mirrors | None:
        """None where there is nobody who could be one: several voters, or no other node at all."""
        replica = host.replica
        config = replica.config
        if len(config.voters) > 1 or not config.learners:
            self._mirrors.pop(host.slot, None)
            return None
        mirrors = self._mirrors.get(host.slot)
        if mirrors is None:
            mirrors = self._mirrors[host.slot] = Mirrors()
        older = replica.catching_up()
        there = self._there()
        mirrors.look(config, match, replica.commit_index, there, now=self.ctx.now, older=older)
        return mirrors

    def _there(self) -> set[PeerId]:
        """Other peers that could have a record on disk soon."""
        return self.slots.supports - self.slots.full

    def _wait(self, slot: Slot, waiting: _Waiting) -> None:
        self._waiting.setdefault(slot, deque()).append(waiting)
        self._count += 1
        self._seen.pop(slot, None)

    def _keep(self, slot: Slot, waiting: deque[_Waiting]) -> None:
        self._count += len(waiting) - len(self._waiting.pop(slot, ()))
        self._seen.pop(slot, None)
        if waiting:
            self._waiting[slot] = waiting

    def _answer(self, ref: Ref, base_offset: int | None, copies: int) -> None:
        session, request = ref
        self._ready.setdefault(session, []).append(Accepted(request, base_offset, copies))

    def _fail(self, waiting: _Waiting, error: MeshqError) -> None:
        for session, request in waiting.refs:
            self.ctx.fail(session, request, error)


def _copies(match: Mapping[Node, int], index: int) -> int:
    """How many nodes have this entry on disk."""
    return sum([have >= index for have in match.values()])
