"""Hosts on a wire: network namespaces joined by a bridge, with real multicast.

Every host is a namespace of its own with one veth into one that holds the bridge, so nothing touches the
machine's own network, and all of it goes away with the namespaces. Needs root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


def why_not() -> str | None:
    """Why namespaces can't be made here, or None."""
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    if shutil.which("ip") is None:
        return "needs iproute2 (ip)"
    name = f"mqprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


@dataclass
class Host:
    """One host: `run` and `start` execute commands inside it."""

    name: str
    address: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

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
        process = subprocess.Popen(self.command(argv), **options)
        self.processes.append(process)
        return process


class Network:
    """Hosts h1..hn at 10.77.0.1..n and fd77::1..n on one bridge."""

    def __init__(self, count: int) -> None:
        self._tag = f"mq{os.getpid()}"
        self.switch = f"{self._tag}s"
        self.hosts = [Host(f"{self._tag}h{i}", f"10.77.0.{i}") for i in range(1, count + 1)]

    def __enter__(self) -> Network:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self) -> None:
        _ip("netns", "add", self.switch)
        # No spanning-tree delay, and no snooping: multicast goes to every port, as on a plain switch.
        _ip("-n", self.switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        _ip("-n", self.switch, "link", "set", "br0", "up")
        for number, host in enumerate(self.hosts, 1):
            _ip("netns", "add", host.name)
            _ip(
                "link",
                "add",
                "eth0",
                "netns",
                host.name,
                "type",
                "veth",
                "peer",
                f"p{number}",
                "netns",
                self.switch,
            )
            _ip("-n", self.switch, "link", "set", f"p{number}", "master", "br0", "up")
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "addr", "add", f"fd77::{number}/64", "dev", "eth0", "nodad")
            _ip("-n", host.name, "link", "set", "lo", "up")
            _ip("-n", host.name, "link", "set", "eth0", "up")

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            for process in host.processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        stream.close()
        for name in (*(h.name for h in self.hosts), self.switch):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)

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


def _ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, capture_output=True, text=True)


lab = pytest.mark.lab
