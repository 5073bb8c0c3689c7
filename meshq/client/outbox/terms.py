"""What an outbox is allowed and how it packs: apart, so that a client without one loads only this."""

from __future__ import annotations

from dataclasses import dataclass

from meshq.limits import KIB, OUTBOX_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Terms:
    """bytes_max: what it may hold on disk; batch_bytes, compression: of the batches it makes."""

    bytes_max: int = OUTBOX_BYTES_MAX
    batch_bytes: int = 256 * KIB
    compression: str = "none"
