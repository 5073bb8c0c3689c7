"""`groups` and `group show|reset|redrive|delete`, against a running peer."""

from __future__ import annotations

import json

import meshq.sync
from tests.peers import Peer, wait_until


def shown(peer: Peer, topic: str) -> dict[str, object]:
    (row,) = json.loads(peer.meshq("group", "show", topic, "g", "--json").ok())
    assert isinstance(row, dict)
    return row


def test_a_group_is_shown_reset_redriven_and_deleted(peer: Peer) -> None:
    topic = "shown.jobs"
    peer.meshq("pub", topic, stdin=b"a\nb\nc\n").ok()
    with meshq.sync.connect(data=peer.data) as mesh:
        with mesh.subscribe(topic, group="g", max_deliver=3) as jobs:
            next(jobs).ack()
            next(jobs).reject("no")
            listed = mesh.groups("shown.#")
            assert [(g.topic, g.group, g.members) for g in listed] == [(topic, "g", 1)]
        (first,) = mesh.group_show(topic, "g")
        assert (first.end, first.max_deliver, first.acked) == (3, 3, 1)
        assert mesh.group_reset(topic, "g", "earliest", dry_run=True)[0].to == 0
    assert b"MEMBERS" in peer.meshq("groups", "shown.#").ok()
    table = peer.meshq("group", "show", topic, "g").ok()
    assert b"max deliver" in table and b"CURSOR" in table

    assert b"would be put back: 1" in peer.meshq("group", "redrive", topic, "g", "--dry-run").ok()
    assert b"put back: 1" in peer.meshq("group", "redrive", topic, "g", "--limit", 5).ok()
    again = peer.meshq("sub", topic, "--group", "g", "--count", 2).ok()
    assert sorted(again.split()) == [b"b", b"c"]

    assert b"WOULD GO ON AT" in peer.meshq("group", "reset", topic, "g", "--to", "1", "--dry-run").ok()
    row = shown(peer, topic)
    assert (row["cursor"], row["lag"]) == (3, 0)
    moved = json.loads(peer.meshq("group", "reset", topic, "g", "--to", "1", "--json").ok())
    assert moved == [{"partition": 0, "from": 3, "to": 1}]

    with peer.follow("group", "show", topic, "g", "--watch", "--json") as watching:
        wait_until(lambda: watching.out.count(b"\n") >= 2, what="it is shown again")
    assert [json.loads(line)[0]["cursor"] for line in watching.out.splitlines()[:2]] == [1, 1]

    assert peer.meshq("group", "delete", topic, "g").code == 2, "nobody is there to confirm it"
    peer.meshq("group", "delete", topic, "g", "--yes").ok()
    gone = peer.meshq("group", "show", topic, "g")
    assert (gone.code, "no group 'g'" in gone.err) == (1, True)


def test_a_place_that_makes_no_sense(peer: Peer) -> None:
    refused = peer.meshq("group", "reset", "none", "g", "--to", "2025-13-01")
    assert (refused.code, "earliest, latest, an offset" in refused.err) == (2, True)


def test_what_is_pushed_to_one_that_was_killed_goes_to_another_at_once(peer: Peer) -> None:
    peer.meshq("topic", "create", "killed.jobs", "--partitions", 1).ok()
    with peer.follow("sub", "killed.jobs", "--group", "g", "-v") as killed:
        wait_until(lambda: "reading" in killed.err, what="it takes part")
        killed.process.kill()
        killed.wait()
    peer.meshq("pub", "killed.jobs", stdin=b"a\n").ok()
    assert peer.meshq("sub", "killed.jobs", "--group", "g", "--count", 1, timeout=15).ok() == b"a\n"
    (row,) = json.loads(peer.meshq("group", "show", "killed.jobs", "g", "--json").ok())
    assert (row["redelivered"], row["acked"]) == (0, 1)
