"""Disks that were put back: a restored or cloned directory has forgotten what it promised.

Every start of a disk raises its epoch before anything else, and says it with a boot id of its own wherever
it connects. Who is told remembers the newest of each disk. A lower epoch, or the same one under another boot
id, means that this copy of the disk does not know everything that was acknowledged and voted in its name. It
is told so with the welcome, before a word of it is heard; it notes that on its disk and takes part in no
decision until its store is removed and it comes back with another disk id, which has promised nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from meshq.errors import MeshqError, StoreCorrupt
from meshq.ids import LOCAL_SLOT, PeerId
from meshq.limits import DISKS_REMEMBERED_MAX
from meshq.peer.core.context import Context

_SEEN, _ROLLED_BACK = b"E", b"B"
_KEY_BYTES: Final = 33


class _Seen(msgspec.Struct, frozen=True, array_like=True):
    epoch: int
    boot: bytes
    seen_ms: int


@dataclass
class Disks:
    """`on_rolled_back`: this peer's own disk is one."""

    ctx: Context
    on_rolled_back: Callable[[PeerId], None]
    is_rolled_back: bool = False
    _seen: dict[bytes, _Seen] = field(default_factory=dict)  # by row key; DISKS_REMEMBERED_MAX
    _unsaved: dict[bytes, None] = field(default_factory=dict)

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Raises: StoreCorrupt."""
        try:
            self._seen = {k: msgspec.msgpack.decode(v, type=_Seen) for k, v in rows.items() if k[:1] == _SEEN}
        except msgspec.MsgspecError as e:
            raise StoreCorrupt(f"what is known of peers' disks cannot be read: {e}") from None
        self.is_rolled_back = _ROLLED_BACK in rows

    def judge(self, peer: PeerId, disk: bytes, epoch: int, boot: bytes) -> bool:
        """Whether a later start of this disk has been seen. The newest is remembered."""
        if epoch == 0:
            return False  # an older version, or no peer
        key = _SEEN + peer + disk
        known = self._seen.get(key)
        if known is not None and (epoch < known.epoch or (epoch == known.epoch and boot != known.boot)):
            self.ctx.count("disks_rolled_back")
            return True
        if known is None or epoch > known.epoch:
            if known is None and len(self._seen) >= DISKS_REMEMBERED_MAX:
                oldest = min(self._seen, key=lambda k: self._seen[k].seen_ms)
                del self._seen[oldest]
                self._unsaved[oldest] = None
            self._seen[key] = _Seen(epoch, boot, self.ctx.wall_ms)
            self._unsaved[key] = None
            self._save()
        return False

    def on_told(self, peer: PeerId) -> None:
        """A peer has seen a later start of this disk."""
        if self.is_rolled_back:
            return
        self.is_rolled_back = True
        self._unsaved[_ROLLED_BACK] = None
        self._save()
        self.on_rolled_back(peer)

    def tick(self) -> None:
        """What a full disk refused is tried again."""
        if self._unsaved:
            self._save()

    def _save(self) -> None:
        keys, self._unsaved = self._unsaved, {}

        def failed(_: MeshqError) -> None:
            self._unsaved |= keys

        rows = tuple((key, self._row(key)) for key in keys)
        self.ctx.disk.submit(LOCAL_SLOT, rows=rows, done=lambda: None, failed=failed)

    def _row(self, key: bytes) -> bytes | None:
        if key == _ROLLED_BACK:
            return b"\x01"
        seen = self._seen.get(key)
        return msgspec.msgpack.encode(seen) if seen is not None else None
