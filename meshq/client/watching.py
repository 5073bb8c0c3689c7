"""Subscriptions: which topics match.

The home peer tells which do and tells of every change. A home may be behind: what is missing in its answer
counts as gone only where its registry is at least as new as what is known here.
"""

from __future__ import annotations

from meshq.client.backoff import delay_s
from meshq.client.common import Alarm, Common
from meshq.client.facts import Send, Settle, Start
from meshq.client.routing import Routing
from meshq.client.subscribed import Subscribed
from meshq.errors import MeshqError, Unavailable
from meshq.messages import LATEST, TIMESTAMP, Message, TopicsChanged, Watch


class Watching:
    """What is done about a topic that is gone, and about a refusal, the reading of partitions says."""

    def __init__(self, common: Common, routing: Routing) -> None:
        self._common = common
        self._routing = routing
        self.subs: dict[int, Subscribed] = {}
        self._watches: dict[int, Subscribed] = {}
        self._stirred: dict[Subscribed, None] = {}
        self._registries: dict[bytes, int] = {}  # server key -> the registry it has, at least; of live links
        self.alarm = Alarm()

    def on_home(self, now: float) -> None:
        """Another home, or the same one anew: it has to be asked for the topics again."""
        self._watches.clear()
        for s in self.subs.values():
            s.watch = 0
            s.arriving = None
            s.watch_retry_at = now
            self._stirred[s] = None

    def on_routes(self, server_key: bytes, version: int) -> None:
        """That peer's registry reaches at least up to here."""
        self._registries[server_key] = max(version, self._registries.get(server_key, 0))

    def on_topics(self, message: TopicsChanged) -> bool:
        """Whether it was an answer to one of our watches."""
        s = self._watches.get(message.request)
        if s is None:
            return False
        self._stirred[s] = None
        if s.arriving is None:
            for topic_id in message.gone:
                self._drop_topic(s, topic_id)
            for info in message.topics:
                s.add(info)
            return True
        for topic_id in message.gone:
            s.arriving.pop(topic_id, None)
        s.arriving.update((info.topic_id, info) for info in message.topics)
        if message.complete:
            self._on_complete(s, message.now_ms)
        return True

    def _on_complete(self, s: Subscribed, now_ms: int) -> None:
        topics, s.arriving = s.arriving or {}, None
        s.watch_attempt = 0
        if self._home_knows(s.version):
            for topic_id in [t for t in s.topics if t not in topics]:
                self._drop_topic(s, topic_id)
        # Else what is missing may only be news to this home. A topic that is gone in truth, its leader ends.
        for info in topics.values():
            s.add(info)
        if not s.complete:
            s.complete = True
            s.not_started = set(s.parts)
            if s.start.kind == LATEST:
                s.later = Start(TIMESTAMP, now_ms)
            self._check_ready(s)

    def _home_knows(self, version: int) -> bool:
        home = self._routing.home
        return home is not None and self._registries.get(home, 0) >= version

    def on_failure(self, request: int, error: MeshqError, now: float) -> bool:
        """Whether it was one of our watches."""
        s = self._watches.pop(request, None)
        if s is None:
            return False
        if not isinstance(error, Unavailable):
            self._refuse(s, error)
            return True
        s.watch = 0
        s.watch_retry_at = now + max(delay_s(s.watch_attempt, self._common.rng), error.retry_after_ms / 1000)
        s.watch_attempt += 1
        self.alarm.by(s.watch_retry_at)
        return True

    # --------------------------------------------------------------------------------------- asking
    def _watch(self, s: Subscribed, now: float) -> None:
        home = self._routing.home
        if s.watch or home is None:
            return
        if now < s.watch_retry_at:
            self.alarm.by(s.watch_retry_at)
            return
        s.watch = next(self._common.requests)
        s.arriving = {}
        self._watches[s.watch] = s
        self._send(home, Watch(s.watch, s.pattern, list(s.prefixes), s.version))

    # ------------------------------------------------------------------------------- how it is done
    def _check_ready(self, s: Subscribed) -> None:
        if s.complete and not s.not_started and s.ticket is not None:
            self._common.effects.append(Settle(s.ticket, None))
            s.ticket = None

    def _drop_topic(self, s: Subscribed, topic_id: bytes) -> None:
        raise NotImplementedError

    def _refuse(self, s: Subscribed, error: MeshqError) -> None:
        raise NotImplementedError

    def _send(self, server_key: bytes, message: Message) -> None:
        self._common.effects.append(Send(server_key, message))
