"""Ask: administrative requests by name, and the facts that other peers add to an answer.

Whoever holds the `admin` capability may change things; listing topics is open to every client, for the topics
it may read or publish to. A fact that could not be had in time is null, never zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meshq import limits
from meshq.errors import Forbidden, MeshqError, UnknownTopic, UsageError
from meshq.ids import SYSTEM_SLOT, PartitionKey, PeerId, Session, TopicId, show_id
from meshq.levels import CHANGES
from meshq.messages import Answer, Ask, Failure, TopicInfo
from meshq.peer.core.arguments import number_of, text_of
from meshq.peer.core.clocks import Clocks
from meshq.peer.core.context import Context
from meshq.peer.core.declared import Declared
from meshq.peer.core.draining import PLACEMENT, Draining
from meshq.peer.core.fanning import FanOut
from meshq.peer.core.grouping import PART, Grouping
from meshq.peer.core.health import HEALTH, Health
from meshq.peer.core.journal import Journal, show_incarnation, udp_blocked
from meshq.peer.core.links import LinkFacts, Links
from meshq.peer.core.mending import BATCH, Mending
from meshq.peer.core.recovering import FACTS, SLOTS, Recovering
from meshq.peer.core.registrar import LEVEL, Registrar
from meshq.peer.core.sessions import is_peers
from meshq.peer.core.slots import Slots
from meshq.peer.core.whereabouts import Whereabouts
from meshq.registry.commands import AnyCommand, CreateTopic, DeleteTopic, RegisterClient, SetTopic
from meshq.registry.state import CertificateFacts
from meshq.ring import slot_of
from meshq.security.authorization import Principal
from meshq.security.text import show_key
from meshq.topics import check_pattern, check_topic, matches

PAGE = 1_000


@dataclass
class Admin:
    ctx: Context
    links: Links
    registrar: Registrar
    slots: Slots
    whereabouts: Whereabouts
    journal: Journal
    fan_out: FanOut
    draining: Draining
    recovering: Recovering
    mending: Mending
    declared: Declared
    grouping: Grouping
    health: Health
    clocks: Clocks

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
        registry, me, leader = self.ctx.registry, self.ctx.me, self.registrar.leader()
        leads = registry.peers.get(leader) if leader is not None else None
        value = {
            "mesh": show_id(registry.mesh),
            "peer": show_id(me.peer),
            "name": me.name,
            **self._place(me.peer),
            "mesh_level": registry.level,
            "registry": {
                "holder": leads.facts.name if leads else None,
                "version": registry.version,
                "reachable": self.registrar.is_reachable(),
                "voters": self.registrar.voter_names(),
            },
            "peers": len(registry.peers),
            "peers_reachable": len(self.links.reachable()),
            "topics": len(registry.topics),
            "slots": {},
            "clock": self.clocks.facts(self._records_ahead_ms()),
            "disk": {"room_bytes": self.ctx.disk.room_bytes, "pending_bytes": self.ctx.disk.pending_bytes},
            "sessions": len(self.ctx.sessions.states),
            "readers": self.ctx.deliveries.count(),
            "counters": dict(sorted((self.ctx.counters | self.ctx.outside).items())),
        }

        def done(health: dict[str, Any]) -> None:
            slots = self._slots_status(health)
            self.ctx.send(session, Answer(message.request, {**value, "slots": slots, "health": health}))

        self.health.look(done)

    def _records_ahead_ms(self) -> int:
        """How far the newest entry led here is in the future: so long times in its slot stand still."""
        newest = max((h.replica.log.last_timestamp_ms for h in self.slots.led()), default=0)
        return newest - self.ctx.mesh_ms

    def _slots_status(self, health: dict[str, Any]) -> dict[str, int]:
        """Here, and of the whole mesh what is not as it should be."""
        hosts = [h for h in self.slots.hosts.values() if h.slot != SYSTEM_SLOT]
        return {
            "total": self.ctx.registry.slots,
            "replicas": len(hosts),
            "led": sum(h.leads for h in hosts),
            **{k: len(health[k]) for k in ("under_replicated", "moving", "leaderless", "led_out_of_reach")},
            "written": self.slots.written(),
        }

    def _peers(self, session: Session, _: Principal, message: Ask) -> None:
        rows, counts, voters = [], self.whereabouts.counts(), self.registrar.voters()
        for peer, registered in sorted(self.ctx.registry.peers.items(), key=lambda x: x[1].facts.name):
            here = peer == self.ctx.me.peer
            link = self.links.states.get(peer)
            addresses = self.ctx.my_addresses if here else (link.addresses if link else ())
            rows.append(
                {
                    "name": registered.facts.name,
                    "id": show_id(peer),
                    "standing": self.ctx.registry.standing(peer),
                    **self._place(peer),
                    **(self._own_state() if here else _state(link, self.ctx.me.name, registered.facts.name)),
                    "address": addresses[0] if addresses else None,
                    "addresses": list(addresses),
                    "clock_offset_ms": self.clocks.ahead_ms(peer),
                    "link": "self" if here else (link.state.value if link else "down"),
                    "reason": link.reason if link and link.state.value == "down" else None,
                    "slots": counts[peer],
                    "holds_registry": peer in voters,
                    "certificate_until_s": registered.facts.not_after_s,
                    "server_key": show_key(registered.facts.curve_key),
                }
            )
        rows += [_left(peer, registered.facts) for peer, registered in self.ctx.registry.left.items()]
        self.ctx.send(session, Answer(message.request, rows))

    def _place(self, peer: PeerId) -> dict[str, Any]:
        registered = peer in self.ctx.registry.peers  # not yet, as far as this copy goes
        weight, zone = self.ctx.registry.place(peer) if registered else (None, "")
        witness = registered and self.ctx.registry.is_witness(peer)
        level = self.declared.level(peer)
        return {"witness": witness, "weight": weight, "zone": zone or None, "level": level}

    def _own_state(self) -> dict[str, Any]:
        return {
            "state": "alive",
            "since_ms": self.ctx.since_ms,
            "incarnation": show_incarnation(self.ctx.my_incarnation),
            "evidence": None,
            "udp": None,
            "rtt_ms": None,
        }

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
                rows.append(_describe(info))
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
            self.ctx.send(session, Answer(message.request, {**_describe(info), "partition": rows}))

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

    def _upgrade(self, session: Session, _: Principal, message: Ask) -> None:
        self.declared.on_ask(session, message)

    def _health(self, session: Session, _: Principal, message: Ask) -> None:
        self.health.on_ask_facts(session, message)

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

    def _group_part(self, session: Session, principal: Principal, message: Ask) -> None:
        self.grouping.on_part(session, principal, message)

    # ------------------------------------------------------------------------------------- changing
    def _topic_create(self, session: Session, _: Principal, message: Ask) -> None:
        name = check_topic(text_of(message, "topic"))
        partitions = number_of(message, "partitions", self.ctx.settings.partitions, limits.PARTITIONS_MAX)
        size = _record_bytes(message, self.ctx.settings.record_bytes_max)
        copies = self._copies_min(message, 1)
        command = CreateTopic(name, self.ctx.random_id(), partitions, size, copies)
        self._commit(session, message, command, name)

    def _topic_set(self, session: Session, _: Principal, message: Ask) -> None:
        info = self._topic(message)
        args = message.args
        partitions = (
            number_of(message, "partitions", 1, limits.PARTITIONS_MAX) if "partitions" in args else None
        )
        size = _record_bytes(message, 1) if "record_bytes_max" in args else None
        copies = self._copies_min(message, 1) if "copies_min" in args else None
        if partitions is None and size is None and copies is None:
            raise UsageError("nothing to set: give `partitions`, `record_bytes_max` or `copies_min`")
        change = self.ctx.random_id() if self.ctx.registry.level >= CHANGES else b""
        self._commit(session, message, SetTopic(info.topic_id, partitions, size, copies, change), info.name)

    def _copies_min(self, message: Ask, default: int) -> int:
        return number_of(message, "copies_min", default, self.ctx.registry.replicas)

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
            self.ctx.send(session, Answer(message.request, _describe(info) if info else {"version": result}))

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
    "offsets": Admin._offsets,
    LEVEL: Admin._registry_level,
}
_OPEN_TO_ALL = {"topics", "topic.show", "groups", "group.show"}
# Parts of what a peer does with the others. What they take for granted was looked at by the peer that asks.
_BETWEEN_PEERS = {FACTS, SLOTS, PLACEMENT, LEVEL, HEALTH, BATCH, PART}


def _state(link: LinkFacts | None, here: str, there: str) -> dict[str, Any]:
    """How another peer is seen. Round trips are of datagrams, and of the connection where none come back."""
    if link is None or link.seen is None or not link.seen.state:
        state = "alive" if link is not None and link.alive else "dead"
        return {"state": state, **dict.fromkeys(("since_ms", "incarnation", "evidence", "udp", "rtt_ms"))}
    seen = link.seen
    blocked = link.udp_blocked and seen.alive
    return {
        "state": seen.state,
        "since_ms": seen.since_ms or None,
        "incarnation": show_incarnation(seen.incarnation),
        "evidence": seen.evidence or (udp_blocked(here, there) if blocked else None),
        "udp": "blocked" if blocked else "open" if link.gossip_rtt_ms is not None else None,
        "rtt_ms": link.rtt_ms if blocked or link.gossip_rtt_ms is None else link.gossip_rtt_ms,
    }


def _left(peer: PeerId, facts: CertificateFacts) -> dict[str, Any]:
    """One that has left, with the fields of the others."""
    nothing = (
        "weight", "zone", "level", "since_ms", "incarnation", "evidence", "udp", "rtt_ms", "address",
        "reason", "clock_offset_ms",
    )  # fmt: skip
    return {
        "name": facts.name,
        "id": show_id(peer),
        "witness": facts.witness,
        "standing": "left",
        "state": "left",
        **dict.fromkeys(nothing),
        "addresses": [],
        "link": "down",
        "slots": 0,
        "holds_registry": False,
        "certificate_until_s": facts.not_after_s,
        "server_key": show_key(facts.curve_key),
    }


def _describe(info: TopicInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "id": info.topic_id.hex(),
        "partitions": info.partitions,
        "record_bytes_max": info.record_bytes_max,
        "copies_min": info.copies_min,
    }


def _record_bytes(message: Ask, default: int) -> int:
    return number_of(message, "record_bytes_max", default, limits.RECORD_BYTES_CEILING)
