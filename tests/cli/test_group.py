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
        (row,) = mesh.group_show(topic, "g")
        assert (row.cursor, row.end, row.lag, row.max_deliver) == (1, 3, 2, 3) or row.cursor == 2
        assert mesh.group_reset(topic, "g", "earliest", dry_run=True)[0].to == 0
    listed = json.loads(peer.meshq("groups", "shown.#", "--json").ok())
    assert [g["group"] for g in listed] == ["g"]
    assert b"MEMBERS" in peer.meshq("groups", "shown.#").ok()
    table = peer.meshq("group", "show", topic, "g").ok()
    assert b"max deliver" in table and b"CURSOR" in table

    assert b"would be put back: 1" in peer.meshq("group", "redrive", topic, "g", "--dry-run").ok()
    assert b"put back: 1" in peer.meshq("group", "redrive", topic, "g", "--limit", 5).ok()
    again = peer.meshq("sub", topic, "--group", "g", "--count", 2).ok()
    assert sorted(again.split()) == [b"b", b"c"]
    assert (shown(peer, topic)["cursor"], shown(peer, topic)["lag"]) == (3, 0)

    assert b"WOULD GO ON AT" in peer.meshq("group", "reset", topic, "g", "--to", "1", "--dry-run").ok()
    assert shown(peer, topic)["cursor"] == 3
    peer.meshq("group", "reset", topic, "g", "--to", "2030-01-01", "--json").ok()
    moved = json.loads(peer.meshq("group", "reset", topic, "g", "--to", "1", "--json").ok())
    assert moved == [{"partition": 0, "from": 3, "to": 1}]
    assert peer.meshq("sub", topic, "--group", "g", "--count", 2).ok() == b"b\nc\n"

    with peer.follow("group", "show", topic, "g", "--watch", "--json") as watching:
        wait_until(lambda: watching.out.count(b"\n") >= 2, what="it is shown again")
    assert [json.loads(line)[0]["cursor"] for line in watching.out.splitlines()[:2]] == [3, 3]

    assert peer.meshq("group", "delete", topic, "g").code == 2, "nobody is there to confirm it"
    peer.meshq("group", "delete", topic, "g", "--yes").ok()
    gone = peer.meshq("group", "show", topic, "g")
    assert (gone.code, "no group 'g'" in gone.err) == (1, True)
    assert peer.meshq("topics", "_dead.#", "--json").ok().strip() == b"[]"


def test_places_that_make_no_sense(peer: Peer) -> None:
    for to in ("there", "-1", "2025-13-01"):
        refused = peer.meshq("group", "reset", "none", "g", "--to", to)
        assert (refused.code, "earliest, latest, an offset" in refused.err) == (2, True)
