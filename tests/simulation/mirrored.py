"""Whom a receipt has to wait for, by an account of its own: the dumb twin of replication/mirrors.py.

Of each learner of a single voter, look by look: is it there, has it been level since it came, and when was
anything last heard of its disk while something was to be heard? A receipt that leaves without one that is
waited for has told of a copy too few; one that is held back for nobody is late for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from meshq.ids import PeerId
from meshq.replication.mirrors import PATIENCE_S
from meshq.replication.placement import LEVEL_COUNT
from meshq.replication.quorum import Config, Node


@dataclass(slots=True)
class _Learner:
    has: int
    level: bool = False
    lacks_since: float | None = None


@dataclass(slots=True)
class Mirrored:
    patience_s: float = PATIENCE_S
    level_count: int = LEVEL_COUNT
    _learners: dict[Node, _Learner] = field(default_factory=dict)

    def look(
        self,
        config: Config,
        match: Mapping[Node, int],
        decided: int,
        supports: Collection[PeerId],
        now: float,
    ) -> None:
        alone = len(config.voters) == 1 and not config.outgoing
        here = [n for n in config.learners if n.peer in supports] if alone else []
        self._learners = {n: self._learners.get(n, _Learner(-1)) for n in here}
        for node, x in self._learners.items():
            has = match.get(node, 0)
            if has >= decided:
                x.lacks_since = None
            elif has != x.has or x.lacks_since is None:
                x.lacks_since = now
            x.has = has
            if x.lacks_since is not None and now - x.lacks_since >= self.patience_s:
                x.level = False  # it is given up until it stores something
            elif has + self.level_count >= decided:
                x.level = True

    def without(self, index: int) -> list[Node]:
        """Who is to be waited for before a receipt for this entry leaves."""
        return [n for n, x in self._learners.items() if x.level and x.has < index]
