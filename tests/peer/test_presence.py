"""How a host's tools find its running peer, and what they are told when there is none."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from meshq.errors import Unavailable, UsageError
from meshq.peer.presence import Presence, data_path, read_run
from meshq.peer.settings import Settings
from meshq.security.credentials import Credentials
from meshq.security.directory import DataDirectory, create_mesh


@pytest.fixture
def directory(tmp_path: Path) -> DataDirectory:
    create_mesh([tmp_path / "peer"], ["first"], mesh_name="plant", slots=8, replicas=3, now=1_750_000_000.0)
    return DataDirectory(tmp_path / "peer")


def presence_of(directory: DataDirectory, settings: Settings | None = None) -> Presence:
    return Presence(directory, directory.load(), settings or Settings())


def test_a_running_peer_is_found_and_its_admin_key_is_for_this_host_only(directory: DataDirectory) -> None:
    presence_of(directory, Settings(port=8000)).announce(("192.0.2.1:8000",))
    run = read_run(directory)
    assert (run["pid"], run["name"], run["port"]) == (os.getpid(), "first", 8000)
    assert (run["requests"], run["addresses"]) == ("tcp://127.0.0.1:8000", ["192.0.2.1:8000"])
    credentials = Credentials.load(directory.admin)
    assert [p.requests for p in credentials.peers] == ["tcp://127.0.0.1:8000"]
    assert stat.S_IMODE(directory.admin.stat().st_mode) == 0o600


def test_a_peer_bound_to_one_address_is_reached_there(directory: DataDirectory) -> None:
    presence_of(directory, Settings(bind=["192.0.2.7"])).announce(())
    assert read_run(directory)["requests"] == "tcp://192.0.2.7:7700"


def test_a_stopped_peer_leaves_nothing_and_is_said_not_to_run(directory: DataDirectory) -> None:
    presence = presence_of(directory)
    presence.announce(())
    presence.withdraw()
    presence.withdraw()
    assert not directory.run.exists()
    assert not directory.admin.exists()
    with pytest.raises(Unavailable, match="meshq up --data"):
        read_run(directory)


def test_a_peer_that_died_is_said_not_to_run(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    presence_of(directory).announce(())

    def gone(pid: int, signal: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", gone)
    with pytest.raises(Unavailable, match="no peer is running"):
        read_run(directory)


def test_without_a_peer_here_it_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="meshq init"):
        read_run(DataDirectory(tmp_path / "nothing"))


@pytest.mark.parametrize("content", ["{", "{}", '{"pid": "x"}', "[]", "7"])
def test_a_damaged_file_is_said_to_be(directory: DataDirectory, content: str) -> None:
    directory.run.write_text(content)
    with pytest.raises(UsageError, match="damaged"):
        read_run(directory)


def test_the_data_directory_is_as_given_or_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHQ_DATA", "/srv/mesh")
    assert data_path("/here") == Path("/here")
    assert data_path(None) == Path("/srv/mesh")
    monkeypatch.delenv("MESHQ_DATA")
    assert data_path(None) == Path.home() / ".meshq"
