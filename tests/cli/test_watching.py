"""`events` and `peers --watch`: what changes is told as it changes, a line or a screen at a time."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.peers import Peer, mesh_of, meshq, one_peer, running, wait_until


def lines(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


@pytest.mark.deadline(60)
def test_a_death_and_a_restart_are_told_as_json_lines_and_by_the_watched_list(tmp_path: Path) -> None:
    with mesh_of(tmp_path, 2) as (a, b):
        with a.follow("events", "--past") as events, a.follow("peers", "--watch", "--json") as watched:
            wait_until(lambda: lines(events.out) and lines(watched.out), 20.0, "both follow")
            assert b.process is not None
            b.process.signal(signal.SIGKILL)
            b.process.wait()
            wait_until(lambda: "MemberDead" in {x["event"] for x in lines(events.out)}, 20.0, "dead is told")
            wait_until(lambda: lines(watched.out)[-1][1]["state"] == "dead", 20.0, "dead is listed")
            b.start()
            wait_until(lambda: "MemberRestarted" in {x["event"] for x in lines(events.out)}, 20.0, "restart")
        told = lines(events.out)
        assert {x["by"] for x in told} == {"peer1"}
        assert [x["seq"] for x in told] == list(range(1, len(told) + 1))
        dead = next(x for x in told if x["event"] == "MemberDead")
        assert (dead["name"], dead["state"], dead["evidence"]["direct"]) == ("peer2", "dead", True)
        past = lines(a.meshq("events", "--past", "--no-follow").ok())
        assert past[: len(told)] == told
        assert len(lines(a.meshq("events", "--past", "--count", "1").ok())) == 1
        table = a.meshq("peers").ok().decode()
        for heading in ("STATE", "SINCE", "RTT MS", "INCARNATION", "REASON"):
            assert heading in table.splitlines()[0]
        _goes_to_another(tmp_path, a)


def _goes_to_another(where: Path, a: Peer) -> None:
    """With credentials any peer will do, and that it is another one is told."""
    file = where / "ops.meshq"
    a.meshq("client", "add", "ops", "--admin", "--out", file).ok()
    with running(where, "events", "--past", "--credentials", file) as events:
        wait_until(lambda: lines(events.out), 20.0, "it follows")
        first = lines(events.out)[-1]["by"]
        assert first == a.data.name
        a.stop()
        wait_until(lambda: lines(events.out)[-1]["by"] == "peer2", 20.0, "it follows the other one")
        (change,) = [x for x in lines(events.out) if x["event"] == "FollowingAnother"]
        assert change == {"event": "FollowingAnother", "by": "peer2", "instead_of": "peer1"}


@pytest.mark.deadline(60)
def test_who_follows_waits_for_its_peer_and_goes_on_with_it(tmp_path: Path) -> None:
    with one_peer(tmp_path) as peer, contextlib.ExitStack() as following:
        assert peer.process
        peer.process.signal(signal.SIGSTOP)  # so long is an event, which shows who follows
        until = time.monotonic() + 1.5
        wait_until(lambda: time.monotonic() > until)
        peer.process.signal(signal.SIGCONT)
        events = following.enter_context(peer.follow("events", "--past"))
        watched = following.enter_context(peer.follow("peers", "--watch"))
        wait_until(lambda: b"STATE" in watched.out, 20.0, "the list is there")
        wait_until(lambda: b"VerdictsDiscarded" in events.out, 20.0, "events are followed")
        assert peer.stop() == 0
        wait_until(lambda: "waiting for it" in watched.err, 20.0, "that it waits")
        before = watched.out.count(b"STATE")
        peer.start()
        wait_until(lambda: watched.out.count(b"STATE") > before, 20.0, "the list is there again")
        assert events.process.poll() is None


def test_events_refuse_what_makes_no_sense(peer: Peer, tmp_path: Path) -> None:
    peer.meshq("events", "--no-follow").failed(2, "--past")
    assert peer.meshq("events", "--past", "--no-follow").ok() == b""
    meshq("events", "--data", tmp_path / "none").failed(3, "meshq init")
    peer.meshq("client", "add", "watcher", "--subscribe", "#", "--out", tmp_path / "watcher.meshq").ok()
    meshq("events", "--credentials", tmp_path / "watcher.meshq").failed(1, "admin")
