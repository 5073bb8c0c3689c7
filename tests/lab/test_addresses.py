"""Addresses that come, go and change, several interfaces, IPv6 alone, and networks without multicast: peers
find each other, keep their identity, and say where they are now."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.mesh import PORT, LabMesh, LabPeer, lab_mesh, now_ms
from tests.lab.network import Network, why_not

pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


def restart(mesh: LabMesh) -> None:
    for peer in mesh.peers:
        peer.end()
    for peer in mesh.peers:
        peer.start()
    for peer in mesh.peers:
        peer.ready()


def wait_for_each_other(mesh: LabMesh, since: int) -> None:
    """Each has told of each other one since then that it is alive."""
    for peer in mesh.peers:
        mesh.wait(f"all see {peer.name}", lambda p=peer: mesh.seen("MemberAlive", about=p, since=since), 30.0)


def identity_of(mesh: LabMesh, peer: LabPeer) -> tuple[str, str]:
    last = [x for x in mesh.peers[0].read() if x.get("name") == peer.name][-1]
    return last["id"], last["boot"]


def test_without_multicast_seeds_are_enough_and_then_remembered_addresses(tmp_path: Path) -> None:
    with Network(3) as network:
        network.multicast_block()
        with lab_mesh(tmp_path, 3, mdns=True, network=network) as mesh:
            at = now_ms()
            for peer in mesh.peers:
                peer.configure(mdns=True, seeds=[])
            restart(mesh)
            wait_for_each_other(mesh, at)
            for peer in mesh.peers:
                assert "mDNS is not available" not in peer.log()  # it is there; nobody is heard by it


def test_without_multicast_seeds_or_memory_nobody_is_found(tmp_path: Path) -> None:
    """What the other tests show is not the work of something else."""
    with Network(2) as network:
        network.multicast_block()
        with lab_mesh(tmp_path, 2, mdns=True, seeds=False, wait=False, network=network) as mesh:
            began = now_ms()
            mesh.wait("five seconds", lambda: now_ms() - began > 5_000)
            assert not mesh.told("MemberAlive")
            network.heal()
            wait_for_each_other(mesh, began)


def test_ipv6_alone_is_enough(tmp_path: Path) -> None:
    with Network(3) as network:
        for host in network.hosts:
            host.drop_ipv4()
        with lab_mesh(tmp_path, 3, mdns=True, seeds=False, network=network) as mesh:
            told = mesh.told("MemberAlive")
            assert told and all(x["addresses"] == [f"[fd77::{x['name'][-1]}]:{PORT}"] for x in told)


def test_link_local_ipv6_alone_is_enough(tmp_path: Path) -> None:
    with Network(2) as network:
        for host in network.hosts:
            host.drop_ipv4()
            host.ip("addr", "del", f"{host.address6}/64", "dev", "eth0")
        network.wait_for_link_local()
        with lab_mesh(tmp_path, 2, mdns=True, seeds=False, network=network) as mesh:
            told = mesh.told("MemberAlive")
            assert told and all(a.startswith("[fe80:") for x in told for a in x["addresses"])


def test_an_interface_drops_and_comes_back_with_another_address(tmp_path: Path) -> None:
    """Wi-Fi: away for three seconds, then another lease. Dead meanwhile, and the same peer afterwards."""
    with lab_mesh(tmp_path, 3, mdns=True) as mesh:
        victim = mesh.peers[2]
        before = identity_of(mesh, victim)
        at = now_ms()
        victim.host.unplug()
        mesh.wait("dead for the others", lambda: mesh.seen("MemberDead", about=victim, since=at))
        mesh.wait("three seconds", lambda: now_ms() - at > 3_000)
        victim.host.address = "10.77.0.33"
        back = now_ms()
        victim.host.plug()
        mesh.wait("alive", lambda: mesh.seen("MemberAlive", about=victim, since=back))
        mesh.wait("all see all", mesh.all_alive)
        mesh.wait("its new address is known", lambda: mesh.seen("MemberMoved", about=victim, since=back))
        assert identity_of(mesh, victim) == before
        mesh.wait("all are connected", lambda: mesh.all_linked_to(victim), 20.0)


def test_a_peer_that_starts_without_a_network_is_found_when_there_is_one(tmp_path: Path) -> None:
    with Network(2) as network:
        network.hosts[1].unplug()
        with lab_mesh(tmp_path, 2, mdns=True, seeds=False, wait=False, network=network) as mesh:
            at = now_ms()
            network.hosts[1].plug()
            wait_for_each_other(mesh, at)


def test_of_two_interfaces_one_is_enough(tmp_path: Path) -> None:
    """Every host is on two networks. Where one goes down, the other carries on, and nobody is called dead."""
    with Network(3) as network:
        network.second_interfaces()
        with lab_mesh(tmp_path, 3, mdns=True, network=network) as mesh:
            victim = mesh.peers[2]
            at = now_ms()
            victim.host.unplug()
            mesh.wait("its address is known", lambda: mesh.seen("MemberMoved", about=victim, since=at))
            mesh.wait("connected", lambda: all("10.78.0.3" in p.links() for p in mesh.peers[:2]), 20.0)
            assert mesh.all_alive()
            assert not mesh.told("MemberDead", since=at)
            at = now_ms()
            victim.host.plug()
            moved = mesh.wait("and again", lambda: mesh.seen("MemberMoved", about=victim, since=at))
            assert {f"10.77.0.3:{PORT}", f"10.78.0.3:{PORT}"} <= set(moved["peer1"]["addresses"])
