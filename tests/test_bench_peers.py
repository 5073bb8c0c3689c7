"""`make bench-peers` measures what its tables show, of a system that keeps its records in a list."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.__main__ import COLUMNS, SYSTEMS, tables
from benchmarks.peers.measures import Effort, Found, measure
from benchmarks.peers.meshq_three import Meshq
from benchmarks.peers.system import System, Unable


class InMemory(System):
    name, settings, promised, version = "in memory", "a list", "nothing", "1"

    async def start(self) -> None:
        self.topics: defaultdict[str, list[bytes]] = defaultdict(list)
        self.followers: list[Callable[[bytes], None]] = []

    async def leader_of(self, topic: str) -> int:
        raise Unable("nobody leads")

    async def create(self, topic: str, *, bulk: bool = False) -> None:
        assert topic not in self.topics, "each measure has topics of its own"

    async def publish_many(self, topic: str, value: bytes, count: int) -> None:
        self.topics[topic] += [value] * count

    async def publish(self, topic: str, value: bytes) -> None:
        await asyncio.sleep(0)
        self.topics[topic].append(value)
        for take in self.followers:
            take(value)

    async def read(self, topic: str, count: int, take: Callable[[bytes], None]) -> None:
        for value in self.topics[topic][:count]:
            take(value)

    async def follow(self, topic: str, ready: asyncio.Event, take: Callable[[bytes], None]) -> None:
        self.followers.append(take)
        ready.set()
        await asyncio.Event().wait()

    async def work(self, topic: str, count: int) -> None:
        raise RuntimeError("on strike")


async def test_every_column_is_measured_and_what_is_not_is_told_with_the_reason(tmp_path: Path) -> None:
    system = InMemory(tmp_path)
    await system.start()
    effort = Effort(seconds=0.05, rounds=2, idle_s=0.01, deadline_s=5)
    found = await measure(system, effort, lambda _: None)
    assert found.figures.keys() | {"work", "gap", "memory_idle"} == {c[1] for c in COLUMNS} | {"memory_idle"}
    assert found.why == {"work": "RuntimeError: on strike", "gap": "nobody leads"}
    assert found.figures["catch_up"] > 0 and 0 < found.figures["paced_p50"] <= found.figures["paced_p99"] < 1


def test_other_systems_are_shown_as_ratios_to_ours(tmp_path: Path) -> None:
    ours, other = (
        Found({"publish100": 1000.0, "gap": 0.5}),
        Found({"publish100": 250.0}, {"gap": "it fell asleep"}),
    )
    rows = tables({Meshq.name: (Meshq(tmp_path), ours), "in memory": (InMemory(tmp_path), other)}, Effort())
    lines = rows.splitlines()
    assert any(line.startswith("| meshq | 1,000 |") and "| 0.50 |" in line for line in lines)
    assert any(line.startswith("| in memory | 250 (0.25) | - |") for line in lines)
    assert "- in memory, gap: it fell asleep" in lines


def test_each_system_says_what_it_promised_under_a_name_of_its_own() -> None:
    assert len({s.name for s in SYSTEMS}) == len(SYSTEMS) == 10
    assert all(s.promised and s.settings for s in SYSTEMS)
