"""Who votes in the system slot: the registry is to outlive as many peers as it can, and every peer copies it.

    voters    an odd number, five at most: who votes stays as long as it is not given up; others join in as
              they come alive, so that a mesh that one peer founded does not depend on that one for ever
    learners  every other peer; a learner that is away is kept, because it costs nothing until it is back;
              also who is leaving, which has to hear when it may go

Which steps lead there is placement's business, as with every slot.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from meshq.ids import PeerId
from meshq.replication.placement import Situation, Step, next_step
from meshq.replication.quorum import Config, Node, config_of

SYSTEM_VOTERS_MAX: Final = 5  # of the system slot; others copy it


def _odd(count: int) -> int:
    """How many of so many vote."""
    count = min(count, SYSTEM_VOTERS_MAX)
    return max(0, count - (count + 1) % 2)


def system_genesis(founders: Sequence[Node], *, first: Node) -> Config:
    """The same at every founder."""
    order = [first, *sorted(set(founders) - {first})]
    return config_of(order[: _odd(len(order))], order[_odd(len(order)) :])


def system_members(
    s: Situation,
    peers: Collection[PeerId],
    nodes: Mapping[PeerId, Node],
    alive: Collection[PeerId],
    leaving: Collection[PeerId] = (),
) -> tuple[list[Node], list[Node]]:
    """(voters, learners) that the slot should have; its leader is the first voter, unless it is leaving.

    `peers`: the registered ones that are not given up; `nodes`: the disk each has today, as far as known.
    """
    staying = set(peers) - set(leaving)
    known = s.config.nodes()

    def node_of(peer: PeerId) -> Node | None:
        now = nodes.get(peer)
        if now is not None and (now in known or peer in alive):
            return now
        return next((n for n in sorted(known) if n.peer == peer), None)  # it is away: as it was

    voting = sorted({v.peer for v in s.config.voters} & staying, key=lambda p: (p != s.me.peer, p))
    others = sorted(staying - set(voting), key=lambda p: (p not in alive, p))
    count = _odd(len(voting) + sum(p in alive and node_of(p) is not None for p in others))
    going = sorted(set(peers) & set(leaving))
    found = [node for node in map(node_of, [*voting, *others, *going]) if node is not None]
    return found[:count], found[count:]


def system_step(
    s: Situation,
    peers: Collection[PeerId],
    nodes: Mapping[PeerId, Node],
    alive: Collection[PeerId],
    leaving: Collection[PeerId] = (),
) -> Step | None:
    """What the leader of the system slot does now."""
    voters, learners = system_members(s, peers, nodes, alive, leaving)
    return next_step(s, voters, learners, (), alive) if s.settled and voters else None
