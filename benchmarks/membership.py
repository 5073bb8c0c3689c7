"""`make bench-membership`: how soon a killed peer is known to be dead, beside the package kinship in one run.

Every member is a process of its own on loopback, killed with kill -9 and started again after each round.
Counted is when each of the others says that it is dead (and suspect before), since the kill. Ours are whole
peers, with store, connections and clients' ports; kinship is SWIM with Lifeguard in Rust, membership alone.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import meshq
from meshq.errors import MeshqError

SIZES = (10, 30)
ROUNDS = 5
DEADLINE_S = 90.0
EQUAL = {"probe_interval": 0.1, "probe_timeout": 0.08, "gossip_interval": 0.1}  # as our `lan`
Told = dict[str, Any]


class Cluster(Protocol):
    """`members` by name; `told` of one is a list of events, in order: `at_ms`, `event`, `name`."""

    members: list[str]

    def kill(self, name: str) -> int: ...
    def start(self, name: str) -> None: ...
    def told(self, name: str) -> list[Told]: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    sides: list[tuple[str, Callable[[Path, int], Any]]] = [("meshq, `lan`", our_peers)]
    if importlib.util.find_spec("kinship"):
        sides.append(("kinship, its defaults", lambda where, n: kinship_nodes(where, n, {})))
        sides.append(("kinship, probing as often", lambda where, n: kinship_nodes(where, n, EQUAL)))
    else:
        print("kinship is not installed: pip install 'meshq[bench]'", file=sys.stderr)
    lines = [
        "| members | who | first suspicion, median | max | dead, median of observers | max | ratio to ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for size in args.sizes:
        ours = 0.0
        for name, make in sides:
            with ExitStack() as stack:
                where = stack.enter_context(tempfile.TemporaryDirectory(prefix="meshq-bench-"))
                suspected, dead = kills(stack.enter_context(make(Path(where), size)), args.rounds)
            median = statistics.median(dead)
            ours = ours or median
            lines.append(
                f"| {size} | {name} | {statistics.median(suspected):.2f} s | {max(suspected):.2f} s "
                f"| {median:.2f} s | {max(dead):.2f} s | {median / ours:.1f} |"
            )
            print(lines[-1], file=sys.stderr)
    print("\n".join(lines))
    if args.write:
        args.write.write_text("\n".join(lines) + "\n")


def kills(cluster: Cluster, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds until the first suspicion of each round, and until each observer's verdict of death in all."""
    suspected: list[float] = []
    dead: list[float] = []
    for i in range(rounds):
        victim = cluster.members[-1 - i % (len(cluster.members) // 2)]
        at = cluster.kill(victim)
        found = _wait_for_all(cluster, ("MemberDead",), victim, at)
        dead += [(x["at_ms"] - at) / 1000 for x in found]
        others = [m for m in cluster.members if m != victim]
        doubts = [_first(cluster, o, ("MemberSuspect",), victim, at) for o in others]
        suspected.append((min(x["at_ms"] for x in doubts if x) - at) / 1000)
        back = _now_ms()
        cluster.start(victim)
        _wait_for_all(cluster, JOINED, victim, back)
        _wait(f"{victim} knows all", partial(_knows_all, cluster, victim, back))
        time.sleep(2.0)  # for what a start brings with it: connections, notes that are compared
    return suspected, dead


def _wait_for_all(cluster: Cluster, events: Sequence[str], about: str, since: int) -> list[Told]:
    """The first such event at each of the others."""
    found: dict[str, Told] = {}
    others = [m for m in cluster.members if m != about]

    def look() -> bool:
        for other in (o for o in others if o not in found):
            if (first := _first(cluster, other, events, about, since)) is not None:
                found[other] = first
        return len(found) == len(others)

    _wait(f"{events[0]} of {about} everywhere", look)
    return list(found.values())


JOINED = ("MemberAlive", "MemberJoined")


def _knows_all(cluster: Cluster, name: str, since: int) -> bool:
    alive = {x["name"] for x in cluster.told(name) if x["event"] in JOINED and x["at_ms"] >= since}
    return set(cluster.members) - {name} <= alive


def _first(cluster: Cluster, by: str, events: Sequence[str], about: str, since: int) -> Told | None:
    for x in cluster.told(by):
        if x["event"] in events and x["name"] == about and x["at_ms"] >= since:
            return x
    return None


def _wait(what: str, condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        if time.monotonic() > end:
            raise SystemExit(f"not so after {DEADLINE_S:g} s: {what}")
        time.sleep(0.1)
    return value


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# ------------------------------------------------------------------------------------------------------- ours
class OurPeers:
    def __init__(self, where: Path, count: int) -> None:
        self._where = where
        self.members = [f"peer{i}" for i in range(1, count + 1)]
        command = [sys.executable, "-m", "meshq", "init", "--peers", count, "--out", where, "--port", 20_000]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._told: dict[str, list[Told]] = {m: [] for m in self.members}
        self._loop = asyncio.new_event_loop()

    def start(self, name: str) -> None:
        data = self._where / name
        up = [sys.executable, "-m", "meshq", "up", "--data", data, "--bind", "127.0.0.1", "--no-mdns"]
        up += ["--disk-reserve-bytes", "0", "--log-level", "error"]
        self._running[name] = subprocess.Popen(list(map(str, up)), stdout=subprocess.DEVNULL)
        self._told[name] = []

    def kill(self, name: str) -> int:
        at = _now_ms()
        self._running[name].kill()
        self._running[name].wait()
        return at

    def told(self, name: str) -> list[Told]:
        """Asked of the peer itself, when it is looked at; its own times stand in it."""
        self._told[name] += self._loop.run_until_complete(self._ask(name))
        return self._told[name]

    async def _ask(self, name: str) -> list[Told]:
        last = self._told[name][-1]["seq"] if self._told[name] else 0
        if not (self._where / name / "admin.meshq").exists() or self._running[name].poll() is not None:
            return []
        try:
            async with meshq.connect(data=self._where / name, timeout=2.0) as mesh:
                answer = await mesh.ask("events", {"after": last}, timeout=2.0)
        except MeshqError:
            return []
        return list(answer["events"]) if answer["name"] == name else []

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()
        self._loop.close()


@contextmanager
def our_peers(where: Path, count: int) -> Iterator[OurPeers]:
    peers = OurPeers(where, count)
    try:
        yield _started(peers)
    finally:
        peers.close()


# ---------------------------------------------------------------------------------------------------- kinship
class KinshipNodes:
    def __init__(self, where: Path, count: int, options: dict[str, float]) -> None:
        self._where, self._options = where, options
        self.members = [f"node{i}" for i in range(1, count + 1)]
        self._ports = {m: str(21_000 + i) for i, m in enumerate(self.members)}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        seeds = ",".join(self._ports[m] for m in self.members[:3] if m != name)
        node = [sys.executable, "-m", "benchmarks.kinship_node", name, self._ports[name], seeds]
        with (self._where / name).open("wb") as out:
            self._running[name] = subprocess.Popen(
                [*node, json.dumps(self._options)], stdout=out, stderr=subprocess.DEVNULL
            )

    def kill(self, name: str) -> int:
        at = _now_ms()
        self._running[name].kill()
        self._running[name].wait()
        return at

    def told(self, name: str) -> list[Told]:
        whole = (self._where / name).read_bytes().rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait()


@contextmanager
def kinship_nodes(where: Path, count: int, options: dict[str, float]) -> Iterator[KinshipNodes]:
    nodes = KinshipNodes(where, count, options)
    try:
        yield _started(nodes)
    finally:
        nodes.close()


def _started(cluster: Any) -> Any:
    """All of them, until each knows each."""
    began = _now_ms()
    for name in cluster.members:
        cluster.start(name)
    for name in cluster.members:
        _wait(f"{name} knows all", partial(_knows_all, cluster, name, began))
    time.sleep(3.0)
    return cluster


if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    main()
