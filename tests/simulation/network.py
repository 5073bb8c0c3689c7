"""Links between hosts: delay, loss, repetition, reordering, cuts in one direction, connections that break."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(slots=True)
class Weather:
    """How the network is in one schedule."""

    loss: float = 0.0
    twice: float = 0.0
    delay_s: float = 0.0005
    jitter_s: float = 0.001
    late: float = 0.0  # how many are very late
    in_order: bool = True


@dataclass(slots=True)
class Link:
    """One direction."""

    cut: bool = False
    udp_cut: bool = False  # of datagrams, which only membership sends
    cut_at: float = 0.0
    broken: int = 0  # how often the connection broke: what was on the way then is lost
    up: bool = True
    newest: float = 0.0  # when the last message arrives


class Network:
    def __init__(self, hosts: int, weather: Weather, rng: random.Random) -> None:
        self.links = [[Link() for _ in range(hosts)] for _ in range(hosts)]
        self.weather = weather
        self._rng = rng

    def arrivals(self, link: Link, now: float) -> tuple[float, ...]:
        """When a message that is sent now arrives: never, once or twice."""
        if link.cut or not link.up:
            return ()
        w, draw = self.weather, self._rng.random
        if w.loss and draw() < w.loss:
            return ()
        at = now + w.delay_s + draw() * w.jitter_s
        if w.late and draw() < w.late:
            at += draw() * 0.5
        if w.in_order:
            at = link.newest = max(at, link.newest)
        if w.twice and draw() < w.twice:
            return at, at + draw() * 0.05
        return (at,)

    def cut(self, a: int, b: int, now: float) -> None:
        link = self.links[a][b]
        if not link.cut:
            link.cut, link.cut_at = True, now

    def heal(self) -> None:
        for row in self.links:
            for link in row:
                link.cut = link.udp_cut = False

    def break_link(self, a: int, b: int) -> None:
        for link in (self.links[a][b], self.links[b][a]):
            link.broken += 1
            link.up = False

    def restore_link(self, a: int, b: int) -> None:
        for link in (self.links[a][b], self.links[b][a]):
            link.up = True
            link.newest = 0.0
