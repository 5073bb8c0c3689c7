"""The registry over real sockets and disks: no peer is needed for ever, not even the first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import meshq
from tests.mesh.conftest import all_linked, free_base_port, running

Directories = Callable[[int], list[Path]]


async def names(peer: meshq.Peer) -> set[str]:
    return {row["name"] for row in await peer.ask("topics")}


async def votes(peers: list[meshq.Peer], count: int) -> bool:
    return all([len((await p.ask("status"))["registry"]["voters"]) == count for p in peers])


@pytest.mark.deadline(60)
async def test_topics_are_made_without_the_founder_and_it_hears_of_them_when_it_is_back(
    directories: Directories, eventually: Any
) -> None:
    paths = directories(3)
    ports = [free_base_port() for _ in paths]
    settings = {"bind": ["127.0.0.1"], "seed": [f"127.0.0.1:{p}" for p in ports], "mdns": False}
    async with AsyncExitStack() as stack:
        others = [
            await stack.enter_async_context(meshq.Peer(path, port=port, **settings))
            for path, port in zip(paths[1:], ports[1:], strict=True)
        ]
        async with meshq.Peer(paths[0], port=ports[0], **settings) as first:
            await eventually(lambda: all_linked([first, *others]))
            await first.ask("topic.create", {"topic": "before"})
        for i, peer in enumerate(others):
            await peer.ask("topic.create", {"topic": f"without.{i}"})
            await peer.publish(f"made.{i}", b"x")
        made = {"before", "without.0", "without.1", "made.0", "made.1"}
        for peer in others:
            await eventually(lambda p=peer: _has(p, made))
        async with meshq.Peer(paths[0], port=ports[0], **settings) as again:
            await eventually(lambda: _has(again, made))


async def _has(peer: meshq.Peer, wanted: set[str]) -> bool:
    return await names(peer) == wanted


@pytest.mark.deadline(60)
async def test_a_founder_that_lost_its_disk_gets_the_registry_from_the_others(
    directories: Directories, eventually: Any
) -> None:
    paths = directories(3)
    async with running(paths) as peers:
        await eventually(lambda: all_linked(peers))
        await peers[0].ask("topic.create", {"topic": "kept"})
        for peer in peers:
            await eventually(lambda p=peer: _has(p, {"kept"}))
    shutil.rmtree(paths[0] / "store")
    async with running(paths) as peers:
        for peer in peers:
            await eventually(lambda p=peer: _has(p, {"kept"}))
        await peers[0].ask("topic.create", {"topic": "new"})
        await eventually(lambda: votes(peers, 3))
