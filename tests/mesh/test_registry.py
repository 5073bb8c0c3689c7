"""The registry over real sockets and disks: no peer is needed for ever, not even the first."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import meshq
from meshq.ids import SYSTEM_SLOT
from meshq.peer.doors import join
from meshq.peer.settings import DOOR
from meshq.security.directory import DataDirectory
from meshq.security.tokens import Place, Token
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
        await eventually(lambda: _led(others, {"peer2", "peer3"}), 20)
        for i, peer in enumerate(others):
            await peer.ask("topic.create", {"topic": f"without.{i}"})
            await peer.publish(f"made.{i}", b"x")
        made = {"before", "without.0", "without.1", "made.0", "made.1"}
        for peer in others:
            await eventually(lambda p=peer: _has(p, made))
        async with meshq.Peer(paths[0], port=ports[0], **settings) as again:
            await eventually(lambda: _has(again, made))


def _invite(path: Path, port: int) -> str:
    """What `meshq invite` does."""
    directory = DataDirectory(path)
    papers = directory.load()
    made = directory.invites.create(time.time(), 600)
    place = Place(f"127.0.0.1:{port}", port + DOOR)
    token = Token.new(made, places=[place], mesh_id=papers.mesh_id, inviter_key=papers.identity.curve_public)
    return token.show()


@pytest.mark.deadline(90)
async def test_a_mesh_that_one_peer_founded_grows_out_of_needing_it(
    directories: Directories, eventually: Any, tmp_path: Path
) -> None:
    founder, ports = directories(1)[0], [free_base_port() for _ in range(4)]
    settings = {"bind": ["127.0.0.1"], "seed": [f"127.0.0.1:{p}" for p in ports], "mdns": False}
    async with AsyncExitStack() as stack:

        async def add(number: int) -> meshq.Peer:
            path = tmp_path / f"joined{number}"
            await join(path, _invite(founder, ports[0]), f"joined{number}")
            return await stack.enter_async_context(meshq.Peer(path, port=ports[number], **settings))

        async with meshq.Peer(founder, port=ports[0], **settings) as first:
            await first.ask("topic.create", {"topic": "a"})
            joined = [await add(1), await add(2)]
            await eventually(lambda: votes([first, *joined], 3))
            await eventually(lambda: _is_settled(first))
        await eventually(lambda: _led(joined, {"joined1", "joined2"}), 20)
        for i, peer in enumerate(joined):
            await peer.ask("topic.create", {"topic": f"b.{i}"})
        # The registry is led by a peer that no genesis names, and somebody comes in who knows only genesis.
        async with meshq.Peer(founder, port=ports[0], **settings) as first:
            last = await add(3)
            for peer in (first, last):
                await eventually(lambda p=peer: _has(p, {"a", "b.0", "b.1"}), 20)
            await last.ask("topic.create", {"topic": "c"})
            await eventually(lambda: _has(first, {"a", "b.0", "b.1", "c"}))


async def _is_settled(peer: meshq.Peer) -> bool:
    replica = peer._running().core.slots.hosts[SYSTEM_SLOT].replica
    return replica.is_settled and not replica.config.is_joint


async def _led(peers: list[meshq.Peer], by: set[str]) -> bool:
    """Whether all of them reach one of these as the registry's leader."""
    found = [(await p.ask("status"))["registry"] for p in peers]
    return all(x["reachable"] and x["holder"] in by for x in found)


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
    async with running(paths, begin_empty=True) as peers:
        for peer in peers:
            await eventually(lambda p=peer: _has(p, {"kept"}))
        await peers[0].ask("topic.create", {"topic": "new"})
        await eventually(lambda: votes(peers, 3))
