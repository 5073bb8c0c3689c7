"""`send_many` takes what there is room for, in order, and checks as `send` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import meshq
from tests.mesh.conftest import make_directories, running


@pytest.mark.deadline(60)
async def test_records_taken_together_are_stored_once_in_order(tmp_path: Path) -> None:
    values = [b"%d" % n for n in range(10_000)]
    async with running(make_directories(tmp_path, 1)) as peers:
        peer: Any = peers[0]
        async with peer.producer("many", batch_bytes=4_000, buffer_bytes=20_000) as out:
            taken = 0
            while taken < len(values):
                some = out.send_many(values[taken:])
                assert some > 0, "after ready() there is room"
                taken += some
                if taken < len(values):
                    assert out.is_full()
                    await out.ready()
        async with peer.subscribe("many", start="earliest") as records:
            found = [(r.offset, r.value) for r in [await anext(records) for _ in values]]
    assert found == list(enumerate(values))


@pytest.mark.deadline(60)
async def test_a_record_that_may_not_be_is_refused_and_those_before_it_were_taken(tmp_path: Path) -> None:
    async with running(make_directories(tmp_path, 1)) as peers:
        peer: Any = peers[0]
        await peer.ask("topic.create", {"topic": "small", "partitions": 1, "record_bytes_max": 10})
        async with peer.producer("small") as out:
            await out.send(b"first")
            with pytest.raises(meshq.TooLarge):
                out.send_many([b"ok"] * 70 + [b"x" * 11] + [b"not reached"])
            with pytest.raises(meshq.UsageError):
                out.send_many([b"ok", "text"])
        shown = await peer.ask("topic.show", {"topic": "small"})
    assert shown["partition"][0]["end"] == 1 + 70 + 1
