"""Ordered groups on hosts of their own: members and peers killed, stopped and cut off under load, and judged.

`make lab-groups`. What is held: a member's death is over for its partitions within its session timeout and a
second, a clean leave within 200 ms, a peer's death within two seconds; and what `members.faults` looks for is
nowhere."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.conftest import Report
from tests.lab.members import Crew, Member, faults
from tests.lab.mesh import MESHQ, LabMesh, lab_mesh
from tests.lab.network import Host, Network, why_not
from tests.peers import environment

pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

TOPIC = "numbers"
TIMEOUT_S = 4.0
RATE, KEYS = 1_000, 1_024  # records a second: each partition of 64 has some fifteen
LEAVE_S, DEATH_S, PEER_S = 0.2, TIMEOUT_S + 1.0, 2.0
HEADING = (
    "members | partitions | clean leave | kill -9 | stopped | cut off | peer killed | records | taken twice"
)


@dataclass
class Group:
    mesh: LabMesh
    crew: Crew
    partitions: int
    hosts: list[Host]
    publisher: subprocess.Popen[bytes]

    def shared_out(self) -> None:
        self.mesh.wait("shared out", lambda: self.crew.is_shared_out(self.partitions), 60)

    def one_with_partitions(self) -> Member:
        return next(m for m in self.crew.running() if m.has)

    def others_work_on(self, had: Iterable[int], at: float, gone: Iterable[Member]) -> float:
        """Until each of these partitions was worked on by others, in seconds."""
        others, wanted = [m for m in self.crew.members if m not in list(gone)], set(had)

        def taken_over() -> bool:
            return self.crew.worked_since(at, others).keys() >= wanted

        self.mesh.wait(f"others work on {wanted}", taken_over, TIMEOUT_S + 30)
        found = self.crew.worked_since(at, others)
        return max(found[p] for p in wanted) - at

    def joins(self) -> None:
        self.crew.start(self.hosts[len(self.crew.members) % len(self.hosts)])
        self.shared_out()

    # ------------------------------------------------------------------------------------------ what happens
    def leaves(self) -> float:
        """Until others have what it had: they are told, and may have to wait for a record."""
        member = self.one_with_partitions()
        had, others = set(member.has), [m for m in self.crew.running() if m is not member]
        member.process.send_signal(signal.SIGTERM)
        self.mesh.wait("it says that it leaves", lambda: member.look() is not None and member.leaving_at)
        at = member.leaving_at
        self.mesh.wait("others have it", lambda: self.crew.held_since(at, others).keys() >= had)
        found = self.crew.held_since(at, others)
        return max(found[p] for p in had) - at

    def is_killed(self) -> float:
        member = self.one_with_partitions()
        had, at = member.has, time.time()
        member.process.kill()
        return self.others_work_on(had, at, [member])

    def stands_still(self) -> float:
        member = self.one_with_partitions()
        had, at = member.has, time.time()
        member.process.send_signal(signal.SIGSTOP)
        took = self.others_work_on(had, at, [member])
        member.process.send_signal(signal.SIGCONT)
        return took

    def is_cut_off(self) -> float:
        host = self.one_with_partitions().host
        there = [m for m in self.crew.running() if m.host is host]
        had, at = [p for m in there for p in m.has], time.time()
        self.mesh.network.isolate(host)
        took = self.others_work_on(had, at, there)
        self.mesh.network.heal()
        return took

    def peer_is_killed(self) -> float:
        """The longest time that a partition which one led was not worked on."""
        shown = json.loads(self.mesh.peers[0].meshq("topic", "show", TOPIC, "--json"))
        led = {
            p.name: [r["partition"] for r in shown["partition"] if r["owner"] == p.name]
            for p in self.mesh.peers
        }
        peer = max(self.mesh.peers[1:], key=lambda p: len(led[p.name]))
        at = peer.kill() / 1000
        mine = set(led[peer.name])
        assert mine
        self.mesh.wait(f"{mine} are worked on", lambda: self.crew.worked_since(at + 0.5).keys() >= mine, 30)
        words = [w for w in self.crew.words() if w.what == "W"]
        longest = 0.0
        for partition in mine:
            times = [w.at for w in words if w.partition == partition]
            gaps = [b - max(a, at) for a, b in itertools.pairwise(times) if b > at]
            longest = max([longest, *gaps])
        peer.start()
        peer.ready()
        return longest

    def judge(self) -> tuple[int, int]:
        """How many records there are, and how many were taken more than once."""
        self.publisher.terminate()
        self.mesh.wait("all is published", lambda: self.publisher.poll() is not None, 75)
        shown = json.loads(self.mesh.peers[0].meshq("topic", "show", TOPIC, "--json"))
        ends = {row["partition"]: row["end"] for row in shown["partition"]}
        total = sum(ends.values())

        def everything_is_done() -> bool:
            done = {w.partition: 0 for w in self.crew.words()}
            for w in self.crew.words():
                if w.what == "A":
                    done[w.partition] = max(done[w.partition], w.offset + 1)
            return all(done.get(p, 0) == end for p, end in ends.items())

        self.mesh.wait("all of it is done", everything_is_done, 60)
        words = self.crew.words()
        assert faults(words, ends) == []
        return total, sum(w.what == "W" for w in words) - total


@contextlib.contextmanager
def group_of(where: Path, members: int, partitions: int, hosts: int) -> Iterator[Group]:
    with Network(3 + hosts + 1) as net, lab_mesh(where, 3, network=net) as mesh:
        credentials = where / "app.meshq"
        first = mesh.peers[0]
        mesh.wait("the mesh is whole", lambda: is_whole(mesh), 60)
        can = ("--publish", "#", "--subscribe", "#")
        first.meshq("client", "add", "app", *can, "--out", str(credentials))
        first.meshq("topic", "create", TOPIC, "--partitions", str(partitions))
        crew = Crew(credentials, where, TOPIC, TIMEOUT_S)
        with (where / "publisher").open("wb") as out:
            publisher = net.hosts[-1].start(
                sys.executable, "-m", "tests.lab.load", "publish", "--credentials", credentials,
                "--topic", TOPIC, "--partitions", str(partitions), "--rate", str(RATE), "--keys", str(KEYS),
                stdout=out, env=environment(),
            )  # fmt: skip
        group = Group(mesh, crew, partitions, net.hosts[3:-1], publisher)
        for _ in range(members):
            crew.start(group.hosts[len(crew.members) % hosts])
        group.shared_out()
        yield group


def is_whole(mesh: LabMesh) -> bool:
    """Whether every slot is led and has all its copies, as each peer sees it."""
    for peer in mesh.peers:
        done = peer.host.run(*MESHQ, "status", "--json", "--data", peer.data, check=False)
        slots = json.loads(done.stdout)["slots"] if done.returncode == 0 else None
        if slots is None or any(slots[k] for k in ("leaderless", "under_replicated", "moving")):
            return False
    return True


@pytest.mark.parametrize(
    ("members", "partitions"),
    [
        tuple(map(int, x.split("x")))
        for x in os.environ.get("MESHQ_LAB_GROUPS", "1x8 3x8 20x8 6x64 20x64").split()
    ],
)
def test_partitions_go_on_whoever_goes(tmp_path: Path, report: Report, members: int, partitions: int) -> None:
    with group_of(tmp_path, max(members, 2), partitions, hosts=max(min(members, 6), 2)) as group:
        if members == 1:  # one that works, and one that takes its place
            group.one_with_partitions().process.send_signal(signal.SIGTERM)
            group.shared_out()
            group.joins()
        left = group.leaves()
        group.joins()
        killed = group.is_killed()
        group.joins()
        stopped = group.stands_still()
        group.shared_out()
        cut = group.is_cut_off()
        group.shared_out()
        lost = group.peer_is_killed()
        group.shared_out()
        total, twice = group.judge()
        times = (f"{x:.2f} s" for x in (left, killed, stopped, cut, lost))
        report.row(HEADING, members, partitions, *times, total, twice)
        assert left <= LEAVE_S
        assert max(killed, stopped, cut) <= DEATH_S
        assert lost <= PEER_S
