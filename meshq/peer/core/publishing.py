"""Produce: from a client's message to the slot, and back to a receipt.

Every batch is answered on its own: another one's refusal does not hold it up. Receipts of one turn travel
together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from meshq import batch
from meshq.batch import Buffer
from meshq.errors import (
    Forbidden,
    MeshqError,
    NotOwner,
    Overloaded,
    RemoteProtocolError,
    TopicGone,
    Unavailable,
)
from meshq.ids import PartitionKey, Ref, Session, Slot, TopicId
from meshq.limits import PRODUCE_BYTES_MAX
from meshq.messages import Accepted, Produce, Produced, ProduceItem, TopicInfo
from meshq.peer.core.context import Context
from meshq.peer.core.slots import Slots
from meshq.security.authorization import Principal
from meshq.streams.producers import BatchReceipt
from meshq.streams.slot import Stored

COPIES = 1  # a slot has one replica in this version


@dataclass
class Publishing:
    ctx: Context
    slots: Slots = field(init=False)
    _receipts: dict[Session, list[Accepted]] = field(default_factory=dict)  # of this turn

    def __post_init__(self) -> None:
        self.slots = Slots(self.ctx.out, self.ctx.disk, self._on_stored, self._on_refused)

    def on_produce(
        self, session: Session, principal: Principal, message: Produce, payloads: tuple[Buffer, ...]
    ) -> None:
        """Raises: RemoteProtocolError when items and payload frames don't pair up."""
        if len(message.items) != len(payloads):
            raise RemoteProtocolError(
                f"{len(message.items)} batches announced, {len(payloads)} payload frames came"
            )
        opened_bytes = 0
        for item, payload in zip(message.items, payloads, strict=True):
            try:
                opened_bytes += batch.read_header(payload).body_bytes
                if opened_bytes > PRODUCE_BYTES_MAX:
                    raise Overloaded("that is much for one message", retry_after_ms=20)
                done = self._publish(session, principal, item, payload)
            except MeshqError as e:
                self.ctx.fail(session, item.request, e)
                continue
            if isinstance(done, BatchReceipt):
                self._receive(session, item.request, done.base_offset)

    def _publish(
        self, session: Session, principal: Principal, item: ProduceItem, payload: Buffer
    ) -> BatchReceipt | None:
        info = self._topic(item)
        if not principal.may_publish(info.name):
            raise Forbidden(
                f"{principal.name!r} may not publish to {info.name!r}: it has no capability for it"
            )
        partition = PartitionKey(TopicId(item.topic_id), item.partition)
        slot = owned_slot(self.ctx, self.slots, partition)
        header = batch.check(payload, record_bytes_max=info.record_bytes_max)
        done = self.slots.publish(
            slot,
            partition,
            header,
            payload,
            client_key=principal.key,
            ref=(session, item.request),
            wall_ms=self.ctx.wall_ms,
        )
        if isinstance(done, MeshqError):
            raise done
        self.ctx.count("batches_in")
        self.ctx.count("records_in", header.count)
        self.ctx.count("bytes_in", len(payload))
        return done

    def _topic(self, item: ProduceItem) -> TopicInfo:
        info = find_topic(self.ctx, item.topic_id, item.version)
        if item.partition >= info.partitions:
            raise RemoteProtocolError(
                f"topic {info.name!r} has {info.partitions} partitions, not {item.partition + 1}"
            )
        return info

    def _on_stored(self, stored: Stored, payload: Buffer) -> None:
        for session, request in stored.refs:
            self._receive(session, request, stored.base_offset)
        self.ctx.deliveries.on_committed(
            stored.partition, stored.base_offset, stored.count, stored.timestamp_ms, payload
        )

    def _on_refused(self, ref: Ref, error: MeshqError) -> None:
        session, request = ref
        self.ctx.fail(session, request, error)

    def _receive(self, session: Session, request: int, base_offset: int) -> None:
        self._receipts.setdefault(session, []).append(Accepted(request, base_offset, COPIES))

    def flush(self) -> None:
        for session, receipts in self._receipts.items():
            for i in range(0, len(receipts), 1_024):
                self.ctx.send(session, Produced(receipts[i : i + 1_024]))
        self._receipts.clear()


def find_topic(ctx: Context, topic_id: bytes, version: int) -> TopicInfo:
    """The topic as registered here. Raises: Unavailable when this copy of the registry is older than the
    asker's, TopicGone when it is not."""
    info = ctx.topic(topic_id)
    if info is None or info.version < version:
        if ctx.registry.version < version:
            raise Unavailable("this peer has not heard of that topic yet", retry_after_ms=50)
        if info is None:
            raise TopicGone("that topic was deleted (one of the same name now would be another topic)")
    return info


def owned_slot(ctx: Context, slots: Slots, partition: PartitionKey) -> Slot:
    """The partition's slot, if this peer owns it now. Raises: NotOwner naming who does,
    Unavailable while this peer does not know.
    """
    if not ctx.is_level:
        text = f"{ctx.me.name!r} waits for the registry's holder to tell which slots it has"
        raise Unavailable(text, retry_after_ms=200)
    slot = ctx.slot_of(partition)
    own = ctx.registry.owners[slot]
    if own.peer != ctx.me.peer:
        name = ctx.registry.peers[own.peer].facts.name
        raise NotOwner(f"slot {slot} is with peer {name!r}, not with {ctx.me.name!r}")
    if slots.is_fenced(slot, own.epoch):
        raise NotOwner(f"slot {slot} is on its way to another peer", retry_after_ms=50)
    return slot
