"""A full disk refuses publishing with a clear error and loses nothing; room that is made is used again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import meshq
from meshq.gossip.words import AddressesChanged
from meshq.ids import SYSTEM_SLOT
from meshq.peer.presence import read_run
from meshq.security.directory import DataDirectory
from tests.mesh.conftest import all_linked, make_directories, running

MIB = 1024 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small file system")
    where = tmp_path / "small"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", where],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield where
    subprocess.run(["umount", where], check=True)


async def _fill(peer: Any, topic: str) -> list[bytes]:
    """Publish until the disk refuses; what was acknowledged."""
    stored: list[bytes] = []
    with pytest.raises(meshq.DiskFull, match=r"watermark|no room"):
        for number in range(200):
            value = os.urandom(MIB // 2) + b"%d" % number
            await peer.publish(topic, value, timeout=2)
            stored.append(value)
    return stored


async def _read(peer: Any, topic: str, count: int) -> list[bytes]:
    async with peer.subscribe(topic, start="earliest") as records:
        return [(await anext(records)).value for _ in range(count)]


@pytest.mark.deadline(60)
@pytest.mark.parametrize("reserve", [8 * MIB, 0], ids=["watermark", "no reserve"])
async def test_a_full_disk_refuses_publishing_while_reading_goes_on(
    small_disk: Path, reserve: int, eventually: Any
) -> None:
    paths = make_directories(small_disk, 1)
    async with running(paths, disk_reserve_bytes=reserve) as peers:
        peer = peers[0]
        stored = await _fill(peer, "filling")
        assert len(stored) > 20
        assert await _read(peer, "filling", len(stored)) == stored
        with pytest.raises(meshq.DiskFull):
            await peer.publish("filling", b"x" * MIB, timeout=1)
        if reserve:  # without a reserve there is no room for the registry's entry that deletes a topic
            await peer.ask("topic.delete", {"topic": "filling"})

            async def fits() -> bool:
                try:
                    await peer.publish("after", b"x" * MIB, timeout=1)
                except meshq.DiskFull:
                    return False
                return True

            await eventually(fits, 20)
    if reserve:  # a disk without a byte left does not let a peer note that it starts
        async with running(paths, disk_reserve_bytes=reserve) as peers:
            assert await _read(peers[0], "after", 1) == [b"x" * MIB]


@pytest.mark.deadline(60)
async def test_the_store_has_a_size_of_its_own(directories: Callable[[int], list[Path]]) -> None:
    paths = directories(1)
    async with running(paths, store_bytes_max=24 * MIB, disk_reserve_bytes=0) as peers:
        stored = await _fill(peers[0], "filling")
        assert 10 < len(stored) < 48
        assert await _read(peers[0], "filling", len(stored)) == stored


@pytest.mark.deadline(60)
async def test_a_peer_without_its_store_comes_back_as_another_voter_when_told(
    tmp_path: Path, eventually: Any
) -> None:
    paths = make_directories(tmp_path, 3, slots=8)
    async with running(paths) as peers:
        await eventually(lambda: all_linked(peers))
        for i in range(8):
            await peers[0].publish(f"t{i}", b"old")
    shutil.rmtree(paths[1] / "store")
    with pytest.raises(meshq.StoreError, match="--begin-empty"):
        async with running(paths[1:2]):
            pass
    async with running(paths, begin_empty=True) as peers:
        core = peers[1]._running().core
        assert core.slots.me.disk != bytes(16), "another disk is another node"

        def votes_everywhere() -> bool:
            hosts = [host for slot, host in core.slots.hosts.items() if slot != SYSTEM_SLOT]
            configs = [host.replica.settled_config[1] for host in hosts]
            return len(configs) == 8 and all(core.slots.me in config.voters for config in configs)

        await eventually(votes_everywhere, 40)
        for i in range(8):
            assert await _read(peers[1], f"t{i}", 1) == [b"old"]
            assert (await peers[0].publish(f"t{i}", b"new")).offset == 1


@pytest.mark.deadline(30)
async def test_tools_are_told_where_the_peer_is_now(
    directories: Callable[[int], list[Path]], eventually: Any
) -> None:
    """`invite` reads it, and must not lead new hosts to an address that is gone."""
    paths = directories(1)
    async with running(paths) as peers:
        shell = peers[0]._running()
        shell.neighbours.handle(AddressesChanged(("192.0.2.9:7700",)))
        directory = DataDirectory(paths[0])
        await eventually(lambda: read_run(directory)["addresses"] == ["192.0.2.9:7700"])
