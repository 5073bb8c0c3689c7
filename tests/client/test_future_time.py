"""A subscription from a time that has not come hands out nothing that was appended before it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.conftest import make_directories, running


@pytest.mark.deadline(60)
async def test_records_before_the_time_are_passed_over(tmp_path: Path, eventually: Any) -> None:
    async with running(make_directories(tmp_path, 1)) as peers:
        peer: Any = peers[0]
        await peer.publish("t", b"long before")
        soon = datetime.now(UTC) + timedelta(seconds=0.7)
        async with peer.subscribe("t", start=soon) as records:
            await records.ready()
            await peer.publish("t", b"too early")
            number = 0

            async def late_enough() -> bool:
                nonlocal number
                number += 1
                await peer.publish("t", b"%d" % number)
                return datetime.now(UTC) > soon + timedelta(seconds=0.1)

            await eventually(late_enough)
            first = await anext(records)
    assert first.timestamp >= int(soon.timestamp() * 1000)
    assert first.value.isdigit() and first.offset > 1
