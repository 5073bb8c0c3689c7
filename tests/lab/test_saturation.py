"""A peer that is publishing as much as the machine can: slow is not dead, and nobody says so for long."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.lab.conftest import Report
from tests.lab.mesh import MESHQ, LabMesh, LabPeer, lab_mesh, now_ms
from tests.lab.network import why_not
from tests.peers import environment

pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

SECONDS = 20
BUSY = 0.9  # of all cores, or the test has not tested anything


def topic_owned_by(peer: LabPeer) -> str:
    """A topic whose one partition that peer owns; made until there is one."""
    for i in range(200):
        name = f"busy{i}"
        peer.meshq("topic", "create", name, "--partitions", "1")
        shown = json.loads(peer.meshq("topic", "show", name, "--json"))
        if shown["partition"][0]["owner"] == peer.name:
            return name
    raise AssertionError(f"{peer.name} owns no slot")


def busy_share(before: list[int], after: list[int]) -> float:
    """Of all cores, from two lines of /proc/stat; idle and waiting for the disk are not busy."""
    spent = [b - a for a, b in zip(before, after, strict=True)]
    return 1 - (spent[3] + spent[4]) / sum(spent)


def cpu() -> list[int]:
    return [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def publish_all_the_time(peer: LabPeer, topic: str) -> subprocess.Popen[bytes]:
    """Lines of 100 bytes, as fast as they are taken."""
    lines = subprocess.Popen(["yes", "x" * 99], stdout=subprocess.PIPE)
    peer.host.processes.append(lines)
    return peer.host.start(
        *MESHQ, "pub", topic, "--data", peer.data, stdin=lines.stdout, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=environment(),
    )  # fmt: skip


def end_of(topic: str, peer: LabPeer) -> int:
    shown = json.loads(peer.meshq("topic", "show", topic, "--json"))
    return int(shown["partition"][0]["end"] or 0)


def longest_suspicion_ms(mesh: LabMesh, since: int, until: int) -> int:
    """From a MemberSuspect to the MemberAlive of the same by the same."""
    longest = 0
    for observer in mesh.peers:
        began: dict[str, int] = {}
        for x in observer.read():
            if x["at_ms"] < since or "state" not in x:
                continue
            if x["event"] == "MemberSuspect":
                began[x["name"]] = x["at_ms"]
            elif x["event"] == "MemberAlive" and x["name"] in began:
                longest = max(longest, x["at_ms"] - began.pop(x["name"]))
        longest = max([longest, *(until - at for at in began.values())])
    return longest


def test_while_one_peer_is_saturated_nobody_dies(tmp_path: Path, report: Report) -> None:
    with lab_mesh(tmp_path, 10) as mesh:
        victim = mesh.peers[0]
        mesh.wait("it owns slots", lambda: b" 0 of" not in victim.meshq("status"))
        topic = topic_owned_by(victim)
        at, before = now_ms(), cpu()
        publishers = [publish_all_the_time(victim, topic) for _ in range(3)]
        mesh.wait(f"{SECONDS} s of it", lambda: now_ms() - at > SECONDS * 1000, SECONDS + 20)
        busy, until = busy_share(before, cpu()), now_ms()
        assert all(p.poll() is None for p in publishers)
        records = end_of(topic, victim)
        for p in publishers:
            p.kill()
        mesh.wait("all alive", mesh.all_alive)
        suspicions = len(mesh.told("MemberSuspect", since=at))
        deaths = len(mesh.told("MemberDead", since=at))
        longest = longest_suspicion_ms(mesh, at, until)
        report.row(
            "one of 10 saturated for | cores busy | records/s | suspicions | longest until refuted | deaths",
            f"{SECONDS} s", f"{busy:.0%}", f"{records / SECONDS:,.0f}", suspicions,
            f"{longest / 1000:.2f} s", deaths,
        )  # fmt: skip
        assert busy > BUSY
        assert deaths == 0
