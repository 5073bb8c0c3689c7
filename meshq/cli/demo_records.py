"""What the demonstration sends, and how it proves that it arrived.

The records are the lines of the standard library's own sources, keyed by file: real text, of real lengths,
there on every host. A key's records are in order, so one hash a key over its lines in the order they came
says whether any is missing, doubled, altered or out of place.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any


def files_of_lines(lines_max: int) -> Iterator[tuple[bytes, list[bytes]]]:
    """(key, lines) a file of the standard library, until there are so many lines."""
    root = Path(sysconfig.get_path("stdlib"))
    left = lines_max
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "dist-packages"} & set(path.parts):
            continue
        try:
            lines = path.read_bytes().split(b"\n")[:left]
        except OSError:
            continue
        yield str(path.relative_to(root)).encode(), lines
        left -= len(lines)
        if left == 0:
            return


class Tally:
    """How many records of each key, and a hash over them in order."""

    def __init__(self) -> None:
        self.records = self.bytes = 0
        self._keys: dict[bytes, tuple[list[int], Any]] = {}

    def add(self, key: bytes, values: Sequence[bytes]) -> None:
        found = self._keys.get(key)
        if found is None:
            found = self._keys[key] = ([0], blake2b(digest_size=16))
        count, digest = found
        for value in values:
            digest.update(len(value).to_bytes(4, "big") + value)
            self.bytes += len(value)
        count[0] += len(values)
        self.records += len(values)

    def __len__(self) -> int:
        return len(self._keys)

    def differences(self, read: Tally) -> list[str]:
        """In words, for each key that was not read exactly as it was sent."""
        found = []
        for key in self._keys.keys() | read._keys.keys():
            sent_count, sent_hash = self._of(key)
            read_count, read_hash = read._of(key)
            if sent_count != read_count:
                found.append(f"{key.decode()}: {sent_count:,} sent, {read_count:,} read")
            elif sent_hash != read_hash:
                found.append(f"{key.decode()}: other bytes, or in another order")
        return sorted(found)

    def _of(self, key: bytes) -> tuple[int, bytes]:
        count, digest = self._keys.get(key, ([0], blake2b(digest_size=16)))
        return count[0], digest.digest()
