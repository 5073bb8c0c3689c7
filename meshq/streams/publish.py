"""The body of a PUBLISH entry, and the payload it stands for. A DEAD_LETTER entry's begins alike.

The body has all that state needs, so state can be rebuilt from entries alone; the payload, a batch as its
producer made it, is stored and sent beside it. The body names the payload's checksum and size, and is itself
under the entry's chain, so a payload can be told to be the right one wherever it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from meshq.batch import NO_PRODUCER, Buffer, read_header
from meshq.entries import Entry, Payload, PayloadKey
from meshq.errors import RemoteProtocolError
from meshq.ids import PartitionKey, TopicId
from meshq.streams.producers import BatchReceipt, ProducerKey, ProducerState, advance


class PublishBody(msgspec.Struct, frozen=True, array_like=True):
    """A PUBLISH entry's body: all that state needs, so that it can be rebuilt without the payload."""

    topic_id: bytes
    partition: int
    base_offset: int
    count: int
    client_key: bytes
    producer_id: bytes
    producer_epoch: int
    first_sequence: int
    payload_crc: int
    payload_bytes: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PublishBody)


def encode_publish(body: PublishBody, payload: Buffer) -> bytes:
    return _encoder.encode(msgspec.structs.replace(body, payload_bytes=len(payload)))


decode_publish: Final[Callable[[bytes], PublishBody]] = _decoder.decode


def payload_of(entry: Entry, payload: Buffer) -> Payload | None:
    """What of this entry is stored apart."""
    if not entry.kind.has_payload:
        return None
    b = _decoder.decode(entry.body)
    partition = PartitionKey(TopicId(b.topic_id), b.partition)
    return Payload(partition, b.base_offset, b.count, entry.timestamp_ms, payload)


def payload_key_of(entry: Entry) -> PayloadKey | None:
    """Where it is stored."""
    if not entry.kind.has_payload:
        return None
    b = _decoder.decode(entry.body)
    partition = PartitionKey(TopicId(b.topic_id), b.partition)
    return PayloadKey(partition, b.base_offset, entry.timestamp_ms, b.count)


def check_payload(entry: Entry, payload: Buffer) -> None:
    """An empty one stands for a payload that had expired before it was sent, and is right for every entry.

    Raises: RemoteProtocolError when the payload is not this entry's.
    """
    if not len(payload):
        return
    try:
        body = _decoder.decode(entry.body)
    except msgspec.MsgspecError as e:
        raise RemoteProtocolError(f"entry {entry.index} cannot be read: {e}") from None
    header = read_header(payload)
    if (len(payload), header.body_crc, header.count) != (body.payload_bytes, body.payload_crc, body.count):
        raise RemoteProtocolError(f"entry {entry.index} came with another payload")


def advanced(state: ProducerState | None, entry: Entry, body: PublishBody) -> ProducerState:
    """What is remembered of a producer once this batch of its is stored."""
    epoch = body.producer_epoch
    receipt = BatchReceipt(
        body.first_sequence, body.count, body.payload_crc, body.base_offset, entry.index, epoch
    )
    return advance(state, epoch=epoch, receipt=receipt, timestamp_ms=entry.timestamp_ms)


def partition_key_of(body: PublishBody) -> PartitionKey:
    return PartitionKey(TopicId(body.topic_id), body.partition)


def producer_key_of(body: PublishBody) -> ProducerKey | None:
    """None where the batch has no producer."""
    if body.producer_id == NO_PRODUCER:
        return None
    return ProducerKey(body.client_key, body.producer_id, TopicId(body.topic_id), body.partition)
