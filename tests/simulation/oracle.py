"""What must hold after every step, by what an all-seeing observer knows.

    one leader           at most one node leads a slot in a term
    log matching         an index and a term name one chain, wherever they are written
    leader completeness  who comes to lead has everything that was decided
    state machine        what is decided at an index is the same bytes everywhere, and never changes
    durability           what is decided is on the disks of a majority; what is applied is on this one
    promises             a vote, a candidacy, an acknowledgement leave after their cause is on disk
    changes              one change of members at a time, and none before a decision of the leader's term
    receipts             whoever one counts has the record on disk, and is no witness
    witnesses            one never serves, is not handed the lead, and lets go of nothing that a keeper among
                         the voters has not; what is decided by one in a keeper's place it has whole
    density              offsets are 0, 1, 2, ...; time never goes back
    linearizable reads   a read sees everything that was decided before it was asked
    generations          each holds to all of this by itself; a new one begins with all that it said it keeps

The second block of names is Ongaro's (2014, figure 3.2). `strict=False` leaves out durability, promises and
changes, which see many faults before they did any harm: without them it shows what the harm is.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshq.batch import Buffer
from meshq.entries import EntryKind
from meshq.ids import PeerId
from meshq.replication.generations import generation_of
from meshq.replication.quorum import Config, Node
from meshq.replication.words import (
    AppendReply,
    Item,
    Message,
    Persist,
    Position,
    RequestVote,
    Role,
    TellRole,
    TimeoutNow,
    VoteReply,
)
from tests.simulation.disk import Applied, Image, Wrong

if TYPE_CHECKING:
    from meshq.replication.machine import Replica

NUMBER = 8  # bytes of a record's number, and of its offset, in an entry's body
HasIt = Callable[[int, Node, int, bytes], bool]  # (slot, node, index, chain): on that node's disk


def record_body(number: int, offset: int, payload: bytes) -> bytes:
    return (
        number.to_bytes(NUMBER, "big")
        + offset.to_bytes(NUMBER, "big")
        + zlib.crc32(payload).to_bytes(4, "big")
    )


def advance(applied: Applied, item: Item) -> Applied:
    """The state after one more entry: what every host computes for itself."""
    entry = item.entry
    count = applied.count
    if entry.kind is EntryKind.PUBLISH:
        offset = int.from_bytes(entry.body[NUMBER : 2 * NUMBER], "big")
        if offset != count:
            raise Wrong(f"offset {offset} at entry {entry.index}, where {count} is next")
        if zlib.crc32(item.payload) != int.from_bytes(entry.body[2 * NUMBER :], "big"):
            raise Wrong(f"entry {entry.index} has another record's payload")
        count += 1
    position = Position(entry.index, entry.term, entry.chain)
    return Applied(position, count, zlib.crc32(entry.chain, applied.digest), entry.timestamp_ms)


@dataclass(slots=True)
class Timeline:
    """What was decided in one generation of a slot. An older one may go on where it has not been heard of."""

    generation: int
    decided: list[Item] = field(default_factory=list)
    terms: list[int] = field(default_factory=list)  # of who first told of each
    states: list[Applied] = field(default_factory=lambda: [Applied()])  # after each index
    seen: dict[int, bytes] = field(default_factory=dict)  # (index, chain) that a read may show
    begun: bool = False


class Oracle:
    def __init__(
        self,
        slots: int,
        has_it: HasIt,
        *,
        strict: bool = True,
        is_whole: Callable[[int, Node, int], bool] = lambda *_: True,
    ) -> None:
        self._has_it = has_it
        self._is_whole = is_whole  # (slot, node, index): whether it has all payloads behind that
        self._strict = strict
        self._timelines = [[Timeline(0, begun=True)] for _ in range(slots)]  # by slot, generations rising
        self.witnesses: set[PeerId] = set()
        self._payloads: dict[bytes, Buffer] = {}  # by chain: a witness may have the entry without it
        self.lost = 0  # entries decided in one generation and not in the next
        self.leaders: dict[tuple[int, int], Node] = {}
        self._chains: list[dict[tuple[int, int], bytes]] = [{} for _ in range(slots)]
        self._floors: dict[object, int] = {}  # of reads under way
        self._would: dict[tuple[int, int, Node], set[Node]] = {}  # (slot, term, candidate): who would vote

    # ------------------------------------------------------------------------------------- generations
    def of(self, slot: int, term: int) -> Timeline:
        """The one that a node of this term is in."""
        lines = self._timelines[slot]
        return next(t for t in reversed(lines) if t.generation <= generation_of(term))

    def decided(self, slot: int) -> list[Item]:
        """In the newest generation that was begun: who began one may have crashed before it was on disk."""
        return next(t for t in reversed(self._timelines[slot]) if t.begun).decided

    def on_recover(self, slot: int, node: Node, image: Image, replica: Replica, before: int) -> None:
        """A node goes on alone; `before` was the term of what it has: of its log, if that is stale. What it
        said it keeps is to be there.
        """
        old = self.of(slot, before)
        kept = len(old.decided)
        while kept and not has(image, replica, old.decided[kept - 1]):
            kept -= 1
        if kept < replica.kept().index:
            raise Wrong(f"{show(node)} said it keeps slot {slot} up to {replica.kept().index}, it has {kept}")
        self.lost += len(old.decided) - kept
        states = old.states[: kept + 1]
        new = Timeline(generation_of(replica.term), old.decided[:kept], old.terms[:kept], states)
        self._timelines[slot].append(new)
        self._timelines[slot].sort(key=lambda t: t.generation)

    # ------------------------------------------------------------------------------------------- roles
    def on_role(self, slot: int, node: Node, replica: Replica, told: TellRole) -> None:
        if told.role is not Role.LEADER:
            return
        if told.serves and node.peer in self.witnesses:
            raise Wrong(f"{show(node)} is a witness, and serves slot {slot}")
        other = self.leaders.setdefault((slot, told.term), node)
        if other != node:
            raise Wrong(f"slot {slot} has two leaders in term {told.term}: {show(other)} and {show(node)}")
        line = self.of(slot, told.term)
        index = len(line.decided)
        while index and line.terms[index - 1] >= told.term:
            index -= 1  # one that leads no more and does not know it yet need not have this
        if index:
            last = line.decided[index - 1].entry
            here = replica.log.position(last.index)
            if replica.log.term_at(last.index) != last.term or (here and here.chain != last.chain):
                raise Wrong(f"{show(node)} leads slot {slot} in term {told.term} without entry {last.index}")

    # -------------------------------------------------------------------------------------------- logs
    def on_persist(self, slot: int, node: Node, config: Config, persist: Persist) -> None:
        chains = self._chains[slot]
        for item in persist.items:
            entry = item.entry
            if item.payload:
                self._payloads[entry.chain] = item.payload
            elif entry.kind is EntryKind.PUBLISH:
                self.on_let_go(slot, node, config, Position(entry.index, entry.term, entry.chain))
            if chains.setdefault((entry.index, entry.term), entry.chain) != entry.chain:
                raise Wrong(f"slot {slot}: two entries {entry.index} of term {entry.term}")

    def on_let_go(self, slot: int, node: Node, config: Config, upto: Position) -> None:
        """A node has entries up to here without their payloads from now on."""
        if node.peer not in self.witnesses:
            raise Wrong(f"{show(node)} has entry {upto.index} of slot {slot} without its payload")
        if not self._strict or len(self._timelines[slot]) > 1:  # copies begin again in another generation
            return
        for voter in (*config.voters, *config.outgoing):
            if voter.peer not in self.witnesses and not self._has_it(slot, voter, upto.index, upto.chain):
                raise Wrong(
                    f"{show(node)} lets go of slot {slot} up to {upto.index}, which {show(voter)} has not"
                )

    def on_change(self, slot: int, replica: Replica, persist: Persist) -> None:
        """A leader writes other members: the change before is decided, and something of its term."""
        if not self._strict:
            return
        term, line = replica.term, self.of(slot, replica.term)
        for entry in (i.entry for i in persist.items if i.entry.kind is EntryKind.CONFIG):
            if entry.term != term or replica.log.term_at(entry.index - 1) != term:
                continue  # not its own, or what a generation begins with
            history = replica._state.configs.history
            at, before = max(x for x in history if x[0] < entry.index)
            there = replica.log.position(at)
            if at > len(line.decided) and there is not None:
                self._check_majority(slot, before, at, there.chain)
            of_the_term = line.decided and line.decided[-1].entry.term >= term
            if not before.is_joint and not of_the_term:
                raise Wrong(f"slot {slot}: members change before anything of term {term} is decided")

    def on_commit(
        self, slot: int, node: Node, term: int, configs: list[Config], image: Image, items: tuple[Item, ...]
    ) -> int:
        """`term`: the node's. `configs`: the leader's, one of which decided. Tells how many are new."""
        line = self.of(slot, term)
        line.begun = True
        decided = line.decided
        known = len(decided)
        for item in items:
            entry = item.entry
            index = entry.index
            if not item.payload and node.peer in self.witnesses:
                item = Item(entry, self._payloads.get(entry.chain, b""))
            if index <= len(decided):
                there = decided[index - 1]
                if there.entry.chain != entry.chain or there.payload != item.payload:
                    raise Wrong(
                        f"slot {slot}: entry {index} was decided in term {there.entry.term},"
                        f" and {show(node)} decides another one of term {entry.term}"
                    )
                continue
            if index != len(decided) + 1:
                raise Wrong(f"slot {slot}: entry {index} is decided, {len(decided) + 1} is not")
            if decided and decided[-1].entry.timestamp_ms > entry.timestamp_ms:
                raise Wrong(f"slot {slot}: time goes back at entry {index}")
            decided.append(item)
            line.terms.append(term)
            self._check_seen(slot, line, item)
            line.states.append(advance(line.states[-1], item))
        last = items[-1].entry
        if self._strict:
            if not image.has(last.index, last.chain) and last.index not in image.damaged:
                raise Wrong(f"{show(node)} applies entry {last.index} of slot {slot} before it is durable")
            if len(decided) > known and line is self._timelines[slot][-1]:
                self._check_decided(slot, configs, last.index, last.chain)
        return len(decided) - known

    def _check_decided(self, slot: int, configs: list[Config], index: int, chain: bytes) -> None:
        for config in configs[:-1]:
            try:
                self._check_majority(slot, config, index, chain)
            except Wrong:
                continue
            return
        for config in configs[-1:]:
            self._check_majority(slot, config, index, chain)

    def _check_majority(self, slot: int, config: Config, index: int, chain: bytes) -> None:
        for voters in (config.voters, config.outgoing):
            having = [v for v in voters if self._has_it(slot, v, index, chain)]
            if voters and len(having) * 2 <= len(voters):
                raise Wrong(
                    f"slot {slot}: entry {index} counts as decided,"
                    f" {len(having)} of {len(voters)} voters have it"
                )
            keepers = [v for v in voters if v.peer not in self.witnesses]
            if len(keepers) < len(voters) and 2 * len(set(keepers).intersection(having)) <= len(voters):
                self._check_whole(slot, [v for v in keepers if v not in having], having, index)

    def _check_whole(self, slot: int, lacking: list[Node], having: list[Node], index: int) -> None:
        """It is decided because a witness has it: that has the payloads of all that a keeper lacks."""
        decided = self._timelines[slot][-1].decided
        for keeper in lacking:
            at = min(index, len(decided))
            while at and not self._has_it(slot, keeper, at, decided[at - 1].entry.chain):
                at -= 1
            for witness in (n for n in having if n.peer in self.witnesses):
                if not self._is_whole(slot, witness, at):
                    raise Wrong(
                        f"slot {slot}: entry {index} is decided by {show(witness)}, which lacks payloads"
                        f" behind {at} that {show(keeper)} has not"
                    )

    def _check_seen(self, slot: int, line: Timeline, item: Item) -> None:
        """What a read was allowed to show is what is decided in the end."""
        chain = line.seen.pop(item.entry.index, None)
        if chain not in (None, item.entry.chain):
            raise Wrong(f"slot {slot}: a read showed another entry {item.entry.index} than was decided")

    def check_state(self, slot: int, node: Node, applied: Applied) -> None:
        """The state that a host starts from, or was sent."""
        index = applied.position.index
        states = [t.states for t in self._timelines[slot]]
        if not any(index < len(s) and s[index] == applied for s in states):
            raise Wrong(f"{show(node)} has another state of slot {slot} at entry {index}: {applied}")

    # ---------------------------------------------------------------------------------------- promises
    def on_receipt(self, slot: int, term: int, index: int, on: list[Node]) -> None:
        """A client is told that these nodes have it."""
        decided = self.of(slot, term).decided
        if len(decided) < index:
            raise Wrong(f"slot {slot}: a receipt for entry {index}, which is not decided")
        for node in on:
            if node.peer in self.witnesses:
                raise Wrong(f"slot {slot}: a receipt counts {show(node)}, which is a witness")
            if not self._has_it(slot, node, index, decided[index - 1].entry.chain):
                raise Wrong(f"slot {slot}: a receipt counts {show(node)}, which has no entry {index}")

    def on_send(
        self,
        slot: int,
        frm: Node,
        to: Node,
        image: Image,
        config: Config,
        message: Message,
        rolled_back: bool = False,
    ) -> None:
        if not self._strict:
            return
        if type(message) is TimeoutNow and to.peer in self.witnesses:
            raise Wrong(f"{show(frm)} hands slot {slot} over to {show(to)}, which is a witness")
        if rolled_back and _counts(message):
            raise Wrong(f"{show(frm)} was rolled back, and lets something count: {message}")
        hard = image.hard
        kind = type(message)
        if kind is AppendReply:
            if hard.term < message.term:
                raise Wrong(f"{show(frm)} answers in term {message.term}, on its disk is {hard.term}")
            if message.ok and image.last_index < message.match:
                raise Wrong(
                    f"{show(frm)} acknowledges {message.match} of slot {slot},"
                    f" on its disk are {image.last_index}"
                )
        elif kind is VoteReply:
            if message.pre and message.granted:
                self._would.setdefault((slot, message.term, to), {to}).add(frm)
            if message.granted and not message.pre and (hard.term, hard.vote) != (message.term, to):
                raise Wrong(f"{show(frm)} votes for {show(to)} in term {message.term}, on its disk is {hard}")
        elif kind is RequestVote and not message.pre:
            if (hard.term, hard.vote) != (message.term, frm):
                raise Wrong(f"{show(frm)} asks for votes in term {message.term}, on its disk is {hard}")
            would = self._would.get((slot, message.term, frm), {frm})
            sets = [v for v in (config.voters, config.outgoing) if v]
            if not message.transfer and any(2 * len(would.intersection(v)) <= len(v) for v in sets):
                raise Wrong(f"{show(frm)} raises the term to {message.term}, and no majority would elect it")

    # ------------------------------------------------------------------------------------------- reads
    def on_read(self, slot: int, ref: object, term: int) -> None:
        self._floors[ref] = len(self.of(slot, term).decided)

    def on_read_over(
        self, slot: int, refs: tuple[object, ...], index: int | None, replica: Replica | None = None
    ) -> None:
        position = replica.log.position(index) if replica is not None else None
        if position is not None:
            line = self.of(slot, replica.term)
            line.seen[index] = position.chain
            if index <= len(line.decided):
                self._check_seen(slot, line, line.decided[index - 1])
            if replica.config.voters and replica._state.me.peer in self.witnesses:
                raise Wrong(f"slot {slot}: a witness answers a read")
        for ref in refs:
            floor = self._floors.pop(ref)
            if index is not None and index < floor:
                raise Wrong(f"slot {slot}: a read sees {index} entries, {floor} were decided before it")


def has(image: Image, replica: Replica, item: Item) -> bool:
    """Whether this entry is in the node's log, on its way to disk or there."""
    entry = item.entry
    here = replica.log.position(entry.index)
    if here is not None:
        return here.chain == entry.chain
    return image.has(entry.index, entry.chain)


def _counts(message: Message) -> bool:
    """Whether somebody may decide something because of it."""
    match message:
        case VoteReply():
            return message.granted
        case AppendReply():
            return message.ok or message.round > 0
        case RequestVote():
            return True
    return False


def show(node: Node) -> str:
    """n1, or n1' after its disk was replaced once."""
    return f"n{int.from_bytes(node.peer, 'big')}" + "'" * int.from_bytes(node.disk, "big")
