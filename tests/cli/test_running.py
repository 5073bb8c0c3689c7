"""`up` and the verbs about what runs: how it starts, what it refuses, how it ends, what it tells."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.peers import HOST, Peer, free_base_port, meshq, one_peer, running, start_peer, wait_until


def test_sigterm_ends_a_peer_in_order_and_what_was_published_is_there_again(tmp_path: Path) -> None:
    with one_peer(tmp_path) as peer:
        peer.meshq("pub", "kept", stdin=b"a\nb\n").ok()
        began = time.monotonic()
        assert peer.stop() == 0
        assert time.monotonic() - began < 10
        assert not (peer.data / "run.json").exists()
        peer.start()
        assert peer.meshq("sub", "kept", "--from", "earliest", "--count", 2).ok() == b"a\nb\n"
        assert peer.process
        peer.process.signal(signal.SIGKILL)
        peer.process.wait()
        peer.meshq("status").failed(3, "no peer is running", "meshq up")
        peer.start()
        assert peer.meshq("sub", "kept", "--from", "earliest", "--count", 2).ok() == b"a\nb\n"


def test_a_directory_runs_one_peer_at_a_time(peer: Peer) -> None:
    result = meshq("up", "--data", peer.data, "--bind", HOST, "--port", free_base_port())
    assert result.code == 1
    assert "in use" in result.err and "Traceback" not in result.err


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    meshq("init", "--data", tmp_path).ok()
    port = free_base_port()
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as taken:
        taken.bind((HOST, port))
        taken.listen()
        result = meshq("up", "--data", tmp_path, "--bind", HOST, "--port", port)
    assert result.code in (1, 2)
    assert str(port) in result.err and "meshq: error: " in result.err and "Traceback" not in result.err


def test_keys_that_others_can_read_are_refused(tmp_path: Path) -> None:
    meshq("init", "--data", tmp_path).ok()
    (tmp_path / "identity.key").chmod(0o644)
    result = meshq("up", "--data", tmp_path)
    assert result.code == 1
    assert "chmod 600" in result.err


def test_up_needs_a_peer_and_settings_that_are_right(tmp_path: Path) -> None:
    meshq("up", "--data", tmp_path / "none").failed(2, "meshq init")
    meshq("init", "--data", tmp_path / "p").ok()
    (tmp_path / "p" / "meshq.toml").write_text("prot = 7700\n")
    meshq("up", "--data", tmp_path / "p").failed(2, "prot", "meshq.toml")


def test_without_a_running_peer_verbs_exit_with_3(tmp_path: Path) -> None:
    meshq("init", "--data", tmp_path / "p").ok()
    meshq("status", "--data", tmp_path / "p").failed(3, "meshq up")
    meshq("pub", "t", "--data", tmp_path / "p", stdin=b"a").failed(3)
    meshq("topics", "--data", tmp_path / "none").failed(3, "meshq init")


def test_a_peer_that_does_not_answer_is_not_reachable(peer: Peer, tmp_path: Path) -> None:
    arguments = ["--subscribe", "#", "--out", tmp_path / "far.meshq"]
    peer.meshq("client", "add", "far", *arguments).ok()
    text = (tmp_path / "far.meshq").read_text().replace(str(peer.port), str(free_base_port()))
    (tmp_path / "far.meshq").write_text(text)
    meshq("topics", "--credentials", tmp_path / "far.meshq", "--timeout", "0.5").failed(3)


def test_logs_are_json_when_asked(tmp_path: Path) -> None:
    meshq("init", "--data", tmp_path / "p").ok()
    quiet = start_peer(tmp_path / "p", free_base_port(), "--log", "json")
    try:
        assert quiet.process
        lines = [json.loads(line) for line in quiet.process.err.splitlines()]
        assert all({"ts", "level", "event"} <= line.keys() for line in lines)
        assert "PeerUp" in {line["event"] for line in lines}
    finally:
        quiet.end()


def test_status_tells_of_peer_mesh_and_registry(peer: Peer) -> None:
    found = json.loads(peer.meshq("status", "--json").ok())
    assert {"mesh", "peer", "name", "registry", "peers", "topics", "slots", "disk"} <= found.keys()
    assert b"led by a\n" in peer.meshq("status").ok()


def test_peers_lists_this_one_too(peer: Peer) -> None:
    rows = json.loads(peer.meshq("peers", "--json").ok())
    mine = next(r for r in rows if r["name"] == "a")
    assert mine["state"] == "alive"
    assert mine["address"] == f"{HOST}:{peer.port}"
    assert peer.meshq("peers").ok().startswith(b"NAME")


def test_topics_are_created_shown_changed_and_deleted(peer: Peer) -> None:
    peer.meshq("topic", "create", "tt.one", "--partitions", 3, "--record-bytes-max", "64KiB").ok()
    peer.meshq("topic", "create", "tt.one").failed(1, "exists")
    peer.meshq("topic", "set", "tt.one", "--partitions", 5).ok()
    shown = json.loads(peer.meshq("topic", "show", "tt.one", "--json").ok())
    assert (shown["partitions"], shown["record_bytes_max"], len(shown["partition"])) == (5, 65_536, 5)
    peer.meshq("topic", "create", "tt.two").ok()
    rows = json.loads(peer.meshq("topics", "tt.*", "--json").ok())
    assert [(r["name"], r["partitions"]) for r in rows] == [("tt.one", 5), ("tt.two", 8)]
    assert peer.meshq("topic", "delete", "tt.one", stdin=b"n\n").code != 0
    peer.meshq("topic", "delete", "tt.one", "--yes").ok()
    peer.meshq("topic", "show", "tt.one").failed(1, "tt.one")
    assert peer.meshq("topic", "set", "tt.two").code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    assert b"_MESHQ_COMPLETE" in meshq("completion", shell).ok()


def test_help_names_every_verb() -> None:
    out = meshq("--help").ok().decode()
    for verb in ("init", "invite", "join", "up", "status", "peers", "topics", "pub", "sub", "client", "demo"):
        assert f"  {verb} " in out
    assert meshq("version").ok().startswith(b"meshq ")


def test_demo_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    done = meshq("demo", "--lines", 20_000, timeout=90, TMPDIR=str(tmp_path))
    assert b"Nothing lost, nothing doubled: 20,000 records" in done.ok()
    assert os.listdir(tmp_path) == []


def test_interrupting_demo_leaves_nothing(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (tmp_path / "t").mkdir()
    os.environ["TMPDIR"] = str(tmp_path / "t")
    try:
        with running(logs, "demo") as demo:
            wait_until(lambda: b"are up" in demo.out, 30.0, "the demo's peers are up")
            demo.signal(signal.SIGINT)
            assert demo.wait(20) == 130
    finally:
        del os.environ["TMPDIR"]
    assert os.listdir(tmp_path / "t") == []
