"""How old what a producer knows of its topic may be: settings change while clients live.

A topic's partitions may grow and its limit of a record may be moved. Nobody tells a producer (who may publish
need not be allowed to watch), so it asks again: every `TOPIC_AGE_S` while it is in use, and before it refuses
a record as too large unless it asked within `SURE_S`. Kafka's clients do the same (`metadata.max.age.ms`).
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

from meshq.client.driver import ClientDriver
from meshq.client.facts import TopicWanted
from meshq.errors import MeshqError
from meshq.messages import TopicInfo

TOPIC_AGE_S: Final = 10.0
SURE_S: Final = 1.0


class Freshness:
    """`on_info` hears what the peer says now; a question that fails is asked again when it is due again."""

    def __init__(self, driver: ClientDriver, topic: str, on_info: Callable[[TopicInfo], None]) -> None:
        self._driver = driver
        self._topic = topic
        self._on_info = on_info
        self._known_at = -inf
        self._asking = False

    def is_sure(self) -> bool:
        return self._driver.clock() - self._known_at < SURE_S

    def known(self) -> None:
        """It was looked up just now."""
        self._known_at = self._driver.clock()

    def look(self, now: float, timeout: float) -> None:
        """Ask when it is due. Never makes the topic: one that is gone, the leader of its slot says so."""
        if self._asking or now - self._known_at < TOPIC_AGE_S:
            return
        self._asking = True
        self._driver.request(
            self, lambda t: TopicWanted(t, self._topic, now + timeout, fresh=True, create=False)
        )

    def settled(self, value: TopicInfo) -> None:
        self._asking = False
        self.known()
        self._on_info(value)

    def failed(self, error: MeshqError) -> None:
        self._asking = False
        self.known()

    def doubted(self, error: MeshqError) -> None:
        raise AssertionError("only batches are doubted")
