"""Mending: a batch that is damaged on this disk is fetched from another replica, and whoever reads it waits.

A log that can't be read is cut and copied again (hosts.py). Batches are stored beside it, long after their
entries were trimmed, and damage to one is found by whoever reads it: a client, a group's desk, another peer
that lacks it. Then the other members of its slot are asked for what they have at that offset:

    damage found ──> "batch" to the other members ──> the first that is sound, in place of ours ──> durable
         |                                                                                             |
    reader waits <───────────────────────────────────────────────────────────────────────── reads again

Any of them that has applied the offset has the right bytes, since what is decided is the same everywhere; in
another generation it may not be, so that one says nothing. What comes is taken only if its checksums hold,
and, where the log still has the entry, if it is that entry's. A replica that finds its own copy damaged when
it is asked mends that too. While nobody has a whole one the reader is told so and may try again: a damaged
record is never handed on, and never taken for one that is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from meshq.batch import read_header
from meshq.entries import Payload, PayloadCorrupt, PayloadKey, StoredBatch
from meshq.errors import MeshqError, Overloaded, RecordsDamaged, RemoteProtocolError, StoreCorrupt, UsageError
from meshq.ids import PartitionKey, Session, TopicId
from meshq.messages import Answer, Ask
from meshq.peer.core.context import Context
from meshq.peer.core.events import BatchesFetched, FetchBatches, Mended
from meshq.peer.core.fanning import FanOut
from meshq.peer.core.hosts import Host
from meshq.peer.core.pieces import sound_payload
from meshq.peer.core.slots import Slots
from meshq.replication.generations import generation_of
from meshq.streams.delivery import Fetch

BATCH: Final = "batch"  # asked of other peers
MENDING: Final = "mending"  # in the place of a door: for whom a batch is fetched
MENDS_MAX: Final = 64  # damaged batches that are asked for at a time; more: `Overloaded`
ASKED_MAX: Final = 256  # batches that are being read for other peers; more: `Overloaded`
TRIED_MAX: Final = 1_024  # places that are left alone for a while; more: `RecordsDamaged` till then
AGAIN_S: Final = 1.0  # between one try and the next at the same place

Done = Callable[[MeshqError | None], None]
Spot = tuple[PartitionKey, int]  # the offset at which damage was found


@dataclass(slots=True)
class _Mend:
    """`waiting`: one for each read that found it, and those are bounded where they are made."""

    host: Host
    damage: PayloadCorrupt
    waiting: list[Done]


@dataclass
class Mending:
    ctx: Context
    slots: Slots
    fan_out: FanOut
    _mends: dict[Spot, _Mend] = field(default_factory=dict)  # MENDS_MAX
    _tried: dict[Spot, float] = field(default_factory=dict)  # TRIED_MAX: not again before then
    _later: list[tuple[PayloadCorrupt, Done]] = field(default_factory=list)  # as `waiting`
    _asked: dict[int, tuple[Session, int]] = field(default_factory=dict)  # ASKED_MAX
    _number: int = 0

    def mend(self, damage: PayloadCorrupt, done: Done) -> None:
        """`done` once a whole copy is on this disk, or with why there is none."""
        spot = (damage.partition, damage.offset)
        under_way = self._mends.get(spot)
        if under_way is not None:
            under_way.waiting.append(done)
            return
        host = self._host_of(damage.partition, damage.offset)
        if host is None:
            done(RecordsDamaged(f"{damage}; the slot is not whole here just now: ask again"))
        elif self.ctx.now < self._tried.get(spot, 0.0):
            self._later.append((damage, done))
        elif len(self._tried) >= TRIED_MAX:
            wait_ms = int(AGAIN_S * 1000)
            done(RecordsDamaged(f"{damage}, as much else is here: ask again", retry_after_ms=wait_ms))
        elif len(self._mends) >= MENDS_MAX:
            done(Overloaded("as many damaged batches are being fetched as may", retry_after_ms=1_000))
        else:
            self.ctx.count("batches_damaged")
            self._begin(_Mend(host, damage, [done]), spot)

    def _begin(self, mend: _Mend, spot: Spot) -> None:
        self._mends[spot] = mend
        host, damage = mend.host, mend.damage
        others = {n.peer for n in host.replica.config.nodes()} - {self.ctx.me.peer}
        if not others and damage.partition in host.doubted:
            early = f"{damage}; whether it has expired is being looked at: ask again"
            self._settle(spot, RecordsDamaged(early, retry_after_ms=int(AGAIN_S * 1000)))
            return
        if not others:
            alone = f"{damage}, and this is the only copy: stop the peer and restore its data directory"
            self._settle(spot, StoreCorrupt(alone))
            return
        args = {
            "topic_id": bytes(damage.partition.topic_id),
            "partition": damage.partition.partition,
            "offset": damage.offset,
            "generation": generation_of(host.replica.term),
        }

        def is_whole(answer: dict[str, Any]) -> bool:
            return self._whole(damage, answer) is not None

        def on_answers(answers: list[dict[str, Any]]) -> None:
            found = next((p for p in (self._whole(damage, a) for a in answers) if p is not None), None)
            if found is None:
                self._settle(spot, RecordsDamaged(
                    f"{damage}, and no other peer that can be reached has a whole copy: start those that are "
                    "away. It is tried again", retry_after_ms=int(AGAIN_S * 1000),
                ))  # fmt: skip
            else:
                self._write(mend, spot, found)

        try:
            self.fan_out.ask(BATCH, args, on_answers, each={peer: {} for peer in others}, enough=is_whole)
        except Overloaded as e:
            self._settle(spot, e)

    @staticmethod
    def _whole(damage: PayloadCorrupt, answer: dict[str, Any]) -> Payload | None:
        """What another peer has there, if it is sound."""
        base, at, data = (answer.get(k) for k in ("base_offset", "timestamp_ms", "data"))
        if not (isinstance(base, int) and isinstance(at, int) and isinstance(data, bytes)):
            return None
        try:
            payload = sound_payload(damage.partition, base, at, data)
        except RemoteProtocolError:
            return None
        holds = base <= damage.offset < base + payload.count
        return payload if holds and _is_of(damage, payload) else None

    def _write(self, mend: _Mend, spot: Spot, whole: Payload) -> None:
        """In place of what is here. Nobody reads it before it is durable."""
        host, stored = mend.host, mend.damage.stored
        if self._host_of(*spot) is not host:
            self._settle(spot, RecordsDamaged(f"{mend.damage}; the slot has changed meanwhile: ask again"))
            return
        key = PayloadKey(whole.partition, whole.base_offset, whole.timestamp_ms, whole.count)

        def failed(error: MeshqError) -> None:
            self.ctx.disk.when_settled(lambda: self._settle(spot, error))

        self.ctx.disk.submit(
            host.slot,
            payloads=(whole,),
            dropped=(stored,) if stored not in (None, key) else (),
            done=lambda: self._settle(spot, None),
            failed=failed,
        )

    def _settle(self, spot: Spot, error: MeshqError | None) -> None:
        """Whoever finds it damaged again at once waits for a while: no copy has come up meanwhile, and a disk
        that keeps nothing would be written to without end.
        """
        mend = self._mends.pop(spot)
        self.ctx.count("batches_not_mended" if error else "batches_mended")
        if len(self._tried) < TRIED_MAX:
            self._tried[spot] = self.ctx.now + AGAIN_S
        self.ctx.out.append(Mended(mend.damage, error))
        for done in mend.waiting:
            done(error)

    def tick(self) -> None:
        self._tried = {spot: at for spot, at in self._tried.items() if at > self.ctx.now}
        later, self._later = self._later, []
        for damage, done in later:
            self.mend(damage, done)

    def _host_of(self, partition: PartitionKey, offset: int) -> Host | None:
        """The slot's copy here, if what it knows of this offset is decided and stays."""
        host = self.slots.hosts.get(self.ctx.slot_of(partition))
        if host is None or host.is_emptied or host.is_replaced or host.replica.is_stale:
            return None
        state = self.slots.partition(host.slot, partition)
        known = state.low <= offset < state.end
        return host if known and partition not in host.stream.dropping else None

    # -------------------------------------------------------------------------------- asked by others
    def on_ask(self, session: Session, message: Ask) -> None:
        """Raises: UsageError, Overloaded."""
        args = message.args
        topic, number, offset = (args.get(k) for k in ("topic_id", "partition", "offset"))
        if not (isinstance(topic, bytes) and isinstance(number, int) and isinstance(offset, int)):
            raise UsageError("a batch is asked for by `topic_id`, `partition` and `offset`")
        if len(self._asked) >= ASKED_MAX:
            raise Overloaded("this peer reads as much for others as it may", retry_after_ms=1_000)
        partition = PartitionKey(TopicId(topic), number)
        host = self._host_of(partition, offset)
        if host is None or generation_of(host.replica.term) != args.get("generation"):
            self.ctx.send(session, Answer(message.request, {}))
            return
        self._number += 1
        self._asked[self._number] = (session, message.request)
        self.ctx.out.append(
            FetchBatches(Fetch(((MENDING, b""), self._number), partition, offset, offset + 1, 1))
        )

    def is_awaited(self, fetch: Fetch) -> bool:
        return fetch.sub[1] in self._asked

    def on_fetched(self, event: BatchesFetched) -> None:
        session, request = self._asked.pop(event.fetch.sub[1])
        fetch, found = event.fetch, event.batches
        value: dict[str, Any] = {}
        if isinstance(found, PayloadCorrupt):
            host = self._host_of(fetch.partition, fetch.offset)
            if host is not None and not host.replica.is_witness:  # a witness has let go of it
                self.mend(found, lambda _: None)
        elif not isinstance(found, MeshqError) and found and _holds(found[0], fetch.offset):
            b = found[0]
            value = {"base_offset": b.base_offset, "timestamp_ms": b.timestamp_ms, "data": b.data}
        self.ctx.send(session, Answer(request, value))


def _is_of(damage: PayloadCorrupt, whole: Payload) -> bool:
    """Whether it is the one that the log's entry is about, as far as that is known."""
    if damage.crc is None or damage.stored is None:
        return True
    here = (damage.stored.base_offset, damage.stored.timestamp_ms, damage.stored.count, damage.crc)
    crc = read_header(whole.data).body_crc
    return here == (whole.base_offset, whole.timestamp_ms, whole.count, crc)


def _holds(batch: StoredBatch, offset: int) -> bool:
    return batch.base_offset <= offset < batch.base_offset + batch.count
