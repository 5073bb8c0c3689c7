"""Real peers on real hosts: what happens to them is told truly, and within the times of the docs.

The bounds are those of the `lan` profile's table. What is measured is printed, and written into the docs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest

from tests.lab.conftest import Report
from tests.lab.mesh import Event, LabMesh, LabPeer, lab_mesh, now_ms
from tests.lab.network import why_not

pytestmark = [pytest.mark.lab, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

# The table that is held, in ms.
KILLED_SUSPECTED, KILLED_DEAD = 500, 2_000
CUT_SUSPECTED, CUT_DEAD = 1_000, 3_000
BACK = 2_000  # after waking

TIMES = (
    "what | peers | rounds | first suspicion p50 | max | suspected everywhere max "
    "| dead everywhere p50 | max | back everywhere p50 | max"
)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabMesh]:
    with lab_mesh(tmp_path_factory.mktemp("three"), 3) as made:
        yield made


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabMesh]:
    with lab_mesh(tmp_path_factory.mktemp("ten"), 10) as made:
        yield made


class Times:
    """Of several rounds of one fault, in ms since it began."""

    def __init__(self, mesh: LabMesh) -> None:
        self.mesh = mesh
        self.first: list[int] = []
        self.everywhere: list[int] = []
        self.dead: list[int] = []
        self.back: list[int] = []

    def until_dead(self, victim: LabPeer, at: int, *, by: Sequence[LabPeer] | None = None) -> None:
        mesh = self.mesh
        dead = mesh.wait(
            f"{victim.name} dead everywhere", lambda: mesh.seen("MemberDead", about=victim, since=at, by=by)
        )
        # One that took another's word for the death may never have suspected it itself.
        suspected = [
            mesh.first("MemberSuspect", about=victim, since=at, by=p) for p in mesh.peers if p is not victim
        ]
        known = [
            min(_since(s, at), _since(dead.get(p.name), at))
            for s, p in zip(suspected, self._others(victim), strict=True)
        ]
        self.first.append(min(known))
        self.everywhere.append(max(known))
        self.dead.append(max(x["at_ms"] for x in dead.values()) - at)

    def until_back(self, victim: LabPeer, at: int) -> None:
        """Alive everywhere again; at once where it never was anything else."""
        mesh = self.mesh
        mesh.wait(f"{victim.name} alive everywhere", mesh.all_alive, 30.0)
        mesh.wait("all are connected", mesh.all_linked, 30.0)
        returned = [x for x in mesh.told("MemberAlive", since=at) if x["name"] == victim.name]
        self.back.append(max((x["at_ms"] for x in returned), default=at) - at)

    def show(self, report: Report, what: str) -> None:
        rounds = max(len(self.dead), len(self.back))
        cells = [_p50(self.first), _max(self.first), _max(self.everywhere), _p50(self.dead), _max(self.dead)]
        report.row(TIMES, what, len(self.mesh.peers), rounds, *cells, _p50(self.back), _max(self.back))

    def _others(self, victim: LabPeer) -> list[LabPeer]:
        return [p for p in self.mesh.peers if p is not victim]


def kill_each(mesh: LabMesh, report: Report, victims: Sequence[LabPeer]) -> None:
    times = Times(mesh)
    for victim in victims:
        times.until_dead(victim, victim.kill())
        at = now_ms()
        victim.start()
        victim.ready()
        times.until_back(victim, at)
    times.back.clear()  # that is how long a start takes
    times.show(report, "kill -9")
    assert max(times.first) <= KILLED_SUSPECTED and max(times.dead) <= KILLED_DEAD


def cut_each(mesh: LabMesh, report: Report, victims: Sequence[LabPeer]) -> None:
    """Nothing is refused and no connection breaks: only probing can tell."""
    times = Times(mesh)
    for victim in victims:
        at = now_ms()
        mesh.network.isolate(victim.host)
        times.until_dead(victim, at)
        at = now_ms()
        mesh.network.heal()
        times.until_back(victim, at)
    times.show(report, "cut off")
    assert max(times.dead) <= CUT_DEAD
    assert sorted(times.first)[len(times.first) * 99 // 100] <= CUT_SUSPECTED


def stop_each(mesh: LabMesh, report: Report, victims: Sequence[LabPeer]) -> None:
    times = Times(mesh)
    for victim in victims:
        began = victim.stop()
        mesh.wait("3 s stood still", lambda began=began: now_ms() - began >= 3_000)
        at = victim.go_on()
        times.until_back(victim, at)
        others = [x for x in mesh.told("MemberDead", since=began) if x["name"] != victim.name]
        assert not others, "who stood still must not bury the others"
    times.show(report, "stopped for 3 s")
    assert max(times.back) <= BACK


def block_udp(mesh: LabMesh, a: LabPeer, b: LabPeer) -> int:
    """Between the two; until both say so."""
    at = now_ms()
    mesh.network.udp_block(a.host, b.host)
    for one, other in ((a, b), (b, a)):
        said = mesh.wait(
            f"{one.name} names the blocked UDP",
            lambda one=one, other=other: mesh.first("UdpBlocked", about=other, since=at, by=one),
            30.0,
        )
        assert f"UDP blocked between {one.name} and {other.name}" in said["text"]
    return at


def change_address(mesh: LabMesh, peer: LabPeer, address: str, report: Report) -> None:
    before = [x for x in mesh.peers[0].read() if x.get("name") == peer.name and "boot" in x][-1]
    at = now_ms()
    peer.host.change_address(address)
    moved = mesh.wait("the new address is known", lambda: mesh.seen("MemberMoved", about=peer, since=at))
    for x in moved.values():
        assert x["addresses"][0] == f"{address}:7700"
        assert (x["id"], x["boot"]) == (before["id"], before["boot"])  # the same peer, not restarted
    mesh.wait("all are connected again", lambda: mesh.all_alive() and mesh.all_linked_to(peer), 30.0)
    linked = now_ms() - at
    spread = max(x["at_ms"] for x in moved.values()) - at
    report.row(
        "address changed, peers | known everywhere | connected again everywhere",
        len(mesh.peers),
        _ms(spread),
        _ms(linked),
    )
    assert not mesh.told("MemberDead", since=at)


# ------------------------------------------------------------------------------------------------ three peers
@pytest.mark.deadline(60)
def test_three_killed(three: LabMesh, report: Report) -> None:
    kill_each(three, report, three.peers[1:2])


def test_three_cut_off(three: LabMesh, report: Report) -> None:
    cut_each(three, report, three.peers[1:2])


def test_three_stopped(three: LabMesh, report: Report) -> None:
    stop_each(three, report, three.peers[2:3])


def test_three_blocked_udp_is_named_and_kills_nobody(three: LabMesh) -> None:
    a, b = three.peers[:2]
    at = block_udp(three, a, b)
    assert "blocked" in {p["udp"] for p in _peers(a)}
    three.network.heal()
    three.wait("no longer", lambda: three.first("UdpUnblocked", about=b, since=at, by=a))
    assert not three.told("MemberDead", since=at)


def test_three_who_is_cut_off_from_udp_hears_the_news_over_its_connections(three: LabMesh) -> None:
    a, _, c = three.peers
    at = now_ms()
    three.network.udp_block(a.host)
    three.wait("named", lambda: three.seen("UdpBlocked", about=a, since=at), 30.0)
    c.host.change_address("10.77.0.102")
    three.wait("a hears of it", lambda: three.first("MemberMoved", about=c, since=at, by=a))
    three.network.heal()
    three.wait("no longer blocked", lambda: three.seen("UdpUnblocked", about=a, since=at))
    assert not three.told("MemberDead", since=at)
    three.wait("all are connected", lambda: three.all_linked_to(c), 20.0)


def test_three_an_address_changes(three: LabMesh, report: Report) -> None:
    change_address(three, three.peers[2], "10.77.0.103", report)


# -------------------------------------------------------------------------------------------------- ten peers
@pytest.mark.long
def test_ten_killed(ten: LabMesh, report: Report) -> None:
    kill_each(ten, report, ten.peers[1:9])


@pytest.mark.long
def test_ten_cut_off(ten: LabMesh, report: Report) -> None:
    cut_each(ten, report, ten.peers)


@pytest.mark.long
def test_ten_stopped(ten: LabMesh, report: Report) -> None:
    stop_each(ten, report, ten.peers[3:8])


@pytest.mark.long
def test_ten_split_in_halves_and_healed(ten: LabMesh, report: Report) -> None:
    left, right = ten.peers[:5], ten.peers[5:]
    at = now_ms()
    ten.network.split([p.host for p in left], [p.host for p in right])

    def halves_apart() -> list[Event]:
        found = [
            ten.first("MemberDead", about=x, since=at, by=y)
            for here, there in ((left, right), (right, left))
            for y in here
            for x in there
        ]
        return [] if None in found else [x for x in found if x]

    dead = ten.wait("each half says that the other is dead", halves_apart, 30.0)
    apart = max(x["at_ms"] for x in dead) - at
    assert ten.all_alive(left) and ten.all_alive(right)
    healed = now_ms()
    ten.network.heal()
    ten.wait("all see all alive", ten.all_alive, 60.0)
    together = max(x["at_ms"] for x in ten.told("MemberAlive", since=healed)) - healed
    ten.wait("all are connected", ten.all_linked, 60.0)
    report.row(
        "split in halves, peers | all of the other half dead | all alive again after healing",
        10,
        _ms(apart),
        _ms(together),
    )


@pytest.mark.long
def test_ten_blocked_udp_is_named_and_kills_nobody(ten: LabMesh, report: Report) -> None:
    a, b = ten.peers[2], ten.peers[6]
    at = block_udp(ten, a, b)
    named = max(x["at_ms"] for x in ten.told("UdpBlocked", since=at)) - at
    ten.network.heal()
    ten.wait("no longer", lambda: ten.first("UdpUnblocked", about=b, since=at, by=a))
    at_all = now_ms()
    ten.network.udp_block(a.host)
    said = ten.wait("all name it", lambda: ten.seen("UdpBlocked", about=a, since=at_all), 30.0)
    everywhere = max(x["at_ms"] for x in said.values()) - at_all
    ten.wait("ten seconds of it", lambda: now_ms() - at_all > 10_000, 20.0)
    ten.network.heal()
    suspicions = len(ten.told("MemberSuspect", since=at))
    report.row(
        "UDP blocked, peers | named by both | with one host, named by all | suspicions | deaths",
        10,
        _ms(named),
        _ms(everywhere),
        suspicions,
        len(ten.told("MemberDead", since=at)),
    )
    ten.wait("all alive", ten.all_alive)
    assert not ten.told("MemberDead", since=at)


@pytest.mark.long
def test_ten_an_address_changes(ten: LabMesh, report: Report) -> None:
    change_address(ten, ten.peers[4], "10.77.0.105", report)


def _peers(peer: LabPeer) -> list[Event]:
    found: list[Event] = json.loads(peer.meshq("peers", "--json"))
    return found


def _since(event: Event | None, at: int) -> int:
    return event["at_ms"] - at if event else 1_000_000


def _p50(values: Sequence[int]) -> str:
    return _ms(sorted(values)[len(values) // 2]) if values else "-"


def _max(values: Sequence[int]) -> str:
    return _ms(max(values)) if values else "-"


def _ms(value: int) -> str:
    return f"{value / 1000:.2f} s"
