"""`meshq recover` with real processes: two of three are killed and do not come back."""

from __future__ import annotations

import json
from pathlib import Path

from tests.peers import mesh_of, wait_until


def test_one_that_is_left_of_three_goes_on(tmp_path: Path) -> None:
    with mesh_of(tmp_path, 3) as (one, two, three):
        one.meshq("pub", "t", stdin=b"before\n").ok()
        one.meshq("recover", "--gone", "peer2").failed(1, "'peer2' is not gone")
        for peer in (two, three):
            assert peer.process is not None
            peer.process.signal(9)
            peer.process.wait()
        gone = ("--gone", "peer2", "--gone", "peer3")
        wait_until(lambda: one.meshq("recover", *gone).code == 0, 20.0, "they are seen to be gone")
        one.meshq("recover", "--gone", "peer2").failed(1, "--gone peer3")
        plan = json.loads(one.meshq("recover", *gone, "--json").ok())
        assert len(plan["slots"]) == 257, "nothing was changed yet"
        assert b"257 of 257 slots went on" in one.meshq("recover", *gone, "--yes").ok()
        one.meshq("pub", "t", stdin=b"after\n").ok()
        assert one.meshq("sub", "t", "--from", "earliest", "--count", "2").ok() == b"before\nafter\n"
        two.start()
        wait_until(lambda: b"2 of 3 reach" in two.meshq("status").out, 20.0)
        found = two.meshq("sub", "t", "--from", "earliest", "--count", "2").ok()
        assert found == b"before\nafter\n"
