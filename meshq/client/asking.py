"""Questions to the home peer: what a topic is, which topics there are, administrative requests.

Resolving and listing may be asked again by anybody at any time, so they are, until they are answered or their
deadline passes. An administrative request may change something, so it is sent once: when its link is lost
before the answer, that is `OutcomeUnknown`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from meshq.client.backoff import delay_s
from meshq.client.common import Alarm, Common
from meshq.client.facts import (
    AskRequested,
    Fail,
    HomeWanted,
    Send,
    Settle,
    TopicsWanted,
    TopicWanted,
)
from meshq.client.routing import Routing
from meshq.errors import MeshqError, OutcomeUnknown, Unavailable
from meshq.messages import (
    Answer,
    Ask,
    Message,
    Resolve,
    Resolved,
    TopicInfo,
    TopicsChanged,
    Unwatch,
    Watch,
)

CACHED_S: Final = 10.0  # a topic's settings may change
CACHED_TOPICS_MAX: Final = 4_096  # the oldest is dropped, and asked for again when it is needed

_Wanted = HomeWanted | TopicWanted | TopicsWanted | AskRequested


@dataclass(slots=True, eq=False)
class _Question:
    wanted: _Wanted
    request: int = 0  # on its way; 0: to be sent
    server: bytes | None = None  # where it went
    attempt: int = 0
    retry_at: float = 0.0
    error: MeshqError | None = None  # the last answer, when it was not the end
    topics: list[TopicInfo] = field(default_factory=list)


class Asking:
    def __init__(self, common: Common, routing: Routing) -> None:
        self._common = common
        self._routing = routing
        self._open: dict[_Question, None] = {}  # bounded by who asks; each has its deadline
        self._sent: dict[int, _Question] = {}
        self._topics: dict[str, tuple[TopicInfo, float]] = {}  # at most CACHED_TOPICS_MAX; and since when
        self.stirred = False
        self.alarm = Alarm()

    # --------------------------------------------------------------------------------- what happens
    def on_wanted(self, wanted: _Wanted, now: float) -> None:
        if isinstance(wanted, TopicWanted) and not wanted.fresh and wanted.topic in self._topics:
            info, since = self._topics[wanted.topic]
            if now - since < CACHED_S:
                self._common.effects.append(Settle(wanted.ticket, info))
                return
        self._open[_Question(wanted)] = None
        self.alarm.by(wanted.deadline)
        self.stirred = True

    def on_topic_gone(self, name: str) -> None:
        self._topics.pop(name, None)

    def on_lost(self, server_key: bytes) -> None:
        for question in [q for q in self._sent.values() if q.server == server_key]:
            del self._sent[question.request]
            question.request = 0
            if isinstance(question.wanted, AskRequested):
                self._fail(question, OutcomeUnknown(
                    f"{question.wanted.what!r} was sent, but the link was lost before its answer: "
                    "look whether it was done before asking again"
                ))  # fmt: skip
        self.stirred = True

    def on_home(self) -> None:
        self.stirred = True

    def on_resolved(self, message: Resolved, now: float) -> None:
        question = self._answered(message.request)
        if question is not None:
            info = message.info
            known, _ = self._topics.pop(info.name, (info, now))
            if known.version > info.version:
                info = known  # this home is behind the one that was asked before
            while len(self._topics) >= CACHED_TOPICS_MAX:
                del self._topics[next(iter(self._topics))]
            self._topics[info.name] = info, now
            self._settle(question, info)

    def on_answer(self, message: Answer) -> None:
        question = self._answered(message.request)
        if question is not None:
            self._settle(question, message.value)

    def on_topics(self, message: TopicsChanged) -> None:
        question = self._sent.get(message.request)
        if question is None:
            return
        question.topics += message.topics
        if message.complete:
            self._answered(message.request)
            self._send(Unwatch(message.request))
            self._settle(question, question.topics)

    def on_failure(self, request: int, error: MeshqError, now: float) -> bool:
        """Whether it was one of ours."""
        question = self._answered(request)
        if question is None:
            return False
        if isinstance(error, Unavailable) and not isinstance(question.wanted, AskRequested):
            question.error = error
            question.topics.clear()
            wait = max(delay_s(question.attempt, self._common.rng), error.retry_after_ms / 1000)
            question.retry_at = now + wait
            question.attempt += 1
            self.alarm.by(question.retry_at)
        else:
            self._fail(question, error)
        return True

    def on_tick(self, now: float) -> None:
        if not self.alarm.rings(now):
            return
        for question in list(self._open):
            if now >= question.wanted.deadline:
                self._sent.pop(question.request, None)
                self._fail(question, self._too_late(question))
            else:
                self.alarm.by(question.wanted.deadline)
        self.stirred = True

    def close(self) -> None:
        for question in list(self._open):
            self._fail(question, Unavailable("the client was closed"))
        self._sent.clear()

    # -------------------------------------------------------------------------------------- sending
    def pump(self, now: float) -> None:
        if not self.stirred or self._routing.home is None:
            return
        self.stirred = False
        for question in list(self._open):
            if question.request:
                continue
            if now < question.retry_at:
                self.alarm.by(question.retry_at)
            elif isinstance(question.wanted, HomeWanted):
                self._settle(question, None)
            else:
                self._ask(question, question.wanted)

    def _ask(self, question: _Question, wanted: TopicWanted | TopicsWanted | AskRequested) -> None:
        question.request = next(self._common.requests)
        question.server = self._routing.home
        self._sent[question.request] = question
        match wanted:
            case TopicWanted():
                self._send(Resolve(question.request, wanted.topic, wanted.create))
            case TopicsWanted():
                question.topics = []
                self._send(Watch(question.request, wanted.pattern))
            case AskRequested():
                self._send(Ask(question.request, wanted.what, dict(wanted.args)))

    # ------------------------------------------------------------------------------- how it is done
    def _answered(self, request: int) -> _Question | None:
        question = self._sent.pop(request, None)
        if question is not None:
            question.request = 0
        return question

    def _settle(self, question: _Question, value: object) -> None:
        del self._open[question]
        self._common.effects.append(Settle(question.wanted.ticket, value))

    def _fail(self, question: _Question, error: MeshqError) -> None:
        del self._open[question]
        self._common.effects.append(Fail(question.wanted.ticket, error))

    def _send(self, message: Message) -> None:
        if self._routing.home is not None:
            self._common.effects.append(Send(self._routing.home, message))

    def _too_late(self, question: _Question) -> MeshqError:
        what = _name(question.wanted)
        if isinstance(question.wanted, AskRequested) and question.request:
            return OutcomeUnknown(f"{what} was sent and not answered in time: look whether it was done")
        if isinstance(question.error, Unavailable):
            return type(question.error)(f"{what}: no other answer in time than: {question.error}")
        if self._routing.home is not None:
            return Unavailable(
                f"{what}: the peer did not answer in time. Look at `meshq status`, then try again"
            )
        return Unavailable(f"{what}: {self._routing.why_not(None)}. Check that a peer is up (`meshq status`)")


def _name(wanted: _Wanted) -> str:
    match wanted:
        case HomeWanted():
            return "connecting to the mesh"
        case TopicWanted():
            return f"looking up topic {wanted.topic}"
        case TopicsWanted():
            return f"listing topics {wanted.pattern}"
        case AskRequested():
            return f"asking for {wanted.what!r}"
