"""`meshq leave` with real processes: while records are published, to the end of the process, and refused."""

from __future__ import annotations

import json
from pathlib import Path

from meshq.security.directory import DataDirectory
from tests.peers import free_base_port, mesh_of, meshq, start_peer, wait_until

RECORDS = 3_000


def test_peers_leave_one_after_the_other_and_every_record_stays(tmp_path: Path) -> None:
    with mesh_of(tmp_path, 3) as (one, two, three):
        three.meshq("topic", "create", "t", "--partitions", "8").ok()
        lines = b"".join(b"record %d\n" % i for i in range(RECORDS))
        three.meshq("pub", "t", stdin=lines).ok()

        left = meshq("leave", "--data", one.data)
        assert left.ok() == b"peer1 has left the mesh.\n"
        assert "peer1 is leaving: " in left.err
        assert one.process is not None and one.process.wait() == 0
        assert "left" in meshq("up", "--data", one.data).failed(2, "has left its mesh", "meshq join")
        rows = {row["name"]: row["state"] for row in json.loads(three.meshq("peers", "--json").ok())}
        assert rows == {"peer1": "left", "peer2": "alive", "peer3": "alive"}

        three.meshq("pub", "t", stdin=b"one more\n").ok()
        assert two.meshq("leave").ok() == b"peer2 has left the mesh.\n"
        assert two.process is not None and two.process.wait() == 0
        found = three.meshq("sub", "t", "--from", "earliest", "--count", RECORDS + 1).ok()
        assert sorted(found.splitlines()) == sorted([*lines.splitlines(), b"one more"])
        three.meshq("leave").failed(1, "last peer", "meshq invite")


def test_who_is_gone_is_let_go_by_another_and_may_join_again(tmp_path: Path) -> None:
    with mesh_of(tmp_path, 3) as (one, two, three):
        one.meshq("pub", "t", stdin=b"first\n").ok()
        assert three.process is not None
        three.process.signal(9)
        three.process.wait()
        gone = one.meshq("leave", "--peer", "peer3", timeout=60.0)
        assert gone.ok() == b"peer3 has left the mesh.\n"
        assert "peer3" not in json.loads(one.meshq("status", "--json").ok())["registry"]["voters"]
        two.meshq("leave", "--peer", "nobody").failed(2, "no peer is called", "meshq peers")

        token = one.meshq("invite").ok().decode().strip()
        data = tmp_path / "again"
        meshq("join", token, "--data", data, "--name", "peer3").ok()
        again = start_peer(data, free_base_port(), "--seed", f"127.0.0.1:{one.port}")
        try:
            wait_until(lambda: b"3 of 3 reach" in one.meshq("status").out, 20.0)
        finally:
            again.end()


def test_who_left_joins_again_in_the_same_directory_as_another_peer(tmp_path: Path) -> None:
    with mesh_of(tmp_path, 3) as (one, two, three):
        three.meshq("pub", "t", stdin=b"first\n").ok()
        three.meshq("leave").ok()
        assert three.process is not None and three.process.wait() == 0
        old = DataDirectory(three.data).load().identity.peer_id
        token = one.meshq("invite").ok().decode().strip()
        meshq("join", token, "--data", three.data, "--name", "peer3").ok()
        assert DataDirectory(three.data).load().identity.peer_id != old
        three.start()
        wait_until(lambda: b"3 of 3 reach" in two.meshq("status").out, 20.0)
        rows = [(row["name"], row["state"]) for row in json.loads(two.meshq("peers", "--json").ok())]
        assert sorted(rows) == [
            ("peer1", "alive"), ("peer2", "alive"), ("peer3", "alive"), ("peer3", "left"),
        ]  # fmt: skip
        assert three.meshq("sub", "t", "--from", "earliest", "--count", 1).ok() == b"first\n"
        assert three.process.process.poll() is None
