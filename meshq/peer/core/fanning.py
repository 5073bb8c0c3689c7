"""Fan-out: one question to every peer that can be reached, and what of their answers came in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from meshq.errors import Overloaded
from meshq.ids import PeerId
from meshq.messages import Answer, Ask, Failure
from meshq.peer.core.context import Context
from meshq.peer.core.links import Links

FAN_OUT_S = 2.0
FAN_OUTS_MAX = 1_024  # requests to other peers that wait for their answers

Answers = list[dict[str, Any]]


@dataclass(slots=True)
class _Asked:
    """Answers still awaited; `done` gets what came."""

    waiting: set[int]
    answers: Answers
    deadline: float
    done: Callable[[Answers], None]
    enough: Callable[[dict[str, Any]], bool] | None


@dataclass
class FanOut:
    ctx: Context
    links: Links
    _asked: dict[int, _Asked] = field(default_factory=dict)  # by request sent; FAN_OUTS_MAX

    def ask(
        self,
        what: str,
        args: dict[str, Any],
        done: Callable[[Answers], None],
        *,
        each: Mapping[PeerId, dict[str, Any]] | None = None,
        within_s: float = FAN_OUT_S,
        enough: Callable[[dict[str, Any]], bool] | None = None,
    ) -> None:
        """`each`: only these are asked, with these arguments besides. `enough`: whether this answer is all
        that is wanted, so that the others are not waited for. Raises: Overloaded.
        """
        if len(self._asked) >= FAN_OUTS_MAX:
            raise Overloaded("this peer asks others as much as it may", retry_after_ms=200)
        asked = _Asked(set(), [], self.ctx.now + within_s, done, enough)
        for peer in sorted(self.links.reachable() - {self.ctx.me.peer}):
            if each is not None and peer not in each:
                continue
            request = self.ctx.next_request()
            if self.links.send(peer, Ask(request, what, {**args, **(each[peer] if each else {})})):
                asked.waiting.add(request)
                self._asked[request] = asked
        if not asked.waiting:
            done([])

    def on_answer(self, answer: Answer | Failure) -> None:
        asked = self._asked.pop(answer.request, None)
        if asked is None:
            return
        asked.waiting.discard(answer.request)
        if isinstance(answer, Answer) and isinstance(answer.value, dict):
            value = {k: v for k, v in answer.value.items() if isinstance(k, str)}
            asked.answers.append(value)
            if asked.enough is not None and asked.enough(value):
                self._forget(asked)
        if not asked.waiting:
            asked.done(asked.answers)

    def _forget(self, asked: _Asked) -> None:
        """Answers that still come are not waited for."""
        for other in asked.waiting:
            self._asked.pop(other, None)
        asked.waiting.clear()

    def tick(self) -> None:
        for request, asked in list(self._asked.items()):
            if asked.deadline <= self.ctx.now and request in self._asked:
                self._forget(asked)
                asked.done(asked.answers)
