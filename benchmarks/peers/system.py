"""What a message system has to be able to do to be measured: one interface, whoever is behind it.

A system is three nodes on loopback with everything they write below one directory, and the client for Python
that its users would take. `measures.py` asks all of them for the same; nothing here knows what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

HOST = "127.0.0.1"
START_S = 60.0
STOP_S = 15.0


class Unable(Exception):
    """Why this system cannot be measured here, or in this."""


@dataclass
class Node:
    """One process of a system, in a process group of its own: what it starts ends with it."""

    command: Sequence[str | Path]
    log: Path
    env: dict[str, str]
    cwd: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in self.command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | self.env, cwd=self.cwd, start_new_session=True,
            )  # fmt: skip

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """kill -9, all of it."""
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def end(self) -> None:
        self._signal(signal.SIGTERM)
        if self.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
            self.kill()

    def pids(self) -> list[int]:
        """Of the whole group: a system may need more than one process for a node."""
        if self.process is None:
            return []
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.getpgid(int(entry.name)) == self.process.pid:
                        found.append(int(entry.name))
                except ProcessLookupError:
                    continue
        return found

    def _signal(self, number: int) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


class System(ABC):
    """`name`, and at these `settings` `promised`: what holds for a record that was acknowledged."""

    name: ClassVar[str]
    settings: ClassVar[str]
    promised: ClassVar[str]
    version = ""
    partitions = 1  # of the topics that are written in bulk

    def __init__(self, where: Path) -> None:
        self.where = where
        self.nodes: list[Node] = []

    # ------------------------------------------------------------------------------------ its nodes
    @abstractmethod
    async def start(self) -> None:
        """Three nodes that know each other, and a client. Raises: Unable with what is missing."""

    async def stop(self) -> None:
        await self.disconnect()
        for node in reversed(self.nodes):
            node.end()

    async def disconnect(self) -> None:  # noqa: B027 a system without a client of its own has nothing to do
        """Close the client."""

    @abstractmethod
    async def leader_of(self, topic: str) -> int:
        """The number of the node without which this topic cannot be published to just now."""

    # ----------------------------------------------------------------------------------- its client
    @abstractmethod
    async def create(self, topic: str, *, bulk: bool = False) -> None:
        """A new topic with three copies; `bulk`: as one would make it for throughput."""

    @abstractmethod
    async def publish_many(self, topic: str, value: bytes, count: int) -> None:
        """So many, as fast as its client can; returns when all are acknowledged."""

    @abstractmethod
    async def publish(self, topic: str, value: bytes) -> None:
        """One; returns when it is acknowledged. Raises when it is not, within a second or so."""

    @abstractmethod
    async def read(self, topic: str, count: int, take: Callable[[bytes], None]) -> None:
        """The first so many, from the beginning, each told as bytes."""

    @abstractmethod
    async def follow(self, topic: str, ready: asyncio.Event, take: Callable[[bytes], None]) -> None:
        """What comes from now on, until cancelled; `ready` when nothing will be missed."""

    @abstractmethod
    async def work(self, topic: str, count: int) -> None:
        """A work queue: two consumers, each record acknowledged by itself, until so many are done."""


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def free_ports(count: int, first: int = 31_000) -> int:
    """A port that is free, and those above it."""
    for base in range(first, first + 3_000, count):
        try:
            for port in range(base, base + count):
                with socket.socket() as s:
                    s.bind((HOST, port))
        except OSError:
            continue
        return base
    raise Unable("no free ports")


async def until(condition: Callable[[], object], what: str, seconds: float = START_S) -> None:
    """Look again and again, a few times a second; what it raises means not yet."""
    end = time.monotonic() + seconds
    error: BaseException | None = None
    while time.monotonic() < end:
        try:
            if await asyncio.to_thread(condition):
                return
        except Exception as e:
            error = e
        await asyncio.sleep(0.2)
    raise Unable(f"not so within {seconds:.0f} s: {what}" + (f" ({error})" if error else ""))


def listening(port: int) -> bool:
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex((HOST, port)) == 0
