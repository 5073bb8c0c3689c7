"""What is measured of a system, the same for all: throughput, latencies, catch-up, work, fail-over, cost.

Every figure is the median of its rounds, and every measure has a deadline: what does not end is no figure.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.peers.system import System, Unable
from benchmarks.processes import cpu_s, memory_mib, percentile

SIZES = (100, 1024)
PROBE = 2_000  # records by which it is found out how many make a round
MOST = 4_000_000  # records of one round
PACE = 200  # records a second, of which each is timed from its sending to its reader
GAP_BEFORE_S, GAP_AFTER_S = 1.0, 15.0


@dataclass(frozen=True)
class Effort:
    """How long to look. `quick` is for whoever changes this code: its figures say nothing."""

    seconds: float = 6.0
    rounds: int = 3
    idle_s: float = 10.0
    deadline_s: float = 90.0

    @classmethod
    def quick(cls) -> Effort:
        return cls(seconds=0.5, rounds=1, idle_s=1.0, deadline_s=40.0)


@dataclass
class Found:
    """Figures by name; `why` for those that are not there."""

    figures: dict[str, float] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


async def measure(system: System, effort: Effort, say: Callable[[str], None]) -> Found:
    found = Found()
    parts: dict[str, Callable[[System, Effort, Found], Awaitable[None]]] = {
        "idle": _idle,
        "bulk": _bulk,
        "single": _single,
        "paced": _paced,
        "work": _work,
        "gap": _gap,
    }
    for name, part in parts.items():
        start = time.perf_counter()
        try:
            async with asyncio.timeout(effort.deadline_s * (1 + effort.rounds)):
                await part(system, effort, found)
        except Unable as e:
            found.why[name] = str(e)
        except TimeoutError:
            found.why[name] = "not done in time"
        except Exception as e:
            while isinstance(e, ExceptionGroup):
                e = e.exceptions[0]
            found.why[name] = f"{type(e).__name__}: {e}"
        said = found.why.get(name) or "done"
        say(f"{system.name}: {name} {said} ({time.perf_counter() - start:.1f} s)")
    return found


async def _idle(system: System, effort: Effort, found: Found) -> None:
    await asyncio.sleep(effort.idle_s / 2)
    pids = [pid for node in system.nodes for pid in node.pids()]
    before, start = sum(map(cpu_s, pids)), time.perf_counter()
    await asyncio.sleep(effort.idle_s)
    found.figures["idle"] = (sum(map(cpu_s, pids)) - before) / (time.perf_counter() - start) / 3
    found.figures["memory_idle"] = sum(memory_mib(pid)["VmRSS"] for pid in pids) / 3


async def _bulk(system: System, effort: Effort, found: Found) -> None:
    """Durable publishing, and then all of it read from the beginning."""
    for size in SIZES:
        topic, value, total = f"bench.bulk{size}", bytes(range(256)) * 4, 0
        value = value[:size]
        await system.create(topic, bulk=True)
        rates = []
        count = PROBE
        for number in range(effort.rounds + 2):  # the first two only tell how many are enough
            start = time.perf_counter()
            await system.publish_many(topic, value, count)
            rate = count / (time.perf_counter() - start)
            total += count
            if number > 1:
                rates.append(rate)
            count = min(
                max(PROBE, int(rate * effort.seconds * (0.2 if number == 0 else 1)) // 1_000 * 1_000), MOST
            )
        found.figures[f"publish{size}"] = statistics.median(rates)
        if size == SIZES[0]:
            await _catch_up(system, effort, found, topic, total)
    found.figures["memory"] = sum(memory_mib(p)["VmRSS"] for n in system.nodes for p in n.pids()) / 3


async def _catch_up(system: System, effort: Effort, found: Found, topic: str, total: int) -> None:
    count = min(total, MOST)
    start, seen = time.perf_counter(), 0

    def take(value: bytes) -> None:
        nonlocal seen
        seen += 1

    try:
        async with asyncio.timeout(effort.deadline_s):
            await system.read(topic, count, take)
    except Unable as e:
        found.why["catch_up"] = str(e)
        return
    except TimeoutError:
        found.why["catch_up"] = f"{seen:,} of {count:,} in {effort.deadline_s:.0f} s"
    found.figures["catch_up"] = seen / (time.perf_counter() - start)


async def _single(system: System, effort: Effort, found: Found) -> None:
    """One after the other, each when the one before is acknowledged."""
    await system.create("bench.single")
    p50, p99 = [], []
    await system.publish("bench.single", b"x" * 100)
    for _ in range(effort.rounds):
        took, end = [], time.perf_counter() + effort.seconds
        while (start := time.perf_counter()) < end:
            await system.publish("bench.single", b"x" * 100)
            took.append(time.perf_counter() - start)
        p50.append(percentile(took, 50))
        p99.append(percentile(took, 99))
    found.figures |= {"single_p50": statistics.median(p50), "single_p99": statistics.median(p99)}


async def _paced(system: System, effort: Effort, found: Found) -> None:
    """From the call of publish to the reader's hand, at a pace that all can keep."""
    await system.create("bench.paced")
    await system.publish("bench.paced", b"first")
    took: list[float] = []

    def take(value: bytes) -> None:
        if value.isdigit():
            took.append((time.perf_counter_ns() - int(value)) / 1e9)

    ready = asyncio.Event()
    following = asyncio.create_task(system.follow("bench.paced", ready, take))
    try:
        await asyncio.wait_for(ready.wait(), 30)
        rounds = []
        for _ in range(effort.rounds):
            took.clear()
            await _publish_paced(system, int(effort.seconds * PACE))
            await asyncio.sleep(0.3)
            if not took:
                raise Unable("nothing arrived")
            rounds.append((percentile(took, 50), percentile(took, 99)))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    for i, name in enumerate(("paced_p50", "paced_p99")):
        found.figures[name] = statistics.median(r[i] for r in rounds)


