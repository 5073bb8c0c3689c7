"""Ask: administrative requests by name, and the facts that other peers add to an answer.

Whoever holds the `admin` capability may change things; listing topics is open to every client, for the topics
it may read or publish to. A fact that could not be had in time is null, never zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meshq.errors import Forbidden, MeshqError, UnknownTopic, UsageError
from meshq.ids import PartitionKey, PeerId, Session, TopicId
from meshq.levels import CHANGES
from meshq.messages import Answer, Ask, Failure, TopicInfo
from meshq.peer.core.arguments import text_of
from meshq.peer.core.context import Context
from meshq.peer.core.declared import Declared
from meshq.peer.core.draining import PLACEMENT, Draining
from meshq.peer.core.fanning import FanOut
from meshq.peer.core.group_answers import PART
from meshq.peer.core.grouping import Grouping
from meshq.peer.core.health import HEALTH
from meshq.peer.core.journal import Journal
from meshq.peer.core.mending import BATCH, Mending
from meshq.peer.core.overview import Overview
from meshq.peer.core.recovering import FACTS, SLOTS, Recovering
from meshq.peer.core.registrar import LEVEL, Registrar
from meshq.peer.core.rereading import LOG, Rereading
from meshq.peer.core.sessions import is_peers
from meshq.peer.core.slots import Slots
from meshq.peer.core.topic_settings import create_command, describe, set_command
from meshq.peer.core.whereabouts import Whereabouts
from meshq.registry.commands import AnyCommand, DeleteTopic, RegisterClient
from meshq.ring import slot_of
from meshq.security.authorization import Principal
from meshq.topics import check_pattern, check_topic, matches

PAGE = 1_000


@dataclass
class Admin:
    ctx: Context
    registrar: Registrar
    slots: Slots
    whereabouts: Whereabouts
    journal: Journal
    fan_out: FanOut
    draining: Draining
    recovering: Recovering
    mending: Mending
    rereading: Rereading
    declared: Declared
    grouping: Grouping
    overview: Overview

    def on_ask(self, session: Session, principal: Principal, message: Ask) -> None:
        """Raises: Forbidden, UsageError and what the request itself raises."""
        name = message.what
        handler = _HANDLERS.get(name)
        if handler is None:
            raise UsageError(f"no request is called {name!r}: one of {', '.join(sorted(_HANDLERS))}")
        if not principal.admin and name not in _OPEN_TO_ALL:
            raise Forbidden(f"{principal.name!r} may not ask for {name!r}: it needs the capability `admin`")
        if name in _BETWEEN_PEERS and not is_peers(session, principal):
            raise Forbidden(f"{name!r} is between peers only")
        handler(self, session, principal, message)

    # -------------------------------------------------------------------------------------- listing
    def _status(self, session: Session, _: Principal, message: Ask) -> None:
        self.overview.status(lambda value: self.ctx.send(session, Answer(message.request, value)))

    def _peers(self, session: Session, _: Principal, message: Ask) -> None:
        self.ctx.send(session, Answer(message.request, self.overview.peers()))

    def _events(self, session: Session, _: Principal, message: Ask) -> None:
        self.journal.on_ask(session, message)

    def _topics(self, session: Session, principal: Principal, message: Ask) -> None:
        pattern = check_pattern(text_of(message, "pattern", "#"))
        after = text_of(message, "after", "")
        rows: list[dict[str, Any]] = []
        for name in self.ctx.registry.names(after):
            info = self.ctx.registry.topic(name)
            if info is None or not matches(pattern, name):
                continue
            if principal.may_read(name) or principal.may_publish(name):
                rows.append(describe(info))
                if len(rows) == PAGE:
                    break
        self.ctx.send(session, Answer(message.request, rows))

    def _topic_show(self, session: Session, principal: Principal, message: Ask) -> None:
        info = self._topic(message)
        if not (principal.may_read(info.name) or principal.may_publish(info.name)):
            raise Forbidden(f"{principal.name!r} may not see {info.name!r}")
        mine = self._offsets_of(info)

        def done(answers: list[dict[str, Any]]) -> None:
            for answer in answers:
                mine.update({int(p): x for p, x in answer.items() if p.isdecimal() and isinstance(x, dict)})
            registry = self.ctx.registry
            rows = []
            for p in range(info.partitions):
                slot = slot_of(TopicId(info.topic_id), p, registry.slots)
                owner = registry.peers[self.whereabouts.leader_of(slot)].facts.name
                known = mine.get(p, {"earliest": None, "end": None, "bytes": None})
                rows.append({"partition": p, "slot": slot, "owner": owner, **known})
            self.ctx.send(session, Answer(message.request, {**describe(info), "partition": rows}))

        self.fan_out.ask("offsets", {"topic": info.name}, done)

    def _offsets(self, session: Session, _: Principal, message: Ask) -> None:
        offsets = {str(p): x for p, x in self._offsets_of(self._topic(message)).items()}
        self.ctx.send(session, Answer(message.request, offsets))

    def _offsets_of(self, info: TopicInfo) -> dict[int, dict[str, int]]:
        """Partitions of this topic that this peer leads."""
        result = {}
        for p in range(info.partitions):
            partition = PartitionKey(TopicId(info.topic_id), p)
            slot = self.ctx.slot_of(partition)
            if slot in self.slots.hosts and self.slots.hosts[slot].leads:
                state = self.slots.partition(slot, partition)
                result[p] = {"earliest": state.low, "end": state.end, "bytes": state.bytes}
        return result

    def _registry_level(self, session: Session, _: Principal, message: Ask) -> None:
        self.registrar.on_ask_level(session, message.request)

    def _peer_leave(self, session: Session, _: Principal, message: Ask) -> None:
        self.draining.on_ask_leave(session, message)

    def _peer_stay(self, session: Session, _: Principal, message: Ask) -> None:
        self.draining.on_ask_stay(session, message)

    def _peer_leaving(self, session: Session, _: Principal, message: Ask) -> None:
        self.draining.on_ask_progress(session, message)

    def _recover_plan(self, session: Session, _: Principal, message: Ask) -> None:
        self.recovering.on_ask(session, message, run=False)

    def _recover_run(self, session: Session, _: Principal, message: Ask) -> None:
        self.recovering.on_ask(session, message, run=True)

    def _recover_facts(self, session: Session, _: Principal, message: Ask) -> None:
        self.recovering.on_ask_facts(session, message)

    def _recover_slots(self, session: Session, _: Principal, message: Ask) -> None:
        self.recovering.on_ask_slots(session, message)

    def _batch(self, session: Session, _: Principal, message: Ask) -> None:
        self.mending.on_ask(session, message)

    def _log(self, session: Session, _: Principal, message: Ask) -> None:
        self.rereading.on_ask(session, message)

    def _upgrade(self, session: Session, _: Principal, message: Ask) -> None:
        self.declared.on_ask(session, message)

    def _health(self, session: Session, _: Principal, message: Ask) -> None:
        self.overview.health.on_ask_facts(session, message)

    def _placement(self, session: Session, _: Principal, message: Ask) -> None:
        self.draining.on_ask_placement(session, message)

    def _groups(self, session: Session, principal: Principal, message: Ask) -> None:
        self.grouping.on_groups(session, principal, message)

    def _group_show(self, session: Session, principal: Principal, message: Ask) -> None:
        self.grouping.on_show(session, principal, message, self._topic(message))

    def _group_reset(self, session: Session, principal: Principal, message: Ask) -> None:
        self.grouping.on_reset(session, principal, message, self._topic(message))

    def _group_redrive(self, session: Session, principal: Principal, message: Ask) -> None:
        self.grouping.on_redrive(session, principal, message, self._topic(message))

    def _group_delete(self, session: Session, principal: Principal, message: Ask) -> None:
        self.grouping.on_delete(session, principal, message, self._topic(message))

    def _group_part(self, session: Session, _: Principal, message: Ask) -> None:
        self.grouping.answers.on_part(session, message)

    # ------------------------------------------------------------------------------------- changing
    def _topic_create(self, session: Session, _: Principal, message: Ask) -> None:
        name = check_topic(text_of(message, "topic"))
        command = create_command(
            message,
            name,
            self.ctx.random_id(),
            partitions=self.ctx.settings.partitions,
            record_bytes_max=self.ctx.settings.record_bytes_max,
            replicas=self.ctx.registry.replicas,
            level=self.ctx.registry.level,
        )
        self._commit(session, message, command, name)

    def _topic_set(self, session: Session, _: Principal, message: Ask) -> None:
        info = self._topic(message)
        registry = self.ctx.registry
        change = self.ctx.random_id() if registry.level >= CHANGES else b""
        command = set_command(
            message, info.topic_id, replicas=registry.replicas, level=registry.level, change=change
        )
        self._commit(session, message, command, info.name)

    def _topic_delete(self, session: Session, _: Principal, message: Ask) -> None:
        info = self._topic(message)
        self._commit(session, message, DeleteTopic(info.topic_id), info.name)

    def _client_register(self, session: Session, _: Principal, message: Ask) -> None:
        certificate = message.args.get("certificate")
        if not isinstance(certificate, bytes):
            raise UsageError("`certificate` must be bytes")
        self._commit(session, message, RegisterClient(certificate), None)

    def _commit(self, session: Session, message: Ask, command: AnyCommand, topic: str | None) -> None:
        def done(result: int | MeshqError) -> None:
            if isinstance(result, MeshqError):
                self.ctx.fail(session, message.request, result)
                return
            info = self.ctx.registry.topic(topic) if topic else None
            self.ctx.send(session, Answer(message.request, describe(info) if info else {"version": result}))

        self.registrar.propose(command, done)

    def on_answer(self, _: PeerId, answer: Answer | Failure) -> None:
        self.fan_out.on_answer(answer)

    def tick(self) -> None:
        self.journal.tick()
        self.fan_out.tick()
        self.grouping.tick()

    def _topic(self, message: Ask) -> TopicInfo:
        name = check_topic(text_of(message, "topic"))
        info = self.ctx.registry.topic(name)
        if info is None:
            raise UnknownTopic(f"there is no topic {name!r}: `meshq topics` lists those there are")
        return info


_Handler = Callable[[Admin, Session, Principal, Ask], None]
_HANDLERS: dict[str, _Handler] = {
    "status": Admin._status,
    "peers": Admin._peers,
    "events": Admin._events,
    "topics": Admin._topics,
    "topic.show": Admin._topic_show,
    "topic.create": Admin._topic_create,
    "topic.set": Admin._topic_set,
    "topic.delete": Admin._topic_delete,
    "groups": Admin._groups,
    "group.show": Admin._group_show,
    "group.reset": Admin._group_reset,
    "group.redrive": Admin._group_redrive,
    "group.delete": Admin._group_delete,
    PART: Admin._group_part,
    "client.register": Admin._client_register,
    "peer.leave": Admin._peer_leave,
    "peer.stay": Admin._peer_stay,
    "peer.leaving": Admin._peer_leaving,
    "upgrade": Admin._upgrade,
    "recover.plan": Admin._recover_plan,
    "recover.run": Admin._recover_run,
    FACTS: Admin._recover_facts,
    SLOTS: Admin._recover_slots,
    PLACEMENT: Admin._placement,
    HEALTH: Admin._health,
    BATCH: Admin._batch,
    LOG: Admin._log,
    "offsets": Admin._offsets,
    LEVEL: Admin._registry_level,
}
_OPEN_TO_ALL = {"topics", "topic.show", "groups", "group.show"}
# Parts of what a peer does with the others. What they take for granted was looked at by the peer that asks.
_BETWEEN_PEERS = {FACTS, SLOTS, PLACEMENT, LEVEL, HEALTH, BATCH, LOG, PART}
