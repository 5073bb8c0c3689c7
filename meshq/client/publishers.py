"""The producers behind `publish`: one for a topic and its `acks`, shared by whoever publishes there.

They have no linger: what is published in one turn of the loop travels together, ten thousand records in a few
batches, and one alone does not wait. A topic's producer is kept while it is used; an idle one makes room.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from meshq.batch import Buffer
from meshq.client.checking import Acks, Headers
from meshq.client.driver import ClientDriver
from meshq.client.producer import Producer
from meshq.client.records import Receipt
from meshq.errors import MeshqError, TopicGone

if TYPE_CHECKING:
    from meshq.client.outbox.producer import OutboxProducer

PUBLISHERS_MAX: Final = 1_024  # topics whose shared producer is kept; an idle one makes room


class Publishers:
    """`untold`: an error of a producer that was let go, for whoever closes the mesh."""

    def __init__(self, driver: ClientDriver) -> None:
        self._driver = driver
        self._of: dict[tuple[str, Acks], Producer] = {}  # at most PUBLISHERS_MAX that are idle
        self._former: list[Producer] = []  # of deleted topics; at most PUBLISHERS_MAX
        self.untold: MeshqError | None = None

    def all(self) -> list[Producer]:
        return [*self._of.values(), *self._former]

    async def publish(
        self,
        topic: str,
        value: Buffer,
        key: bytes | None,
        headers: Headers | None,
        acks: Acks,
        timeout: float,
    ) -> Receipt:
        """Raises: as `Mesh.publish`."""
        began_anew = False
        while True:
            producer = self._publisher(topic, acks)
            within = await self._wait_for_room(producer, timeout) if producer.is_full() else timeout
            try:
                return await producer.send_within(within, value, key=key, headers=headers)
            except TopicGone:
                # Deleted since it was last used from here: the name may be another topic's by now. Others
                # that were refused with this record may have begun anew already.
                if began_anew:
                    raise
                began_anew = True
                if self._of.get((topic, acks)) is producer:
                    del self._of[topic, acks]
                    self._retire(producer)

    async def _wait_for_room(self, producer: Producer, timeout: float) -> float:
        """How much of the time is left then."""
        deadline = self._driver.clock() + timeout
        while producer.is_full():
            await producer.ready(max(deadline - self._driver.clock(), 0.001))
        # In half seconds, for records of different deadlines don't share a batch.
        return math.ceil(max(deadline - self._driver.clock(), 0.5) * 2) / 2

    def _publisher(self, topic: str, acks: Acks) -> Producer:
        producer = self._of.get((topic, acks))
        if producer is None:
            if len(self._of) >= PUBLISHERS_MAX:
                idle = [t for t, p in self._of.items() if p.is_idle]
                idle.sort(key=lambda t: self._of[t].has_failures)
                for t in idle[: PUBLISHERS_MAX // 4]:
                    self.let_go(self._of.pop(t))
            producer = self._of[topic, acks] = Producer(self._driver, topic, linger_ms=0, acks=acks)
        return producer

    def _retire(self, producer: Producer) -> None:
        """What was refused with the record that showed it is told a moment from now: keep it until then."""
        self._former = [p for p in self._former if not p.is_idle or p.has_failures]
        if len(self._former) >= PUBLISHERS_MAX:
            self.let_go(self._former.pop(0))
        self._former.append(producer)

    def let_go(self, producer: Producer | OutboxProducer) -> None:
        """Of one that is not kept any more: what its `flush` would raise."""
        self.untold = self.untold or producer.take_failures()