async def _publish_paced(system: System, count: int) -> None:
    sending: list[asyncio.Task[None]] = []
    due = time.perf_counter()
    for _ in range(count):
        await asyncio.sleep(max(0, due - time.perf_counter()))
        due += 1 / PACE
        sending.append(asyncio.create_task(system.publish("bench.paced", b"%d" % time.perf_counter_ns())))
    for error in await asyncio.gather(*sending, return_exceptions=True):
        if error is not None:
            raise Unable(f"of {count} publishes at this pace one failed: {type(error).__name__}: {error}")


async def _work(system: System, effort: Effort, found: Found) -> None:
    """Two consumers share what is there, and acknowledge each record by itself."""
    rates = []
    count = int(found.figures.get("publish100", 10_000) * effort.seconds / 4) // 1_000 * 1_000
    count = max(1_000, min(count, 400_000))
    for number in range(effort.rounds):
        topic = f"bench.work{number}"
        await system.create(topic, bulk=True)
        await system.publish_many(topic, b"x" * 100, count)
        start = time.perf_counter()
        await system.work(topic, count)
        rates.append(count / (time.perf_counter() - start))
    found.figures["work"] = statistics.median(rates)


async def _gap(system: System, effort: Effort, found: Found) -> None:
    """The leader is killed while somebody publishes: the longest time in which nothing was acknowledged."""
    await system.create("bench.gap")
    gaps = []
    for _ in range(effort.rounds):
        victim = system.nodes[await system.leader_of("bench.gap")]
        gaps.append(await _gap_of(system, victim))
        victim.start()
        await asyncio.sleep(effort.idle_s)
    found.figures["gap"] = statistics.median(gaps)


async def _gap_of(system: System, victim: object) -> float:
    acknowledged = [time.perf_counter()]
    stop = asyncio.Event()

    async def publish() -> None:
        while not stop.is_set():
            try:
                await system.publish("bench.gap", b"x" * 100)
            except Exception:
                await asyncio.sleep(0.01)
            else:
                acknowledged.append(time.perf_counter())

    publishers = [asyncio.create_task(publish()) for _ in range(4)]
    await asyncio.sleep(GAP_BEFORE_S)
    killed = time.perf_counter()
    victim.kill()  # type: ignore[attr-defined]
    end = killed + GAP_AFTER_S
    while time.perf_counter() < end and acknowledged[-1] < killed + 2:  # noqa: ASYNC110 others append
        await asyncio.sleep(0.02)
    stop.set()
    await asyncio.gather(*publishers)
    after = [t for t in acknowledged if t >= killed - 0.5]
    if after[-1] < killed + 0.1:
        raise Unable(f"nothing was acknowledged for {GAP_AFTER_S:.0f} s")
    return max(b - a for a, b in pairwise(after))
