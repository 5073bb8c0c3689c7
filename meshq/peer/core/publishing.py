"""Produce: from a client's message to the slot, and back to a receipt.

Every batch is answered on its own: another one's refusal does not hold it up. When a receipt may leave is
decided in `receipts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from meshq import batch
from meshq.batch import BatchHeader, Buffer
from meshq.errors import (
    Forbidden,
    MeshqError,
    NotOwner,
    Overloaded,
    RemoteProtocolError,
    TopicGone,
    Unavailable,
)
from meshq.ids import PartitionKey, Session, Slot, TopicId
from meshq.levels import OUTBOXES
from meshq.limits import PRODUCE_BYTES_MAX
from meshq.messages import ACKS_QUORUM, Produce, ProduceItem, TopicInfo
from meshq.peer.core.context import Context
from meshq.peer.core.hosts import Host
from meshq.peer.core.receipts import Receipts
from meshq.peer.core.slots import Slots
from meshq.replication.quorum import Node
from meshq.security.authorization import Principal
from meshq.streams.applied import Stored
from meshq.topics import is_internal, source_of


@dataclass
class Publishing:
    ctx: Context
    slots: Slots
    receipts: Receipts = field(init=False)

    def __post_init__(self) -> None:
        self.receipts = Receipts(self.ctx, self.slots)

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
                header = batch.read_header(payload)
                opened_bytes += header.body_bytes
                if opened_bytes > PRODUCE_BYTES_MAX:
                    raise Overloaded("that is much for one message", retry_after_ms=20)
                self._publish(session, principal, item, header, payload)
            except MeshqError as e:
                self.ctx.fail(session, item.request, e)

    def _publish(
        self,
        session: Session,
        principal: Principal,
        item: ProduceItem,
        header: BatchHeader,
        payload: Buffer,
    ) -> None:
        info = find_topic(self.ctx, item.topic_id, item.version)
        check_partition(info, item.partition)
        if not principal.may_publish(info.name):
            raise Forbidden(
                f"{principal.name!r} may not publish to {info.name!r}: it has no capability for it"
            )
        if is_internal(info.name) and source_of(info.name):
            raise Forbidden(f"{info.name!r} holds dead letters: the mesh alone writes them")
        partition = PartitionKey(TopicId(item.topic_id), item.partition)
        slot = led_slot(self.ctx, self.slots, partition)
        bytes_max, keyed = info.record_bytes_max, info.retain.compact
        batch.check(payload, record_bytes_max=bytes_max, keyed=keyed, header=header)
        if header.producer_epoch and self.ctx.registry.level < OUTBOXES:
            text = f"outboxes need feature level {OUTBOXES}, and this mesh has {self.ctx.registry.level}"
            raise Unavailable(f"{text}: `meshq upgrade`", retry_after_ms=5_000)  # they can wait for that
        self.receipts.check(slot, info)
        ref = session, item.request
        done = self.slots.publish(
            slot,
            partition,
            header,
            payload,
            client_key=principal.key,
            ref=ref if item.acks == ACKS_QUORUM else None,
        )
        if isinstance(done, MeshqError):
            raise done
        counters = self.ctx.counters
        counters["batches_in"] += 1
        counters["records_in"] += header.count
        counters["bytes_in"] += len(payload)
        if isinstance(done, int):
            if item.acks != ACKS_QUORUM:
                self.receipts.on_appended(slot, done, ref, item.acks)
        elif item.acks != ACKS_QUORUM:
            self.receipts.on_appended(slot, done.index, ref, item.acks)
        else:
            match = self.slots.hosts[slot].replica.copies()
            self.receipts.on_stored(slot, done.index, done.base_offset, match, info.copies_min, (ref,))

    def on_stored(
        self, host: Host, stored: Stored, payload: Buffer, match: Mapping[Node, int], info: TopicInfo | None
    ) -> None:
        """`match`: up to which entry each node has the log on disk. `info`: None of a topic that was deleted
        meanwhile.
        """
        if stored.refs:
            copies_min = info.copies_min if info is not None else 1
            self.receipts.on_stored(
                host.slot, stored.index, stored.base_offset, match, copies_min, stored.refs
            )
        self.ctx.deliveries.on_committed(
            stored.partition, stored.base_offset, stored.count, stored.timestamp_ms, payload
        )


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


def check_partition(info: TopicInfo, partition: int) -> None:
    """Raises: RemoteProtocolError when the topic has no such partition."""
    if partition >= info.partitions:
        raise RemoteProtocolError(
            f"topic {info.name!r} has {info.partitions} partitions, not {partition + 1}"
        )


def led_slot(ctx: Context, slots: Slots, partition: PartitionKey) -> Slot:
    """The partition's slot, if this peer leads it now. Raises: NotOwner naming who does."""
    slot = ctx.slot_of(partition)
    host = slots.hosts.get(slot)
    if host is not None and host.leads:
        return slot
    leader = host.replica.leader if host is not None else None
    if leader is None or leader.peer not in ctx.registry.peers:
        raise NotOwner(f"slot {slot} has no leader that {ctx.me.name!r} knows of", retry_after_ms=50)
    name = ctx.registry.peers[leader.peer].facts.name
    raise NotOwner(f"slot {slot} is led by peer {name!r}", retry_after_ms=20)
