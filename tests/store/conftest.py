"""A store in a temporary directory, and its callbacks collected."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meshq.limits import MIB
from meshq.store import Store

from .helpers import MESH, Heard


@pytest.fixture
def opened() -> Iterator[Callable[..., Store]]:
    """Opens stores and closes them after the test."""
    stores: list[Store] = []

    def open_store(path: Path, **options: object) -> Store:
        settings = {"mesh_id": MESH, "bytes_max": 256 * MIB, "reserve_bytes": MIB, **options}
        stores.append(Store.open(path, **settings))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Callable[..., Store], tmp_path: Path) -> Store:
    return opened(tmp_path / "store")


@pytest.fixture
def heard() -> Heard:
    return Heard()
