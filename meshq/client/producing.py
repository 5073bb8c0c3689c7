"""Publishing: each batch to the leader of its slot, several to one peer in one message.

`pipeline.py` decides what may be sent when; here batches find their pipeline, pipelines their peer, answers
their batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from meshq import batch as batches
from meshq.client.bound import BoundPipeline
from meshq.client.common import Alarms, Common
from meshq.client.facts import BatchSealed, Send
from meshq.client.pipeline import FRESH_ID_AFTER_S, Batch, Lane, Pipeline
from meshq.client.routing import Routing
from meshq.errors import MeshqError, TopicGone
from meshq.limits import MIB, PRODUCER_RECEIPTS_KEPT
from meshq.messages import Accepted, Produce, Produced, ProduceItem

MESSAGE_BATCHES: Final = 64
MESSAGE_BYTES: Final = MIB  # a message is closed once it is this big; one batch may be more


class Producing:
    """`on_topic_gone` is told the name of a topic whose id is no longer good."""

    def __init__(self, common: Common, routing: Routing, on_topic_gone: Callable[[str], None]) -> None:
        self._common = common
        self._routing = routing
        self._on_topic_gone = on_topic_gone
        self._pipelines: dict[Lane, Pipeline] = {}  # idle ones are dropped after FRESH_ID_AFTER_S
        self._requests: dict[int, tuple[Pipeline, Batch]] = {}  # at most in_flight a pipeline
        self._stirred: dict[Pipeline, None] = {}
        self.alarms = Alarms[Lane]()  # pipelines may be many thousands: one a topic and partition
        self._going: dict[bytes, list[tuple[ProduceItem, bytes]]] = {}

    def needs(self, server_key: bytes) -> bool:
        owner = self._routing.owner_of
        return any(
            p.has_work() and owner(p.topic_id, p.partition) == server_key for p in self._pipelines.values()
        )

    # --------------------------------------------------------------------------------- what happens
    def on_sealed(self, event: BatchSealed, now: float) -> None:
        bound = event.binding
        lane = Lane(event.lane, event.info.topic_id, event.partition, bound.producer_id if bound else b"")
        pipeline = self._pipelines.get(lane)
        if pipeline is None:
            pipeline = self._pipelines[lane] = self._new_pipeline(event, lane)
            self.alarms.by(lane, now + FRESH_ID_AFTER_S)
        batch = Batch(event.ticket, event.info, event.body, event.deadline, event.acks)
        if bound is not None:
            batch.sequence, batch.epoch, batch.uncertain = bound.sequence, bound.epoch, bound.sent_before
        pipeline.on_sealed(batch)
        self.alarms.by(lane, event.deadline)
        self._stirred[pipeline] = None

    def _new_pipeline(self, event: BatchSealed, lane: Lane) -> Pipeline:
        pipeline = (Pipeline if event.binding is None else BoundPipeline)(
            self._common,
            lane,
            in_flight=min(event.in_flight, PRODUCER_RECEIPTS_KEPT),
            why=partial(self._why, event.info.topic_id, event.partition),
        )
        if event.binding is not None:
            pipeline.producer_id = event.binding.producer_id
        return pipeline

    def on_produced(self, message: Produced, now: float) -> None:
        for receipt in message.receipts:
            self._on_receipt(receipt, now)

    def _on_receipt(self, receipt: Accepted, now: float) -> None:
        found = self._requests.pop(receipt.request, None)
        if found is None:
            return  # of a copy that was written off
        pipeline, batch = found
        self._stirred[pipeline] = None
        if batch.done:
            pipeline.on_late_answer(batch)
        else:
            pipeline.on_accepted(batch, receipt, now)

    def on_failure(self, request: int, error: MeshqError, now: float) -> bool:
        """Whether it was one of ours."""
        found = self._requests.pop(request, None)
        if found is None:
            return False
        pipeline, batch = found
        self._stirred[pipeline] = None
        if batch.done:
            pipeline.on_late_answer(batch)
            return True
        if isinstance(error, TopicGone):
            self._on_topic_gone(batch.info.name)
        pipeline.on_refused(batch, error, now)
        return True

    def on_lost(self, server_key: bytes, now: float) -> None:
        for pipeline in self._pipelines.values():
            if pipeline.server == server_key:
                for request in pipeline.on_lost(now):
                    del self._requests[request]
                self._stirred[pipeline] = None

    def on_way_open(self, now: float) -> None:
        for pipeline in self._pipelines.values():
            if pipeline.has_work():
                pipeline.on_way_open(now)
                self._stirred[pipeline] = None

    def on_tick(self, now: float) -> None:
        for lane in self.alarms.rung(now):
            pipeline = self._pipelines[lane]
            if pipeline.is_idle_since(now - FRESH_ID_AFTER_S):
                del self._pipelines[lane]
                continue
            pipeline.expire(now)
            self._stirred[pipeline] = None
            self.alarms.by(lane, min(pipeline.next_moment(now), now + FRESH_ID_AFTER_S))

    def close(self) -> None:
        for pipeline in self._pipelines.values():
            pipeline.close()
        self._pipelines.clear()
        self._requests.clear()
        self._stirred.clear()
        self.alarms.clear()

    # -------------------------------------------------------------------------------------- sending
    def pump(self, now: float) -> None:
        """Send what may be sent of the pipelines in which something happened."""
        for pipeline in self._stirred:
            self._pump_one(pipeline, now)
        self._stirred.clear()
        for server_key in list(self._going):
            self._flush(server_key)

    def _pump_one(self, pipeline: Pipeline, now: float) -> None:
        pipeline.settle(now)
        if pipeline.has_work():
            server = self._routing.owner_of(pipeline.topic_id, pipeline.partition)
            if server is not None and self._routing.use(server, now):
                for batch in pipeline.take_ready(server, now):
                    self._add(server, pipeline, batch)
                pipeline.settle(now)
            if pipeline.retry_at > now:
                self.alarms.by(pipeline.lane, pipeline.retry_at)

    def _add(self, server: bytes, pipeline: Pipeline, batch: Batch) -> None:
        batch.request = next(self._common.requests)
        self._requests[batch.request] = (pipeline, batch)
        data = batches.frame(
            batch.body, producer_id=pipeline.producer_id, epoch=batch.epoch, first_sequence=batch.sequence
        )
        where = pipeline.topic_id, pipeline.partition, batch.info.version
        item = ProduceItem(batch.request, *where, batch.acks)
        self._going.setdefault(server, []).append((item, data))

    def _flush(self, server_key: bytes) -> None:
        going = self._going.pop(server_key)
        start, size = 0, 0
        for i, (_, data) in enumerate(going):
            if i > start and (i - start >= MESSAGE_BATCHES or size + len(data) > MESSAGE_BYTES):
                self._send(server_key, going[start:i])
                start, size = i, 0
            size += len(data)
        self._send(server_key, going[start:])

    def _send(self, server_key: bytes, going: list[tuple[ProduceItem, bytes]]) -> None:
        items, payloads = zip(*going, strict=True)
        self._common.effects.append(Send(server_key, Produce(list(items)), payloads))

    def _why(self, topic_id: bytes, partition: int) -> str:
        owner = self._routing.owner_of(topic_id, partition)
        if owner is not None and self._routing.is_ready(owner):
            return "the leader of its slot has not answered for it, or for the batches before it"
        return self._routing.why_not(owner)
