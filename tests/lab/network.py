"""Hosts on a wire: network namespaces joined by a bridge, with real multicast, and what may go wrong with it.

Every host is a namespace of its own with one veth into one that holds the bridge, so nothing touches the
machine's own network, and all of it goes away with the namespaces. Faults are nftables rules on the bridge,
written anew as a whole in one step, so that they never add up by accident and `heal` is nothing but no rules.
Needs root, iproute2 and nft.

    with Network(3) as net:
        a, b, c = net.hosts
        a.run("ip", "route")
        net.cut(a, b)                 # both ways; net.cut(a, b, one_way=True): nothing from a to b
        net.split([a], [b, c])        # no packet between the groups
        net.loss(0.2)                 # of all packets; net.loss(0.2, a): of those from and to a
        net.udp_block(a, b)           # UDP between the two, TCP passes; net.udp_block(a): with everybody
        net.heal()
        a.change_address("10.77.0.99")
        a.unplug(); a.plug()

What is left of a run that was killed is removed by the next one: the names hold the process id.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PREFIX = os.environ.get("MESHQ_LAB_PREFIX", "mq")
_networks = itertools.count(1)


def why_not() -> str | None:
    """Why namespaces can't be made here, or None."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    for program, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(program) is None:
            return f"needs {package} ({program}): make lab-deps"
    name = f"{PREFIX}{os.getpid()}probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


