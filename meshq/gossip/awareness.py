"""How far a peer trusts itself. Who hears nothing from anybody is probably the one that is slow.

A counter from 0 (healthy): failed probes, helpers that did not even say no, and accusations to refute raise
it, answered probes lower it. All of this peer's own deadlines are multiplied by it, so that a starved host
takes its time before it doubts others. Lifeguard, section IV-A (LHA-Probe).
"""

from __future__ import annotations


class Awareness:
    def __init__(self, most: int) -> None:
        self._most = most
        self.score = 0

    def add(self, delta: int) -> None:
        self.score = min(max(self.score + delta, 0), self._most)

    def scale(self, seconds: float) -> float:
        return seconds * (1 + self.score)
