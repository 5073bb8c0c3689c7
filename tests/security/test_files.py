from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from msgspec import Struct

from meshq.errors import SecurityError, StoreCorrupt, StoreError
from meshq.security.files import (
    FILE_BYTES_MAX,
    load_struct,
    make_private_dir,
    read_private,
    save_struct,
    write_private,
)


class Thing(Struct, frozen=True, array_like=True):
    number: int


def test_what_is_written_is_read_and_only_its_owner_may(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"secret")
    assert read_private(tmp_path / "key") == b"secret"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_writing_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_private(tmp_path / "key", b"a long first text")
    write_private(tmp_path / "key", b"short")
    assert read_private(tmp_path / "key") == b"short"
    assert os.listdir(tmp_path) == ["key"]


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private(tmp_path / "key", b"old")

    def no_space(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreError, match=r"cannot write .*key: No space left"):
        write_private(tmp_path / "key", b"new")
    assert read_private(tmp_path / "key") == b"old"
    assert os.listdir(tmp_path) == ["key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o601])
def test_a_file_others_can_reach_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    write_private(path, b"secret")
    path.chmod(mode)
    with pytest.raises(SecurityError) as e:
        read_private(path)
    assert str(path) in e.value.text and f"{mode:04o}" in e.value.text and f"chmod 600 {path}" in e.value.text


def test_a_file_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    write_private(path, b"secret")
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(
        SecurityError, match=f"mode 0600.*owned by user {mine}, not by .*{mine + 1}.*chmod 600"
    ):
        read_private(path)
    with pytest.raises(SecurityError, match="owned by user"):
        make_private_dir(tmp_path)


def test_a_missing_a_huge_and_a_special_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot read .*nothing: No such file"):
        read_private(tmp_path / "nothing")
    write_private(tmp_path / "huge", bytes(FILE_BYTES_MAX + 1))
    with pytest.raises(StoreError, match="larger than"):
        read_private(tmp_path / "huge")
    with pytest.raises(StoreError, match="cannot read"):
        read_private(tmp_path)


def test_a_private_directory_is_made_with_its_parents_or_made_private(tmp_path: Path) -> None:
    make_private_dir(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    make_private_dir(tmp_path / "open")
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o700
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make the directory"):
        make_private_dir(tmp_path / "file")


def test_a_struct_comes_back_and_its_file_says_what_it_is(tmp_path: Path) -> None:
    save_struct(tmp_path / "t", "thing", Thing(7))
    assert load_struct(tmp_path / "t", "thing", Thing) == Thing(7)
    assert read_private(tmp_path / "t").startswith(b"meshq thing 1\n")


def test_a_file_of_another_kind_or_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    save_struct(tmp_path / "t", "other", Thing(7))
    with pytest.raises(StoreError, match="not meshq's file of kind 'thing'"):
        load_struct(tmp_path / "t", "thing", Thing)
    write_private(tmp_path / "t", b"meshq thing 2\nwhatever")
    with pytest.raises(StoreError, match="newer meshq"):
        load_struct(tmp_path / "t", "thing", Thing)


def test_every_bit_flip_behind_the_first_line_is_called_damage(tmp_path: Path) -> None:
    save_struct(tmp_path / "t", "thing", Thing(7))
    data = read_private(tmp_path / "t")
    start = data.index(b"\n") + 1
    for bit in range(start * 8, len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "t").write_bytes(changed)
        with pytest.raises(StoreCorrupt, match="damaged"):
            load_struct(tmp_path / "t", "thing", Thing)