@dataclass
class Host:
    """One host: `run` and `start` execute commands inside it. `port`: its end of the wire at the bridge."""

    name: str
    number: int
    address: str
    port: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address6(self) -> str:
        return f"fd77::{self.number}"

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        return ["ip", "netns", "exec", self.name, *map(str, argv)]

    def run(self, *argv: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """To its end, within a minute; output captured; fails loudly unless check=False."""
        given: dict[str, Any] = {"capture_output": True, "timeout": 60, **options}
        check = given.pop("check", True)
        done = subprocess.run(self.command(argv), check=False, **given)
        assert not check or done.returncode == 0, (
            f"{argv}: {done.returncode}\n{done.stdout!r}\n{done.stderr!r}"
        )
        return done

    def start(self, *argv: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Its pid is that of the command itself, so that it can be killed and stopped."""
        process = subprocess.Popen(self.command(argv), **options)
        self.processes.append(process)
        return process

    # -------------------------------------------------------------------------------------- its interface
    def change_address(self, address: str) -> None:
        """Of IPv4, as DHCP does it: the old one is gone, then the new one is there."""
        self.ip("addr", "del", f"{self.address}/24", "dev", "eth0")
        self.ip("addr", "add", f"{address}/24", "dev", "eth0")
        self.address = address

    def drop_ipv4(self) -> None:
        self.ip("addr", "del", f"{self.address}/24", "dev", "eth0")

    def drop_ipv6(self) -> None:
        self.ip("addr", "flush", "dev", "eth0", "scope", "global")
        self.ip("addr", "add", f"{self.address}/24", "dev", "eth0")

    def unplug(self) -> None:
        """The interface is down, and its addresses are gone: a Wi-Fi that dropped."""
        self.ip("link", "set", "eth0", "down")
        self.ip("addr", "flush", "dev", "eth0")

    def plug(self) -> None:
        self.ip("link", "set", "eth0", "up")
        self.ip("addr", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("addr", "add", f"{self.address6}/64", "dev", "eth0", "nodad")

    def ip(self, *argv: str) -> None:
        _run("ip", "-n", self.name, *argv)


class Network:
    """Hosts h1..hn at 10.77.0.1..n and fd77::1..n on one bridge. A context manager: leaving it kills what was
    started in it and removes it all, also after a failure or an interrupt."""

    def __init__(self, count: int) -> None:
        sweep()
        self._tag = f"{PREFIX}{os.getpid()}x{next(_networks)}"
        self.switch = f"{self._tag}s"
        self.hosts = [Host(f"{self._tag}h{i}", i, f"10.77.0.{i}", f"p{i}") for i in range(1, count + 1)]
        self._rules: list[str] = []

    def __enter__(self) -> Network:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self) -> None:
        _run("ip", "netns", "add", self.switch)
        # No spanning-tree delay, and no snooping: multicast goes to every port, as on a plain switch.
        _run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        _run("ip", "-n", self.switch, "link", "set", "br0", "up")
        for host in self.hosts:
            _run("ip", "netns", "add", host.name)
            self.wire(host, "eth0", host.port)
            host.ip("addr", "add", f"{host.address}/24", "dev", "eth0")
            host.ip("addr", "add", f"{host.address6}/64", "dev", "eth0", "nodad")
            host.ip("link", "set", "lo", "up")
            host.ip("link", "set", "eth0", "up")

    def wire(self, host: Host, interface: str, port: str) -> None:
        """One more interface of that host on the bridge; down, without addresses."""
        ends = ("netns", host.name, "type", "veth", "peer", port, "netns", self.switch)
        _run("ip", "link", "add", interface, *ends)
        _run("ip", "-n", self.switch, "link", "set", port, "master", "br0", "up")

    def second_interfaces(self) -> None:
        """A second network: each host is on it as eth1, at 10.78.0.n."""
        for host in self.hosts:
            self.wire(host, "eth1", f"q{host.number}")
            host.ip("addr", "add", f"10.78.0.{host.number}/24", "dev", "eth1")
            host.ip("link", "set", "eth1", "up")

    def wait_for_link_local(self) -> None:
        """Until no link-local address is tentative any more (duplicate address detection takes a second)."""
        end = time.monotonic() + 10
        for host in self.hosts:
            while b"tentative" in host.run("ip", "-6", "addr", "show", "scope", "link").stdout:
                assert time.monotonic() < end, "a link-local address is still tentative"
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            for process in host.processes:
                if process.poll() is None:
                    process.kill()  # also one that is stopped
                process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        stream.close()
        for name in (*(h.name for h in self.hosts), self.switch):
            _remove(name)

    # -------------------------------------------------------------------------------------------- faults
    def cut(self, a: Host, b: Host, *, one_way: bool = False) -> None:
        """No packet from a to b, and none back unless `one_way` (then ARP and neighbour discovery pass, so
        that it stays one way)."""
        if one_way:
            passes = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"
            self._add(f"{_from_to(a, b)} {passes}", f"{_from_to(a, b)} meta protocol {{ ip, ip6 }} drop")
        else:
            self._add(f"{_from_to(a, b)} drop", f"{_from_to(b, a)} drop")

    def split(self, *groups: Sequence[Host]) -> None:
        """No packet between hosts of different groups."""
        rules = []
        for group, other in itertools.permutations(groups, 2):
            rules.append(f"iifname {_set(group)} oifname {_set(other)} drop")
        self._add(*rules)

    def isolate(self, host: Host) -> None:
        """That host alone, and the others."""
        self.split([host], [h for h in self.hosts if h is not host])

    def loss(self, share: float, host: Host | None = None) -> None:
        """So many of all packets are lost, one by one, or of those from and to one host."""
        lost = f"numgen random mod 10000 < {round(share * 10_000)} drop"
        if host is None:
            self._add(lost)
        else:
            self._add(f"iifname {host.port} {lost}", f"oifname {host.port} {lost}")

    def udp_block(self, a: Host, b: Host | None = None) -> None:
        """No UDP between a and b (with all others), as by a firewall; TCP passes."""
        udp = "meta l4proto udp drop"
        if b is None:
            self._add(f"iifname {a.port} {udp}", f"oifname {a.port} {udp}")
        else:
            self._add(f"{_from_to(a, b)} {udp}", f"{_from_to(b, a)} {udp}")

    def multicast_block(self) -> None:
        """As many Wi-Fi access points do it. (Neighbour discovery is multicast too, and passes.)"""
        self._add("ip daddr 224.0.0.0/4 drop", "meta l4proto udp ip6 daddr ff00::/8 drop")

    def heal(self) -> None:
        """Every fault of the wire is gone."""
        self._rules.clear()
        self._add()

    def _add(self, *rules: str) -> None:
        """All rules anew, in one transaction."""
        self._rules += rules
        text = "\n".join(
            [
                "table bridge lab {}",
                "delete table bridge lab",
                "table bridge lab { chain faults {",
                "type filter hook forward priority 0; policy accept;",
                *self._rules,
                "}",
                "}\n",
            ]
        )
        command = ["ip", "netns", "exec", self.switch, "nft", "-f", "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{text}"

    @contextlib.contextmanager
    def capture(self, path: Path) -> Iterator[None]:
        """Everything that crosses the bridge, into a pcap file, each packet as it comes."""
        # 32 MiB of buffer: a burst that overflows it would be missing from the file.
        argv = ["ip", "netns", "exec", self.switch, "tcpdump", "-i", "br0", "-s", "0", "-B", "32768"]
        dump = subprocess.Popen([*argv, "--immediate-mode", "-U", "-w", str(path)], stderr=subprocess.PIPE)
        try:
            assert dump.stderr is not None
            assert b"listening on" in dump.stderr.readline()
            yield
        finally:
            dump.terminate()
            _, said = dump.communicate(timeout=10)
        assert b"0 packets dropped by kernel" in said, said


def sweep() -> None:
    """Remove what a run left that was killed: namespaces with this prefix whose process is no more."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        name = line.split()[0]
        found = re.fullmatch(rf"{re.escape(PREFIX)}(\d+)(x\d+)?[a-z]\w*", name)
        if found and not Path(f"/proc/{found[1]}").exists():
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for pid in pids.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _remove(name)


def _remove(name: str) -> None:
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _from_to(a: Host, b: Host) -> str:
    return f"iifname {a.port} oifname {b.port}"


def _set(hosts: Sequence[Host]) -> str:
    return f"{{ {', '.join(h.port for h in hosts)} }}"


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
