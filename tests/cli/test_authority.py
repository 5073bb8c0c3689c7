"""The recovery secret gives the authority back, on any peer of the mesh and on no other."""

from __future__ import annotations

from pathlib import Path

from meshq.security.directory import DataDirectory
from tests.peers import meshq


def _secret(text: str) -> str:
    """The line of `init`'s words that is the secret."""
    return max(text.split(), key=lambda word: word.count("-"))


def test_the_secret_printed_by_init_restores_the_authority(tmp_path: Path) -> None:
    made = meshq("init", "--peers", "2", "--out", tmp_path)
    assert made.code == 0
    secret = _secret(made.out.decode() + made.err)
    second = DataDirectory(tmp_path / "peer2")
    assert not second.authority.exists()
    meshq("authority", "restore", "--data", second.path, stdin=b"not the secret\n").failed(1)
    other = meshq("init", "--data", tmp_path / "other")
    foreign = _secret(other.out.decode() + other.err)
    meshq("authority", "restore", "--data", second.path, stdin=foreign.encode()).failed(1, "mesh")
    assert not second.authority.exists()
    meshq("authority", "restore", "--data", second.path, stdin=secret.encode() + b"\n").ok()
    assert second.authority.read_bytes() == DataDirectory(tmp_path / "peer1").authority.read_bytes()
    assert second.authority.stat().st_mode & 0o777 == 0o600
    meshq("invite", "--data", second.path, "--advertise", "10.0.0.1:7700").ok()


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    meshq("init", "--data", tmp_path / "peer").ok()
    (tmp_path / "peer").chmod(0o755)
    meshq("up", "--data", tmp_path / "peer").failed(1, "chmod 700")
