"""Bytes that rotted in real files: every record is read all the same, and is whole again afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.mesh.conftest import all_linked, make_directories, running

RECORDS = 60


async def test_records_that_rotted_on_each_of_three_disks_are_read_whole(
    tmp_path: Path,
    eventually: Callable[..., object],
) -> None:
    paths = make_directories(tmp_path, 3, slots=8)
    async with running(paths) as peers:
        await eventually(lambda: all_linked(peers))  # type: ignore[misc]
        for number in range(RECORDS):
            await peers[0].publish("t", _value(number))
    assert all(_rot(paths[number % 3], number) for number in range(RECORDS))
    async with running(paths) as peers:
        await eventually(lambda: all_linked(peers))  # type: ignore[misc]
        got: list[bytes] = []
        async with peers[0].subscribe("t", start="earliest") as records:
            async for record in records:
                got.append(record.value)
                if len(got) == RECORDS:
                    break
        assert got == [_value(number) for number in range(RECORDS)]
        counters = [(await peer.ask("status"))["counters"] for peer in peers]
    assert sum(c.get("batches_mended", 0) for c in counters) == RECORDS // 3, "those on the leader's disk"


def _value(number: int) -> bytes:
    return b"record %04d of those that rot" % number


def _rot(path: Path, number: int) -> bool:
    """A bit of that record, in the stopped peer's file: wherever it is, for pages are copied as they grow."""
    file, value = path / "store" / "data.mdb", _value(number)
    data = file.read_bytes()
    file.write_bytes(data.replace(value, bytes([value[0] ^ 1]) + value[1:]))
    return value in data
