"""Placement: walk a slot from where it is toward where the ring wants it, one safe step at a time.

*The ring says where a slot should live, its own configuration says where it is.* The leader of a slot
compares the two now and then and takes the next step:

    lacking members   -> learners, which copy while everything goes on
    all level         -> leadership goes to one who stays, if this one is not wanted; then one joint change to
                         the new voters; whoever is not wanted is dropped with it
    where it should be, but led by another voter than the first owner -> leadership moves there,
                         if that one can lead
    led by one whose disk is full, another voter has room -> leadership moves there, before all else

Nothing is moved while the slot is not healthy, toward nothing that would not be, and few slots at a time, in
all and to each peer, so that moving never takes the disk and the network away from the records. A crash
anywhere leaves a configuration from which the next leader goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from meshq.ids import PeerId, Slot
from meshq.replication.quorum import Config, Node, config_of

MOVES_MAX = 16  # slots that one leader moves at a time
COPIES_MAX = 16  # of them, copies on their way to one peer, from all leaders together
TRANSFERS_MAX = 8  # leaderships handed over in one round
LEVEL_COUNT = 256  # entries behind


@dataclass(frozen=True, slots=True)
class Situation:
    """One slot as its leader sees it. `match` is what each node has on disk, `last` the end of the log."""

    slot: Slot
    me: Node
    config: Config
    settled: bool  # its newest configuration is committed, and the leader serves
    match: Mapping[Node, int]
    last: int
    older: Collection[Node] = ()  # that are sent what is in memory no more: not level
    unfit: Collection[Node] = ()  # not to lead now: full, rolled back, or it did not take the lead lately


@dataclass(frozen=True, slots=True)
class ChangeMembers:
    slot: Slot
    target: Config


@dataclass(frozen=True, slots=True)
class MoveLeadership:
    slot: Slot
    to: Node


Step = ChangeMembers | MoveLeadership


def members_of(
    wanted: Sequence[Node], witness: Node | None = None
) -> tuple[Sequence[Node], Sequence[Node], Sequence[Node]]:
    """(voters, learners, witnesses) for owners in the ring's order: two vote with a witness; else an odd
    number does, and another one mirrors.
    """
    if witness is not None and len(wanted) == 2:
        return [*wanted, witness], [], [witness]
    odd = len(wanted) - (len(wanted) + 1) % 2
    return wanted[:odd], wanted[odd:], []


def genesis_config(wanted: Sequence[Node], witness: Node | None = None) -> Config:
    """What a slot begins with: the same on every peer, so that nobody has to be told."""
    return config_of(*members_of(wanted, witness))


def steps(
    situations: Sequence[Situation],
    wanted: Mapping[Slot, Sequence[PeerId]],
    nodes: Mapping[PeerId, Node],
    alive: Collection[PeerId],
    witnesses: Mapping[Slot, PeerId],
) -> list[Step]:
    """What to do now. `nodes`: the disk each peer has today; `alive`: those that answer, this one too;
    `witnesses`: of slots that want one.
    """
    found: list[Step] = []
    moving = transfers = 0
    copying = Counter(n.peer for s in situations for n in s.config.learners if _behind(s, n))
    to_one = max(1, COPIES_MAX // max(1, len(alive)))  # any of those alive may be a leader that does the same
    for situation in situations:
        members = _members(situation.slot, wanted, nodes, witnesses)
        if not situation.settled or members is None:
            moving += situation.config.is_joint
            continue
        step = next_step(situation, *members, alive)
        if isinstance(step, ChangeMembers):
            moving += 1
            coming = {n.peer for n in step.target.nodes() - situation.config.nodes()}
            if moving <= MOVES_MAX and all(copying[peer] < to_one for peer in coming):
                copying.update(coming)
                found.append(step)
        elif step is not None:
            transfers += 1
            if transfers <= TRANSFERS_MAX:
                found.append(step)
        elif not _is_where(situation.config, *members):
            moving += 1  # its learners catch up
    return found


def _members(
    slot: Slot,
    wanted: Mapping[Slot, Sequence[PeerId]],
    nodes: Mapping[PeerId, Node],
    witnesses: Mapping[Slot, PeerId],
) -> tuple[Sequence[Node], Sequence[Node], Sequence[Node]] | None:
    """None while the disk of one of them is not known."""
    peers = [*wanted.get(slot, ()), *([witnesses[slot]] if slot in witnesses else [])]
    if not wanted.get(slot) or any(peer not in nodes for peer in peers):
        return None
    found = [nodes[peer] for peer in peers]
    count = len(wanted[slot])
    return members_of(found[:count], found[count] if len(found) > count else None)


def is_at_rest(
    situations: Sequence[Situation],
    wanted: Mapping[Slot, Sequence[PeerId]],
    nodes: Mapping[PeerId, Node],
    alive: Collection[PeerId],
    witnesses: Mapping[Slot, PeerId],
) -> bool:
    """Whether there is nothing to do until a leader, members, the ring or who is alive change."""
    for s in situations:
        members = _members(s.slot, wanted, nodes, witnesses)
        if not s.settled or members is None or not _is_where(s.config, *members) or s.me in s.unfit:
            return False
        first = members[0][0]
        if first != s.me and first.peer in alive:
            return False
    return True


def next_step(
    s: Situation,
    voters: Sequence[Node],
    learners: Sequence[Node],
    witnesses: Sequence[Node],
    alive: Collection[PeerId],
) -> Step | None:
    """Toward these members, the first voter to lead; None when that has to wait, or is so already."""
    config = s.config
    if not config.has_majority([n for n in config.nodes() if n.peer in alive]):
        return None
    heirs = [n for n in config.voters if n.peer in alive and n not in s.unfit and not _behind(s, n)]
    heirs = [n for n in heirs if n not in config.witnesses]
    heirs.sort(key=lambda n: voters.index(n) if n in voters else len(voters))
    if s.me in s.unfit and heirs:
        return MoveLeadership(s.slot, heirs[0])
    if _is_where(config, voters, learners, witnesses):
        first = voters[0]
        if first != s.me and first in heirs:
            return MoveLeadership(s.slot, first)
        return None
    missing = [n for n in (*voters, *learners) if n not in config.nodes()]
    if missing:
        if all(n.peer in alive for n in missing):
            both = {*config.witnesses, *witnesses}
            return ChangeMembers(s.slot, config_of(config.voters, [*config.learners, *missing], both))
        return None
    ready = [n for n in voters if n.peer in alive and not _behind(s, n)]
    target = config_of(voters, learners, witnesses)
    # What is to decide has to be able to: a voter of before that is dead now may be all that a new one has.
    if any(n not in ready for n in voters if n not in config.voters) or not target.has_majority(ready):
        return None
    if s.me not in voters and heirs and heirs[0] in voters:
        return MoveLeadership(s.slot, heirs[0])
    return ChangeMembers(s.slot, target)


def _behind(s: Situation, node: Node) -> bool:
    return node in s.older or s.match.get(node, 0) + LEVEL_COUNT < s.last


def _is_where(
    config: Config, voters: Sequence[Node], learners: Sequence[Node], witnesses: Sequence[Node]
) -> bool:
    here, there = (config.voters, config.learners, config.witnesses), (voters, learners, witnesses)
    return all(set(a) == set(b) for a, b in zip(here, there, strict=True))
