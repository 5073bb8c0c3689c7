"""Certificates of peers are renewed before they end, by the authority, for peers that are there."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from meshq.errors import StoreError
from meshq.peer import renewal
from meshq.security.certificates import PEER_VALID_S
from meshq.security.directory import DataDirectory
from tests.mesh.conftest import all_linked, make_directories, running


@pytest.mark.deadline(60)
async def test_every_reachable_peer_gets_a_new_certificate_and_keeps_it(
    tmp_path: Path, eventually: Any
) -> None:
    paths = make_directories(tmp_path, 2)
    before = [DataDirectory(p).load().certificate for p in paths]
    later = time.time() + PEER_VALID_S - renewal.RENEW_BEFORE_S / 2
    async with running(paths) as peers:
        await eventually(lambda: all_linked(peers))
        shells = [p._running() for p in peers]
        registry = shells[1].core.ctx.registry
        assert not renewal.due(registry, list(registry.peers), time.time())
        assert len(renewal.due(registry, list(registry.peers), later)) == 2
        makers = [renewal.Renewal(s.directory, s.papers, s.core, s.propose) for s in shells]
        await makers[0].look(later)
        await eventually(lambda: not renewal.due(registry, list(registry.peers), later))
        await makers[1].look(later)
        for maker in makers:
            await maker.stop()
        await peers[1].publish("still", b"served")
    after = [DataDirectory(p).load().certificate for p in paths]
    for old, new in zip(before, after, strict=True):
        assert new.not_after_s > old.not_after_s + PEER_VALID_S / 2
        assert (new.name, new.signing_key, new.curve_key) == (old.name, old.signing_key, old.curve_key)


async def test_a_lost_store_of_the_registrys_holder_is_not_begun_again(tmp_path: Path) -> None:
    path = make_directories(tmp_path, 1)[0]
    async with running([path]) as peers:
        await peers[0].publish("kept", b"1")
    shutil.rmtree(path / "store")
    with pytest.raises(StoreError, match="registry"):
        async with running([path]):
            pass
