"""Looking at groups, and changing them from outside: `groups`, `group.show`, `reset`, `redrive`, `delete`.

Where a group stands is each partition's own, so whoever is asked asks all leaders, and puts together what
they say. Every leader first has a majority confirm that it is one (so what is answered was true after the
question came), and what is changed is an entry in the log like any other. A partition whose leader does not
answer is an error, never left out.

    Ask group.show ──> group.part to every peer ──> of the partitions led there ──> merged, or Unavailable
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from meshq.errors import (
    Forbidden,
    MeshqError,
    OutcomeUnknown,
    Overloaded,
    Refused,
    Unavailable,
    UnknownGroup,
    UsageError,
    from_wire,
)
from meshq.ids import PartitionKey, Session, TopicId
from meshq.limits import GROUP_QUESTIONS_MAX
from meshq.messages import Answer, Ask, TopicInfo
from meshq.peer.core.arguments import text_of
from meshq.peer.core.context import Context
from meshq.peer.core.fanning import FanOut
from meshq.peer.core.group_answers import CHANGE_S, LOOK_S, NAME_BYTES, PART, GroupAnswers, merge
from meshq.peer.core.group_facts import Facts
from meshq.peer.core.registrar import Registrar
from meshq.registry.commands import DeleteTopic
from meshq.security.authorization import Principal
from meshq.topics import check_pattern, dead_letters_of, matches

AGAIN_S: Final = 0.1
Found = dict[int, Facts]  # by partition


@dataclass
class Grouping:
    ctx: Context
    fan_out: FanOut
    registrar: Registrar
    answers: GroupAnswers
    _later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)  # GROUP_QUESTIONS_MAX

    # ------------------------------------------------------------------------------------ whole groups
    def on_show(self, session: Session, principal: Principal, message: Ask, info: TopicInfo) -> None:
        group = _group_of(message)
        if not principal.may_consume(info.name):
            raise Forbidden(f"{principal.name!r} may not consume {info.name!r}: it has no capability for it")

        def done(found: Found) -> None:
            self._answer(session, message, info, group, _shown(found))

        self._ask(session, message, info, {"do": "show", "group": group}, done, LOOK_S)

    def on_reset(self, session: Session, _: Principal, message: Ask, info: TopicInfo) -> None:
        """First where it stands: what is done counts behind that, once, however often it is asked for."""
        group = _group_of(message)
        to = {k: v for k, v in message.args.items() if k in ("to", "value", "dry_run")}
        self.answers.parts.check_reset(to)

        name = self.ctx.random_id()[:NAME_BYTES]

        def looked(found: Found) -> None:
            since = {str(p): facts["reset"] for p, facts in found.items()}
            args = {"do": "reset", "group": group, **to, "name": name, "since": since}

            def done(landed: Found) -> None:
                froms = {p: found[p]["cursor"] if p in found else landed[p]["to"] for p in landed}
                rows = [{"partition": p, "from": froms[p], "to": landed[p]["to"]} for p in sorted(landed)]
                self._answer(session, message, info, group, rows)

            self._ask(session, message, info, args, done, CHANGE_S)

        self._ask(session, message, info, {"do": "show", "group": group}, looked, LOOK_S)

    def on_redrive(self, session: Session, _: Principal, message: Ask, info: TopicInfo) -> None:
        """First how many letters there are, then as many as are wanted, the lowest partitions first."""
        group, limit = _group_of(message), message.args.get("limit")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise UsageError("`limit` must be a number above 0")

        def counted(found: Found) -> None:
            left, wanted = limit, dict[str, int]()
            for p in sorted(found):
                wanted[str(p)] = min(found[p]["dead"], left) if left is not None else found[p]["dead"]
                left = left - wanted[str(p)] if left is not None else None
            if message.args.get("dry_run"):
                none = {"expired": 0, "void": 0}
                rows = [{"partition": p, "redriven": wanted[str(p)], **none} for p in sorted(found)]
                self._answer(session, message, info, group, rows)
                return
            args = {"do": "redrive", "group": group, "wanted": {p: n for p, n in wanted.items() if n}}
            self._ask(session, message, info, args, redriven, CHANGE_S)

        def redriven(found: Found) -> None:
            self._answer(session, message, info, group, _shown(found))

        self._ask(session, message, info, {"do": "show", "group": group}, counted, LOOK_S)

    def on_delete(self, session: Session, _: Principal, message: Ask, info: TopicInfo) -> None:
        """Not while somebody takes part: it would begin anew at once."""
        group = _group_of(message)
        letters = self.ctx.registry.topic(dead_letters_of(info.name, group))

        def looked(found: Found) -> None:
            members = max((f["members"] for f in found.values()), default=0)
            if members:
                raise Refused(f"group {group!r} has {members} members: close their subscriptions first")
            self._ask(session, message, info, {"do": "delete", "group": group}, deleted, CHANGE_S)

        def deleted(found: Found) -> None:
            rows = _shown(found)
            if letters is None:
                self._answer(session, message, info, group, rows)
            else:
                self.registrar.propose(DeleteTopic(letters.topic_id), lambda r: gone(r, rows))

        def gone(result: int | MeshqError, rows: list[Facts]) -> None:
            if isinstance(result, MeshqError):
                self.ctx.fail(session, message.request, result)
            else:
                self._answer(session, message, info, group, rows)

        self._ask(session, message, info, {"do": "show", "group": group}, looked, LOOK_S)

    def _answer(self, session: Session, message: Ask, info: TopicInfo, group: str, rows: list[Facts]) -> None:
        value = {"topic": info.name, "group": group, "partitions": rows}
        self.ctx.send(session, Answer(message.request, value))

    def _check_room(self) -> None:
        """Raises: Overloaded."""
        self.answers.check_room()
        if len(self._later) >= GROUP_QUESTIONS_MAX:
            raise Overloaded("as many questions about groups wait here as may", retry_after_ms=200)

    def _ask(
        self,
        session: Session,
        message: Ask,
        info: TopicInfo,
        args: dict[str, Any],
        done: Callable[[Found], None],
        within_s: float,
    ) -> None:
        """What all leaders say; `done` when none is missing and the group is there. Where a partition is just
        going to another leader, it is asked for again: what is asked for may be done twice.
        """
        self._check_room()
        args = {**args, "topic_id": info.topic_id, "version": info.version}
        found: Found = {}
        until = self.ctx.now + within_s

        def gathered(answers: list[dict[str, Any]]) -> None:
            if session not in self.ctx.sessions.states:
                return  # who asked has been told that nobody knows: the less is done behind that the better
            for answer in answers:
                found.update({int(p): x for p, x in answer.items() if p.isdecimal() and isinstance(x, dict)})
            missing = [p for p in range(info.partitions) if _is_missing(found.get(p))]
            left = until - self.ctx.now - AGAIN_S
            if missing and left > 0:
                again = {**args, "only": missing}
                self._later.append((self.ctx.now + AGAIN_S, lambda: self._gather(again, gathered, left)))
                return
            try:
                self._check(info, args["group"], found, deleting=args["do"] == "delete")
                done({p: facts for p, facts in found.items() if facts.get("there")})
            except MeshqError as e:
                self.ctx.fail(session, message.request, e)

        self._gather(args, gathered, within_s)

    def _check(self, info: TopicInfo, group: str, found: Found, *, deleting: bool) -> None:
        """Raises: Unavailable, UnknownGroup, and what a leader said."""
        missing = [p for p in range(info.partitions) if p not in found]
        if missing:
            slots = sorted({self.ctx.slot_of(PartitionKey(TopicId(info.topic_id), p)) for p in missing})
            raise Unavailable(
                f"partitions {_some(missing)} of topic {info.name!r} have no leader that answers (slots "
                f"{_some(slots)}): look at `meshq status` and `meshq peers`, then try again",
                retry_after_ms=500,
            )
        failed = {p: facts["failed"] for p, facts in found.items() if "failed" in facts}
        if failed:
            status, name, text = failed[min(failed)]
            rest = "" if len(failed) == len(found) else f" (partitions {_some(sorted(failed))} only)"
            raise from_wire(status, name, f"{text}{rest}")
        if not any(facts.get("there") for facts in found.values()) and not deleting:
            raise UnknownGroup(
                f"topic {info.name!r} has no group {group!r}: `meshq groups` lists those there are"
            )

    def _gather(
        self, args: dict[str, Any], done: Callable[[list[dict[str, Any]]], None], within_s: float
    ) -> None:
        """What this peer and all others say."""
        answers: list[dict[str, Any]] = []
        left = 2

        def came(more: Iterable[dict[str, Any]]) -> None:
            nonlocal left
            answers.extend(more)
            left -= 1
            if not left:
                done(answers)

        try:
            self.fan_out.ask(PART, args, came, within_s=within_s)
        except MeshqError:
            came([])  # they are asked again, or said to be missing
        self.answers.begin(args, lambda found: came([found]), within_s)

    # ---------------------------------------------------------------------------------- all of them
    def on_groups(self, session: Session, principal: Principal, message: Ask) -> None:
        """Some of those that the asker may consume, by topic and name, behind `after`."""
        pattern = check_pattern(text_of(message, "pattern", "#"))
        after = message.args.get("after") or ["", ""]
        if not isinstance(after, list) or [type(x) for x in after] != [str, str]:
            raise UsageError("`after` is a topic and a group")

        self._check_room()
        until = self.ctx.now + LOOK_S

        def ask(within_s: float) -> None:
            self._gather({"do": "list", "after": after}, gathered, within_s)

        def gathered(answers: list[dict[str, Any]]) -> None:
            confirmed = {slot for answer in answers for slot in answer.get("slots", ())}
            missing = [slot for slot in range(self.ctx.registry.slots) if slot not in confirmed]
            left = until - self.ctx.now - AGAIN_S
            if missing and left > 0:
                self._later.append((self.ctx.now + AGAIN_S, lambda: ask(left)))
                return
            if missing:
                text = f"slots {_some(missing)} have no leader that answers: look at `meshq status`"
                self.ctx.fail(session, message.request, Unavailable(text, retry_after_ms=500))
                return
            merged = merge([row for answer in answers for row in answer["rows"]])
            ends = [tuple(answer["last"]) for answer in answers if answer["last"]]
            last = min(ends, default=None)  # behind it some peer has more to tell
            keys = sorted(k for k in merged if last is None or k <= last)
            seen = [k for k in keys if principal.may_consume(k[0])]
            rows = [merged[k] for k in seen if pattern == "#" or matches(pattern, k[0])]
            value = {"groups": rows, "after": list(last) if last else None}
            self.ctx.send(session, Answer(message.request, value))

        ask(LOOK_S)

    def tick(self) -> None:
        self.answers.tick()
        due = [call for at, call in self._later if at <= self.ctx.now]
        self._later = [x for x in self._later if x[0] > self.ctx.now]
        for call in due:
            call()


def _group_of(message: Ask) -> str:
    return text_of(message, "group")


def _is_missing(facts: Facts | None) -> bool:
    """Whether nobody who leads has answered yet, or it may do so in a moment."""
    return facts is None or facts.get("failed", (0,))[0] in (Unavailable.status, OutcomeUnknown.status)


def _shown(found: Found) -> list[Facts]:
    return [{k: v for k, v in found[p].items() if k not in ("there", "reset")} for p in sorted(found)]


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
