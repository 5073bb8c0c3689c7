"""The lab itself: that each fault stops what it says, in the direction it says, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.lab.network import PREFIX, Host, Network, sweep, why_not

pytestmark = [pytest.mark.lab, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

# Answers every datagram to port 9 and takes every connection to port 9, on both families.
ECHO = """
import selectors, socket
ready = selectors.DefaultSelector()
for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
    s = socket.socket(socket.AF_INET6, kind)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind(("::", 9))
    if kind == socket.SOCK_STREAM:
        s.listen(16)
    ready.register(s, selectors.EVENT_READ, kind)
print("ready", flush=True)
while True:
    for key, _ in ready.select():
        if key.data == socket.SOCK_STREAM:
            key.fileobj.accept()[0].close()
        else:
            data, where = key.fileobj.recvfrom(99)
            key.fileobj.sendto(data, where)
            print("got", flush=True)
"""
ASK = """
import socket, sys
kind, host, tries = sys.argv[1], sys.argv[2], int(sys.argv[3])
for _ in range(tries):
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET,
                      socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.settimeout(0.15)
    try:
        s.connect((host, 9))
        if kind == "udp":
            s.send(b"x")
            s.recv(9)
        print("yes")
    except OSError:
        print("no")
"""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(3) as made:
        for host in made.hosts:
            process = host.start(sys.executable, "-S", "-c", ECHO, stdout=subprocess.PIPE)
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        yield made


@pytest.fixture(autouse=True)
def healed(network: Network) -> Iterator[None]:
    yield
    network.heal()


def reaches(a: Host, b: Host, kind: str = "udp", *, address: str = "", tries: int = 1) -> int:
    done = a.run(sys.executable, "-S", "-c", ASK, kind, address or b.address, str(tries))
    return done.stdout.count(b"yes")


def test_a_cut_stops_both_ways_and_others_pass(network: Network) -> None:
    a, b, c = network.hosts
    assert reaches(a, b) and reaches(b, a) and reaches(a, b, address=b.address6)
    network.cut(a, b)
    assert not reaches(a, b) and not reaches(b, a, "tcp") and not reaches(a, b, address=b.address6)
    assert reaches(a, c) and reaches(c, b)
    network.heal()
    assert reaches(a, b)


def test_a_cut_of_one_way_lets_the_other_pass(network: Network) -> None:
    a, b, _ = network.hosts
    network.cut(a, b, one_way=True)
    assert not reaches(a, b)
    heard = b.processes[0].stdout
    assert heard is not None
    os.set_blocking(heard.fileno(), False)
    heard.read()
    assert not reaches(b, a)  # what b sends arrives; the answer does not
    said = a.processes[0].stdout
    assert said is not None and b"got" in said.readline()
    assert not heard.read()


def test_a_split_stops_what_goes_between_the_groups_only(network: Network) -> None:
    a, b, c = network.hosts
    network.split([a], [b, c])
    assert not reaches(a, b) and not reaches(c, a) and reaches(b, c)


def test_blocked_udp_lets_tcp_pass(network: Network) -> None:
    a, b, c = network.hosts
    network.udp_block(a, b)
    assert not reaches(a, b) and reaches(a, b, "tcp") and reaches(a, c)
    network.heal()
    network.udp_block(a)
    assert not reaches(a, c) and not reaches(c, a) and reaches(a, c, "tcp") and reaches(b, c)


def test_loss_loses_about_as_many_as_it_says(network: Network) -> None:
    a, b, _ = network.hosts
    network.loss(0.3)
    arrived = reaches(
        a, b, tries=60
    )  # there and back: 0.7 squared, 29 of 60, give or take four standard deviations
    assert 13 <= arrived <= 45
    network.heal()
    assert reaches(a, b, tries=60) == 60


def test_an_address_changes_and_an_interface_comes_and_goes(network: Network) -> None:
    a, b, _ = network.hosts
    before = b.address
    b.change_address("10.77.0.99")
    assert reaches(a, b) and not reaches(a, b, address=before)
    b.unplug()
    assert not reaches(a, b)
    b.plug()
    assert reaches(a, b) and reaches(a, b, address=b.address6)


def test_what_a_killed_run_left_is_removed(network: Network) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    name = f"{PREFIX}{gone.pid}x1h1"
    subprocess.run(["ip", "netns", "add", name], check=True)
    left = subprocess.Popen(["ip", "netns", "exec", name, "sleep", "60"])
    sweep()
    assert left.wait(5) == -9
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert name not in listed
    assert network.switch in listed
