"""Errors say whose fault it is, what happened, why, and what mends it.

    MeshqError
    ├── UsageError              the caller's: arguments, settings, names
    ├── RemoteProtocolError     the other side's: bytes that break the protocol
    ├── Refused                 the mesh said no; the same call would be refused again
    │   ├── Forbidden           403  the key has no capability for it
    │   ├── UnknownTopic        404  no such topic, and none may be made here
    │   ├── UnknownGroup        404  the topic has no such group
    │   ├── TopicGone           404  this topic was deleted (one of the same name is another topic)
    │   ├── TopicExists         409  a topic of that name is there already
    │   ├── TooLarge            413  over a limit that is named
    │   ├── SequenceConflict    409  same producer sequence, other bytes
    │   ├── OutOfOrderSequence  409  a gap in the producer's sequence
    │   ├── UnknownProducer     409  the producer's state has expired here
    │   ├── Fenced              409  a newer epoch of this producer exists
    │   ├── LeaseLost           409  the record is not this consumer's any more: it is handed out again
    │   ├── RecordsLost         409  records that were read are lost, and their offsets are given to others
    │   └── RecordsExpired      409  records went by their topic's retention before they were read
    ├── Unavailable             503  not now; the same call may succeed later
    │   ├── NotOwner            503  this peer does not own the slot; ask the one named
    │   ├── RegistryUnavailable 503  nothing new can be registered just now
    │   ├── NotEnoughCopies     503  fewer peers can be reached than the topic's `copies_min` asks for
    │   ├── OutboxFull          507  this producer's own outbox holds as much as it may
    │   ├── RecordsDamaged      503  damaged on the peer that was asked, and no whole copy can be had just now
    │   ├── Overloaded          429  a bound was reached; try again after `retry_after_ms`
    │   └── DiskFull            507  no room to store records; reading goes on
    ├── OutcomeUnknown          504  sent, not answered in time: it may or may not have been stored
    ├── StoreError              this disk's
    │   ├── StoreCorrupt        a checksum does not match (`entries.PayloadCorrupt`: a batch's)
    │   └── WrongMesh           the data directory belongs to another mesh
    ├── SecurityError           keys, certificates, tokens, permissions of private files
    └── InternalError           ours: a broken invariant; the peer stops

Errors that cross the wire travel as (status, class name, text, retry_after_ms) and come back as the same
class; a name this version does not know becomes the nearest class for its status.
"""

from __future__ import annotations


class MeshqError(Exception):
    """Any error meshq raises on purpose."""

    status = 500
    retriable = False

    def __init__(self, text: str = "", *, retry_after_ms: int = 0) -> None:
        super().__init__(text)
        self.retry_after_ms = retry_after_ms

    @property
    def text(self) -> str:
        return str(self)


class UsageError(MeshqError, ValueError):
    status = 400


class RemoteProtocolError(MeshqError):
    status = 400


class Refused(MeshqError):
    status = 400


class Forbidden(Refused):
    status = 403


class UnknownTopic(Refused):
    status = 404


class UnknownGroup(Refused):
    status = 404


class TopicGone(Refused):
    status = 404


class TopicExists(Refused):
    status = 409


class TooLarge(Refused):
    status = 413


class SequenceConflict(Refused):
    status = 409


class OutOfOrderSequence(Refused):
    status = 409


class UnknownProducer(Refused):
    status = 409


class Fenced(Refused):
    status = 409


class LeaseLost(Refused):
    status = 409


class RecordsLost(Refused):
    status = 409


class RecordsExpired(Refused):
    """Records of `topic` and `partition` went by its retention before this subscription (or its group) had
    them: `count` of them, and the next one there is has the offset `next`. The subscription goes on with it.
    """

    status = 409

    def __init__(
        self,
        text: str = "",
        *,
        retry_after_ms: int = 0,
        topic: str = "",
        partition: int = 0,
        count: int = 0,
        next: int = 0,
    ) -> None:
        super().__init__(text, retry_after_ms=retry_after_ms)
        self.topic = topic
        self.partition = partition
        self.count = count
        self.next = next


class Unavailable(MeshqError):
    status = 503
    retriable = True


class NotOwner(Unavailable):
    pass


class RegistryUnavailable(Unavailable):
    pass


class NotEnoughCopies(Unavailable):
    pass


class RecordsDamaged(Unavailable):
    pass


class Overloaded(Unavailable):
    status = 429


class DiskFull(Unavailable):
    status = 507


class OutboxFull(Unavailable):
    status = 507


class OutcomeUnknown(MeshqError):
    status = 504


class StoreError(MeshqError):
    pass


class StoreCorrupt(StoreError):
    pass


class WrongMesh(StoreError):
    pass


class SecurityError(MeshqError):
    status = 403


class InternalError(MeshqError):
    pass


_ON_THE_WIRE: dict[str, type[MeshqError]] = {
    c.__name__: c
    for c in (
        UsageError, RemoteProtocolError, Refused, Forbidden, UnknownTopic, UnknownGroup, TopicGone,
        TopicExists, TooLarge, SequenceConflict, OutOfOrderSequence, UnknownProducer, Fenced, LeaseLost,
        RecordsLost, RecordsExpired, Unavailable, NotOwner, RegistryUnavailable, NotEnoughCopies,
        RecordsDamaged, Overloaded, DiskFull, OutcomeUnknown, SecurityError, InternalError, StoreError,
        StoreCorrupt,
    )
}  # fmt: skip
_BY_STATUS: dict[int, type[MeshqError]] = {
    400: Refused, 403: Forbidden, 404: UnknownTopic, 409: Refused, 413: TooLarge,
    429: Overloaded, 503: Unavailable, 504: OutcomeUnknown, 507: DiskFull,
}  # fmt: skip


def from_wire(status: int, name: str, text: str, retry_after_ms: int = 0) -> MeshqError:
    """The error another side reported, as the class of that name here."""
    cls = _ON_THE_WIRE.get(name) or _BY_STATUS.get(status, MeshqError)
    return cls(text, retry_after_ms=retry_after_ms)
