"""What hears of an outbox's tickets at the client, and tells the machine while that client is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshq.client.driver import ClientDriver
from meshq.client.outbox import words
from meshq.errors import MeshqError
from meshq.messages import Accepted, TopicInfo

if TYPE_CHECKING:
    from meshq.client.outbox.outbox import Outbox


class BatchWaiter:
    def __init__(self, outbox: Outbox, driver: ClientDriver, ticket: int) -> None:
        self._outbox, self._driver, self._ticket = outbox, driver, ticket

    def settled(self, value: Accepted) -> None:
        if self._outbox.is_through(self._driver):
            self._outbox.tell(words.Committed(self._ticket, value))

    def failed(self, error: MeshqError) -> None:
        if self._outbox.is_through(self._driver):
            self._outbox.tell(words.Failed(self._ticket, error))

    def doubted(self, error: MeshqError) -> None:
        if self._outbox.is_through(self._driver):
            self._outbox.tell(words.Doubted(self._ticket, error))


class TopicWaiter:
    def __init__(self, outbox: Outbox, driver: ClientDriver, topic: int) -> None:
        self._outbox, self._driver, self._topic = outbox, driver, topic

    def settled(self, value: TopicInfo) -> None:
        if self._outbox.is_through(self._driver):
            self._outbox.tell(words.TopicHeard(self._topic, value))

    def failed(self, error: MeshqError) -> None:
        if self._outbox.is_through(self._driver):
            self._outbox.tell(words.TopicNotHeard(self._topic, error))

    def doubted(self, error: MeshqError) -> None:
        raise AssertionError("only batches are doubted")
