"""`meshq leave` where its own peer goes: when it is over, and what it does not let go."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshq.cli.app import cli
from meshq.cli.reach import NotReachable
from meshq.errors import UsageError
from meshq.security.directory import DataDirectory

module = importlib.import_module("meshq.cli.leave")


class FakeMesh:
    """A peer that leaves: it answers once that it does, and then it is gone."""

    def __init__(self, directory: DataDirectory) -> None:
        self.directory, self.standing, self.asked = directory, "member", list[str]()

    async def ask(self, what: str, args: dict[str, Any], **_: Any) -> dict[str, Any]:
        self.asked.append(what)
        if what == "peer.leave":
            self.standing = "leaving"
        return {
            "name": args["peer"], "standing": self.standing, "slots": 4, "left": 4, "leaderless": 0,
            "votes": False,
        }  # fmt: skip

    @contextlib.asynccontextmanager
    async def connected(self, *_: object) -> AsyncIterator[FakeMesh]:
        if self.standing == "leaving":
            self.directory.mark_left("now")
            raise NotReachable("it stopped")
        yield self


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMesh:
    mesh = FakeMesh(DataDirectory(tmp_path))
    monkeypatch.setattr(module, "connected", mesh.connected)
    monkeypatch.setattr(module, "check_running", lambda _: {"name": "own"})
    monkeypatch.setattr(module, "LOST_S", 0.0)
    return mesh


def leave(mesh: FakeMesh, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["--data", str(mesh.directory.path), "leave", *arguments])


@pytest.mark.parametrize("arguments", [(), ("--peer", "own")])
def test_its_own_peer_has_left_when_the_directory_says_so_also_by_its_name(
    mesh: FakeMesh, arguments: tuple[str, ...]
) -> None:
    done = leave(mesh, *arguments)
    assert (done.exit_code, done.stdout) == (0, "own has left the mesh.\n"), done.exception


def test_another_peer_has_not_left_because_this_one_has(mesh: FakeMesh) -> None:
    assert isinstance(leave(mesh, "--peer", "other").exception, NotReachable)


@pytest.mark.parametrize("arguments", [(), ("--peer", "own")])
def test_the_authority_does_not_go_unless_told_to(mesh: FakeMesh, arguments: tuple[str, ...]) -> None:
    mesh.directory.authority.write_bytes(b"key")
    refused = leave(mesh, *arguments)
    assert isinstance(refused.exception, UsageError) and "--abandon-authority" in str(refused.exception)
    assert mesh.asked == ["peer.leaving"], "nothing was begun"
    assert leave(mesh, *arguments, "--abandon-authority").exit_code == 0


def test_the_authority_stays_where_another_leaves(mesh: FakeMesh) -> None:
    mesh.directory.authority.write_bytes(b"key")
    leave(mesh, "--peer", "other")
    assert "peer.leave" in mesh.asked
