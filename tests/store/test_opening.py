"""Whose store it is, who may use it, and what is refused."""

from __future__ import annotations

import os
import stat

import pytest

from meshq.entries import Write
from meshq.errors import InternalError, StoreCorrupt, StoreError, WrongMesh
from meshq.ids import Slot
from meshq.limits import MIB
from meshq.store import Store
from meshq.store.layout import META_FORMAT, pack_u64

from .helpers import MESH, payload, put

S = Slot(7)


def modes(path):
    return {stat.S_IMODE(p.stat().st_mode) for p in path.iterdir()}


def test_each_opening_raises_the_boot_epoch_and_the_disk_keeps_its_id(opened, tmp_path):
    first = opened(tmp_path / "s")
    first.close()
    second = opened(tmp_path / "s")
    assert (first.boot_epoch, second.boot_epoch) == (1, 2)
    assert first.disk_id == second.disk_id and len(first.disk_id) == 16
    assert opened(tmp_path / "other").disk_id != first.disk_id


def test_directory_and_files_are_private_even_if_they_were_not(opened, tmp_path):
    path = tmp_path / "deep" / "s"
    opened(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert modes(path) == {0o600}
    path.chmod(0o755)
    for file in path.iterdir():
        file.chmod(0o644)
    opened(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert modes(path) == {0o600}


def test_another_meshs_store_is_refused_and_left_as_it_was(opened, tmp_path):
    opened(tmp_path / "s").close()
    with pytest.raises(WrongMesh, match=r"belongs to mesh .*use that mesh's data directory"):
        opened(tmp_path / "s", mesh_id=b"\xff" * 16)
    assert opened(tmp_path / "s").boot_epoch == 2


def test_a_newer_format_is_refused(opened, tmp_path):
    store = opened(tmp_path / "s")
    with store._dbs.env.begin(write=True) as txn:
        txn.put(META_FORMAT, pack_u64(2), db=store._dbs.meta)
    store.close()
    with pytest.raises(StoreError, match="written by a newer meshq; upgrade"):
        opened(tmp_path / "s")


def test_a_store_in_use_is_refused_with_the_process_that_has_it(opened, tmp_path):
    opened(tmp_path / "s")
    with pytest.raises(StoreError, match=f"in use by process {os.getpid()}: stop it or use another --data"):
        opened(tmp_path / "s")


def test_a_file_in_the_directorys_place_is_refused(opened, tmp_path):
    (tmp_path / "s").write_text("")
    with pytest.raises(StoreError, match=r"cannot use .* as the store's directory"):
        opened(tmp_path / "s")


@pytest.mark.parametrize("length", [100, 4096, 8192, MIB])
def test_a_data_file_cut_short_is_corrupt(opened, tmp_path, heard, length):
    store = opened(tmp_path / "s")
    put(store, heard, Write(1, S, payloads=tuple(payload(n, size=MIB) for n in range(6))))
    store.close()
    os.truncate(tmp_path / "s" / "data.mdb", length)
    with pytest.raises(StoreCorrupt):
        opened(tmp_path / "s")


def test_a_directory_that_is_not_a_store_of_ours_is_refused(opened, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "data.mdb").write_bytes(b"\xff" * 20_000)
    with pytest.raises(StoreCorrupt, match="damaged or no store"):
        opened(tmp_path / "s")


def test_use_across_a_fork_is_refused_and_does_not_touch_the_store(opened, tmp_path):
    store: Store = opened(tmp_path / "s")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.load()
        except InternalError as e:
            os.write(writer, e.text.encode())
        store.close()
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert f"opened by process {os.getpid()}" in pipe.read()
    assert store.load() == {}


def test_a_mesh_id_has_sixteen_bytes(opened, tmp_path):
    assert len(MESH) == 16
    with pytest.raises(StoreError, match="16 bytes"):
        opened(tmp_path / "s", mesh_id=b"short")
