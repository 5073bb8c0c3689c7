"""Real peers as processes on loopback, for tests of what a user does: start, call the command line, stop.

Only what was started here is stopped, by its own process handle. Whatever is waited for has a deadline and is
looked at, never slept for.

    def test_it(tmp_path):
        with one_peer(tmp_path) as peer:
            assert peer.meshq("status").code == 0
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

HOST = "127.0.0.1"
PORTS_OF_A_PEER = 6
START_S = 20.0
STOP_S = 12.0
CALL_S = 30.0
POLL_S = 0.01

T = TypeVar("T")


class Result(NamedTuple):
    """How a call of the command line ended."""

    code: int
    out: bytes
    err: str

    def ok(self) -> bytes:
        """Its output, when it ended well."""
        assert self.code == 0, f"exit code {self.code}: {self.err}"
        return self.out

    def failed(self, code: int, *words: str) -> str:
        """What it said, when it ended with this code, with one line of error and no traceback."""
        assert self.code == code, f"exit code {self.code}, not {code}: {self.err}"
        assert self.err.startswith("meshq: error: "), self.err
        assert "Traceback" not in self.err
        for word in words:
            assert word in self.err, f"{word!r} is not in: {self.err}"
        return self.err


def environment(**more: str) -> dict[str, str]:
    """That of this process without its MESHQ_* settings, and with the code under test."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MESHQ_")}
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, clean.get("PYTHONPATH")]))
    return {**clean, "PYTHONPATH": path, **more}


def meshq(*arguments: object, stdin: bytes = b"", timeout: float = CALL_S, **env: str) -> Result:
    """Run `meshq ARGUMENTS` to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "meshq", *map(str, arguments)],
        input=stdin, capture_output=True, timeout=timeout, env=environment(**env), check=False,
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


def wait_until(condition: Callable[[], T], deadline_s: float = 10.0, what: str = "") -> T:
    """The condition's value as soon as it is true. Raises: AssertionError when the time is up."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not so after {deadline_s:g} s: {what or condition}"
        time.sleep(POLL_S)
    return value


def free_base_port(peers: int = 1, step: int = 10) -> int:
    """A base port from which so many peers of this host find their ports free just now."""
    for _ in range(200):
        base = random.randrange(15_000, 30_000, step)
        if all(_is_free(base + step * i) for i in range(peers)):
            return base
    raise AssertionError("no free ports on this host")


def _is_free(base: int) -> bool:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind((HOST, base))
        for port in range(base, base + PORTS_OF_A_PEER):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
                tcp.bind((HOST, port))
    except OSError:
        return False
    return True


@dataclass
class Running:
    """A process of `meshq` that goes on by itself; its output goes to files."""

    process: subprocess.Popen[bytes]
    out_file: Path
    err_file: Path

    @property
    def out(self) -> bytes:
        return self.out_file.read_bytes()

    @property
    def err(self) -> str:
        return self.err_file.read_text(errors="replace")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = STOP_S) -> int:
        return self.process.wait(timeout)

    def end(self) -> None:
        """SIGTERM, and SIGKILL when that is not enough."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def start_meshq(where: Path, *arguments: object, program: tuple[str, ...] = ("-m", "meshq")) -> Running:
    """Start `meshq ARGUMENTS` (or another Python program) with its output in new files of this directory."""
    number = len(list(where.glob("*.err")))
    out_file, err_file = where / f"{number}.out", where / f"{number}.err"
    with out_file.open("wb") as out, err_file.open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment(),
        )  # fmt: skip
    return Running(process, out_file, err_file)


@contextlib.contextmanager
def running(where: Path, *arguments: object, program: tuple[str, ...] = ("-m", "meshq")) -> Iterator[Running]:
    started = start_meshq(where, *arguments, program=program)
    try:
        yield started
    finally:
        started.end()


@dataclass
class Peer:
    """A peer's directory and, while it runs, its process."""

    data: Path
    port: int
    arguments: tuple[object, ...] = ()
    logs: Path = field(default_factory=Path)
    process: Running | None = None

    def start(self) -> Peer:
        """Returns when it says that it is up."""
        self.process = started = start_meshq(
            self.logs, "up", "--data", self.data, "--bind", HOST, "--port", self.port, "--no-mdns",
            "--disk-reserve-bytes", "0", *self.arguments,
        )  # fmt: skip
        wait_until(lambda: b"is up on" in started.out or started.process.poll() is not None, START_S, "up")
        assert started.process.poll() is None, started.err
        return self

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.signal(15)
        return self.process.wait()

    def end(self) -> None:
        if self.process is not None:
            self.process.end()

    def meshq(self, verb: str, *arguments: object, stdin: bytes = b"", timeout: float = CALL_S) -> Result:
        """A call of the command line against this peer."""
        return meshq(verb, *arguments, stdin=stdin, timeout=timeout, MESHQ_DATA=str(self.data))

    def follow(self, *arguments: object) -> contextlib.AbstractContextManager[Running]:
        """`meshq --data DIR ARGUMENTS` as a process that goes on."""
        return running(self.logs, "--data", self.data, *arguments)

    def env(self) -> dict[str, Any]:
        return environment(MESHQ_DATA=str(self.data))


def start_peer(data: Path, port: int, *arguments: object) -> Peer:
    """Run the peer of a directory that exists; its logs go beside the directory."""
    return Peer(data, port, arguments, logs=data.parent).start()


@contextlib.contextmanager
def one_peer(where: Path, *arguments: object) -> Iterator[Peer]:
    """A new mesh of one running peer in `where/a`."""
    data = where / "a"
    meshq("init", "--data", data, "--name", "a").ok()
    peer = start_peer(data, free_base_port(), *arguments)
    try:
        yield peer
    finally:
        peer.end()


@contextlib.contextmanager
def mesh_of(where: Path, count: int, *arguments: object) -> Iterator[list[Peer]]:
    """A new mesh of running peers that reach each other."""
    base = free_base_port(count)
    meshq("init", "--peers", count, "--out", where, "--port", base).ok()
    peers: list[Peer] = []
    try:
        for i in range(count):
            peers.append(start_peer(where / f"peer{i + 1}", base + 10 * i, *arguments))
        for peer in peers:
            wait_until(lambda p=peer: b"%d of %d reach" % (count, count) in p.meshq("status").out, 20.0)  # type: ignore[misc]
        yield peers
    finally:
        for peer in peers:
            peer.end()
