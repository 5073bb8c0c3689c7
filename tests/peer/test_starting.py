"""A start that fails says so at once and leaves nothing open, whatever it was that failed."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshq.errors import MeshqError, StoreError, UsageError
from meshq.peer import shell as module
from meshq.peer.settings import DOOR, FEED, INGEST, PEERS, REQUESTS, Settings
from meshq.peer.shell import PeerShell
from meshq.security.directory import DataDirectory, create_mesh
from tests.peers import HOST, free_base_port

START_S = 10.0


@pytest.fixture
def directory(tmp_path: Path) -> DataDirectory:
    create_mesh([tmp_path / "p"], ["p"], mesh_name="m", slots=8, replicas=1, now=time.time())
    return DataDirectory(tmp_path / "p")


def settings_of(port: int, **more: Any) -> Settings:
    return Settings(bind=[HOST], port=port, mdns=False, disk_reserve_bytes=0, **more)


def start(directory: DataDirectory, settings: Settings) -> BaseException | None:
    """What a start ends with. In a thread of its own: a hanging one blocks its loop, deadlines and all."""
    ended: list[BaseException | None] = []

    async def run() -> None:
        shell = PeerShell(directory, settings)
        try:
            await shell.start()
            await shell.stop()
        except Exception as e:
            ended.append(e)
        else:
            ended.append(None)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    thread.join(START_S)
    assert ended, f"the start has not ended after {START_S:g} s"
    return ended[0]


@pytest.mark.parametrize(
    ("kind", "offset"),
    [(socket.SOCK_DGRAM, 0), *((socket.SOCK_STREAM, n) for n in (REQUESTS, FEED, INGEST, DOOR, PEERS))],
)
def test_a_port_in_use_is_said_at_once(
    directory: DataDirectory, kind: socket.SocketKind, offset: int
) -> None:
    port = free_base_port()
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind((HOST, port + offset))
        error = start(directory, settings_of(port))
    assert isinstance(error, UsageError) and "--port" in str(error)
    assert start(directory, settings_of(port)) is None, "nothing was left open"


def test_a_damaged_count_of_starts_is_said_at_once(directory: DataDirectory) -> None:
    port = free_base_port()
    assert start(directory, settings_of(port)) is None
    (directory.path / "boot").write_text("x")
    assert isinstance(start(directory, settings_of(port)), StoreError)


STEPS = (
    "make_context",
    "GatewayLinks",
    "Plain",
    "PeerSockets",
    "Feed",
    "PeerLinks",
    "Door",
    "Neighbours",
    "Renewal",
    "Presence",
)


@pytest.mark.parametrize("step", STEPS)
def test_whatever_fails_ends_the_start_and_nothing_stays_open(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    port = free_base_port()

    def fail(*_: Any, **__: Any) -> None:
        raise MeshqError("as was arranged")

    with monkeypatch.context() as patch:
        patch.setattr(module, step, fail)
        error = start(directory, settings_of(port))
    assert str(error) == "as was arranged"
    assert "The peer stops" not in caplog.text, "it never was up"
    assert start(directory, settings_of(port)) is None, "nothing was left open"


def test_every_step_that_opens_something_is_tried() -> None:
    used: set[str] = set()
    pending: list[Callable[..., Any]] = [PeerShell._start, PeerShell._make_gateway]
    for call in pending:
        used |= set(call.__code__.co_names)
    opened = {n for n in used if n[:1].isupper() and callable(getattr(module, n, None))}
    pure = {"ClientCore", "ClientDriver", "Mesh", "Seed", "LinkProbeWanted", "SessionClosed", "DirectoryLock"}
    assert opened - pure <= set(STEPS)
