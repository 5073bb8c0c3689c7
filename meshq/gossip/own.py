"""What this peer says of itself: its signed record, and the incarnation that only it can raise.

The incarnation is (boot epoch, version), both in the record, so every step of it is signed. The boot epoch is
raised on disk before a start sends anything; the version counts from 1 within a start, one step at a time:
when addresses change, when the peer leaves, and to refute an accusation of exactly the present incarnation.
Accusations of another one change nothing, so nobody can drive it up but by one step each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from meshq.gossip import wire
from meshq.gossip.wire import MemberRecord, Signed


class OwnRecord:
    def __init__(self, record: MemberRecord, sign: Callable[[bytes], bytes]) -> None:
        self._sign = sign
        self.outdated_said = False
        self._wished = list(record.addresses)  # more than fit, perhaps
        self.record = wire.fitting(record)
        self.signed: Signed = wire.sign_record(self.record, sign)

    def refute(self, accused: tuple[int, int]) -> bool:
        """Whether the accusation was of the present incarnation, which has then been raised."""
        if accused != self.record.order or self.record.left:
            return False
        self._renew(msgspec.structs.replace(self.record, version=self.record.version + 1))
        return True

    def move(self, addresses: Iterable[str]) -> bool:
        """Whether that was news."""
        wished = list(addresses)
        if wished == self._wished:
            return False
        self._wished = wished
        self._renew(msgspec.structs.replace(self.record, addresses=wished, version=self.record.version + 1))
        return True

    def leave(self) -> None:
        if not self.record.left:
            self._renew(msgspec.structs.replace(self.record, left=True, version=self.record.version + 1))

    def is_behind(self, other: MemberRecord) -> bool:
        """Whether it is of this very start, and newer: this process was put back from a snapshot."""
        return other.boot_id == self.record.boot_id and other.order > self.record.order

    def catch_up(self, other: MemberRecord) -> None:
        """Go on above what was signed then: a record that others hold newer they would not replace."""
        self._renew(msgspec.structs.replace(self.record, version=other.version + 1))

    def is_outdated_by(self, other: MemberRecord) -> bool:
        """Whether it is of another start of this peer's, not below this one."""
        return other.boot_id != self.record.boot_id and other.boot_epoch >= self.record.boot_epoch

    def _renew(self, record: MemberRecord) -> None:
        self.record = wire.fitting(record)
        self.signed = wire.sign_record(self.record, self._sign)
