"""One running peer for all tests that only use it; tests that stop or break a peer make their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.peers import Peer, one_peer


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with one_peer(tmp_path_factory.mktemp("peer")) as running:
        yield running
