"""Real peers on the lab's hosts, each followed by `meshq events` on its own host, and what those told.

    with lab_mesh(tmp_path, 10) as mesh:
        at = mesh.peers[3].kill()                        # kill -9; the wall time, in ms
        mesh.wait("dead everywhere", lambda: mesh.seen("MemberDead", about=mesh.peers[3], since=at))

All namespaces share the machine's wall clock, so what different hosts say can be compared by their `at_ms`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from meshq.peer.settings import PEERS
from tests.lab.network import Host, Network
from tests.peers import environment

MESHQ = (sys.executable, "-m", "meshq")
PORT = 7700
START_S = 60.0
_ESTABLISHED = "01"
T = TypeVar("T")
Event = dict[str, Any]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class LabPeer:
    """A peer on a host of its own. `changes`: what `meshq events` printed there, as it comes."""

    name: str
    host: Host
    data: Path
    changes: list[Event] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    _file: Path = field(init=False)
    _read: int = 0

    def __post_init__(self) -> None:
        self._file = self.data.with_suffix(".events")

    # --------------------------------------------------------------------------------------------- its life
    def start(self, *arguments: str) -> None:
        """Begin; `ready` waits for it."""
        log = self.data.with_suffix(".log").open("ab")
        up = (*MESHQ, "up", "--data", self.data, "--disk-reserve-bytes", "0", *arguments)
        self.process = self.host.start(*up, stdout=subprocess.PIPE, stderr=log, env=environment())
        log.close()

    def ready(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        line = self.process.stdout.readline()
        assert b"is up" in line, (line, self.log())

    def follow(self) -> None:
        """Let what changes be written down from the beginning; what is printed goes to a file."""
        with self._file.open("ab") as out:
            events = (*MESHQ, "events", "--past", "--data", self.data)
            self.host.start(*events, stdout=out, stderr=subprocess.DEVNULL, env=environment())

    def configure(self, *, mdns: bool, seeds: Sequence[str]) -> None:
        """What holds from the next start on."""
        lines = [f"port = {PORT}", f"mdns = {str(mdns).lower()}", f"seed = {json.dumps(list(seeds))}"]
        (self.data / "meshq.toml").write_text("\n".join(lines) + "\n")

    def end(self) -> None:
        """SIGTERM, and wait for it."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(15) == 0, self.log()

    def kill(self) -> int:
        """kill -9; when, in ms of wall time."""
        assert self.process is not None
        at = now_ms()
        self.process.kill()
        self.process.wait()
        return at

    def stop(self) -> int:
        """SIGSTOP: it stands still; when."""
        return self._signal(signal.SIGSTOP)

    def go_on(self) -> int:
        """SIGCONT; when."""
        return self._signal(signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def links(self) -> list[str]:
        """Where the connections go that it has opened to other peers, as its kernel tells."""
        assert self.process is not None
        found = []
        for table in ("tcp", "tcp6"):
            lines = Path(f"/proc/{self.process.pid}/net/{table}").read_text().splitlines()[1:]
            for _, _, remote, state, *_ in (line.split() for line in lines):
                host, _, port = remote.rpartition(":")
                if state == _ESTABLISHED and int(port, 16) == PORT + PEERS:
                    found.append(_address(host))
        return found

    def _signal(self, number: int) -> int:
        assert self.process is not None
        at = now_ms()
        os.kill(self.process.pid, number)
        return at

    # ------------------------------------------------------------------------------------------ what it says
    def meshq(self, *arguments: str, **options: Any) -> bytes:
        """A verb on this host, to its end; its output."""
        done = self.host.run(*MESHQ, *arguments, "--data", self.data, env=environment(), **options)
        return bytes(done.stdout)

    def read(self) -> list[Event]:
        """All it has told, as far as it has come."""
        if self._file.exists():
            with self._file.open("rb") as f:
                f.seek(self._read)
                whole, newline, _ = f.read().rpartition(b"\n")
            self._read += len(whole) + len(newline)
            told = [json.loads(line) for line in whole.splitlines()]
            self.changes += [x for x in told if x.get("by") == self.name]
        return self.changes

    def log(self) -> str:
        return self.data.with_suffix(".log").read_text(errors="replace")


def _address(text: str) -> str:
    """As in /proc/net/tcp: 32-bit words, each in the host's byte order."""
    words = [int(text[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(text), 8)]
    found = ipaddress.ip_address(b"".join(words))
    return str(getattr(found, "ipv4_mapped", None) or found)


@dataclass
class LabMesh:
    network: Network
    peers: list[LabPeer]

    def seen(
        self, event: str, *, about: LabPeer, since: int, by: Sequence[LabPeer] | None = None
    ) -> dict[str, Event] | None:
        """The first such change about that peer since then, by observer; None while one of them lacks it."""
        observers = [p for p in (self.peers if by is None else by) if p is not about]
        found = {p.name: self.first(event, about=about, since=since, by=p) for p in observers}
        return None if None in found.values() else {k: v for k, v in found.items() if v is not None}

    def first(self, event: str, *, about: LabPeer, since: int, by: LabPeer) -> Event | None:
        for x in by.read():
            if x["event"] == event and x.get("name") == about.name and x["at_ms"] >= since:
                return x
        return None

    def told(self, *events: str, since: int = 0, by: Sequence[LabPeer] | None = None) -> list[Event]:
        """All such changes that any of them told."""
        found = [x for p in (by or self.peers) for x in p.read()]
        return [x for x in found if x["event"] in events and x["at_ms"] >= since]

    def all_alive(self, among: Sequence[LabPeer] | None = None) -> bool:
        """Whether each sees each of the others alive, by the last it told."""
        some = among or self.peers
        for p in some:
            last = {x.get("name"): x["state"] for x in p.read() if "state" in x}
            if any(last.get(q.name) != "alive" for q in some if q is not p):
                return False
        return True

    def all_linked(self) -> bool:
        """Whether each that runs has a connection to each."""
        return all(len(p.links()) >= len(self.peers) - 1 for p in self.peers if p.is_running)

    def all_linked_to(self, peer: LabPeer) -> bool:
        """Whether each other one has a connection to one of its present addresses."""
        now = {peer.host.address, peer.host.address6}
        return all(now & set(p.links()) for p in self.peers if p is not peer)

    def wait(self, what: str, condition: Callable[[], T], deadline_s: float = 15.0) -> T:
        """The condition's value as soon as it is true, looked at without taking much of the machine."""
        end = time.monotonic() + deadline_s
        while not (value := condition()):
            assert time.monotonic() < end, f"not so after {deadline_s:g} s: {what}\n{self.last_words()}"
            time.sleep(0.05)
        return value

    def last_words(self) -> str:
        lines = []
        for p in self.peers:
            lines += [f"{p.name}: {x['event']} {x.get('name')} {x['at_ms']}" for x in p.read()[-4:]]
        return "\n".join(lines)


@contextlib.contextmanager
def lab_mesh(
    where: Path,
    count: int,
    *,
    mdns: bool = False,
    seeds: bool = True,
    wait: bool = True,
    network: Network | None = None,
    prepare: Callable[[LabPeer], None] = lambda _: None,
) -> Iterator[LabMesh]:
    """A mesh of running peers; with `wait` they see each other alive and are connected each with each.

    `seeds`: each knows where three others are. `network`: a given one, perhaps with faults or more hosts.
    `prepare`: what is done to each before it is started.
    """
    subprocess.run(
        [*MESHQ, "init", "--peers", str(count), "--out", where],
        check=True, capture_output=True, env=environment(),
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        net = network or stack.enter_context(Network(count))
        peers = [LabPeer(f"peer{i}", h, where / f"peer{i}") for i, h in enumerate(net.hosts[:count], 1)]
        for peer in peers:
            others = [f"{p.host.address}:{PORT}" for p in peers if p is not peer]
            peer.configure(mdns=mdns, seeds=others[:3] if seeds else [])
            prepare(peer)
        mesh = LabMesh(net, peers)
        for peer in peers:
            peer.start()
        for peer in peers:
            peer.ready()
        for peer in peers:
            peer.follow()
        if wait:
            mesh.wait("all see all alive", mesh.all_alive, START_S)
            mesh.wait("all are connected with all", mesh.all_linked, START_S)
        yield mesh
