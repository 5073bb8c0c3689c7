"""Mirrors: the learners that a receipt waits for where a single voter decides.

With two peers a slot has one voter and one learner. What the voter alone has on disk is decided, and gone if
that disk is; so a receipt waits for the learner too, while that can be expected to answer:

    learner --level--> MIRROR --its support lapses, or nothing confirmed for `patience_s`--> learner

Level is within `LEVEL_COUNT` entries of what is decided. It is asked for at the beginning only: a mirror that
falls further behind under load is still waited for, since that it lags is no reason to give up its copy. One
that is there and can't store (its disk is full) confirms nothing; it is a mirror again after it confirmed
something. In a slot of several voters nobody is one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from meshq.ids import PeerId
from meshq.replication.placement import LEVEL_COUNT
from meshq.replication.quorum import Config, Node

PATIENCE_S = 2.0


@dataclass(slots=True)
class Mirrors:
    """Of one slot, at its leader."""

    patience_s: float = PATIENCE_S
    level_count: int = LEVEL_COUNT
    nodes: set[Node] = field(default_factory=set)
    _behind: dict[Node, tuple[int, float]] = field(default_factory=dict)  # (what it has, since when)

    def look(
        self,
        config: Config,
        match: Mapping[Node, int],
        decided: int,
        supports: Collection[PeerId],
        *,
        now: float,
        older: Collection[Node] = (),
    ) -> None:
        """Who is one now. `match`: what each node has on disk; `supports`: peers treated as alive; `older`:
        who is not level, however few entries it lacks.
        """
        if len(config.voters) > 1 or config.is_joint or not config.learners:
            self.nodes.clear()
            self._behind.clear()
            return
        there = {n for n in config.learners if n.peer in supports}
        self._behind = {n: b for n, b in self._behind.items() if n in there}
        level = set()
        for node in there:
            have = match.get(node, 0)
            if have >= decided:
                self._behind.pop(node, None)
            elif self._behind.get(node, (-1, 0.0))[0] != have:
                self._behind[node] = have, now
            if have + self.level_count >= decided and node not in older:
                level.add(node)
        stuck = {n for n, (_, since) in self._behind.items() if now >= since + self.patience_s}
        self.nodes = ((self.nodes & there) | level) - stuck

    def have(self, match: Mapping[Node, int], index: int) -> bool:
        """Whether every mirror has this entry on disk."""
        return all(match.get(node, 0) >= index for node in self.nodes)
