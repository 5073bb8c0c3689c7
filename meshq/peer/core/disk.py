"""Outstanding writes of the core, and what each one's end means.

The store answers in order. When it fails, everything outstanding has failed with it (its writer refuses all
that is queued until it is told to resume), so a failure is handled once, for all, and later reports about the
same tokens find nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from meshq.entries import Entry, Payload, PayloadKey, Write
from meshq.errors import InternalError, MeshqError
from meshq.ids import PartitionKey, Slot
from meshq.limits import BATCH_BYTES_MAX
from meshq.peer.core.events import Effect, Persist, ResumeWrites


@dataclass(slots=True)
class _Outstanding:
    since: float
    payload_bytes: int
    done: Callable[[], None]
    failed: Callable[[MeshqError], None]


@dataclass
class Disk:
    """`room_bytes` is what the store last said may be stored, less what was handed to it since.

    `is_full`: that is less than one batch takes. It ends with room for two: leaders are not to be moved to
    and fro while room comes and goes bit by bit.
    """

    out: list[Effect]
    room_bytes: int = 0
    is_full: bool = False
    now: float = 0.0
    pending_bytes: int = 0
    _outstanding: dict[int, _Outstanding] = field(default_factory=dict)
    _failing: bool = False
    _later: list[Callable[[], None]] = field(default_factory=list)
    _token: int = 0

    def look_at_room(self) -> None:
        self.is_full = self.room_bytes < (2 if self.is_full else 1) * BATCH_BYTES_MAX

    def waiting_s(self, now: float) -> float:
        """How long the oldest write has been waiting."""
        first = next(iter(self._outstanding.values()), None)
        return now - first.since if first is not None else 0.0

    @property
    def outstanding(self) -> int:
        return len(self._outstanding)

    def submit(
        self,
        slot: Slot,
        *,
        done: Callable[[], None],
        failed: Callable[[MeshqError], None],
        entries: tuple[Entry, ...] = (),
        payloads: tuple[Payload, ...] = (),
        rows: tuple[tuple[bytes, bytes | None], ...] = (),
        trim_below: int | None = None,
        truncate_from: int | None = None,
        dropped: tuple[PayloadKey, ...] = (),
        aside: tuple[tuple[bytes, bytes], ...] = (),
        clear_aside: bytes | None = None,
        replace: tuple[bytes, ...] | None = None,
        doubtful: tuple[PayloadKey, ...] = (),
        rewritten: tuple[tuple[PartitionKey, int, int], ...] = (),
    ) -> None:
        if self._failing:
            raise InternalError("a write was begun while failed ones are being taken back")
        self._token += 1
        write = Write(
            self._token, slot, entries, payloads, rows, trim_below, truncate_from, dropped,
            aside, clear_aside, replace, doubtful, rewritten,
        )  # fmt: skip
        size = write.payload_bytes() if payloads else 0
        self._outstanding[self._token] = _Outstanding(self.now, size, done, failed)
        self.pending_bytes += size
        self.room_bytes -= size
        self.out.append(Persist(write))

    def on_done(self, tokens: Sequence[int], room_bytes: int) -> None:
        self.room_bytes = room_bytes
        for token in tokens:
            outstanding = self._outstanding.pop(token, None)
            if outstanding is not None:
                self.pending_bytes -= outstanding.payload_bytes
                outstanding.done()

    def on_failed(self, error: MeshqError, room_bytes: int) -> None:
        """Every machine takes back what it had handed to the disk; only then may any of them begin anew."""
        if not self._outstanding:
            return
        lost, self._outstanding = list(self._outstanding.values()), {}
        self.pending_bytes = 0
        self.room_bytes = room_bytes
        self.out.append(ResumeWrites())
        self._failing = True
        try:
            for outstanding in lost:
                outstanding.failed(error)
        finally:
            self._failing = False
        later, self._later = self._later, []
        for call in later:
            call()

    def when_settled(self, call: Callable[[], None]) -> None:
        """Now; or, while failed writes are being taken back, after all of them: what may lead to new
        writes.
        """
        if self._failing:
            self._later.append(call)
        else:
            call()
