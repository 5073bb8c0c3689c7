"""Health: which slots lack a copy, are moving, or have nobody to lead them, and why.

A slot's leader knows its copies; who keeps a copy and has no leader knows only that. So whoever is asked asks
all the others, and puts together what came: the slots led (a bit each), what is not as it should be with
them, and where somebody keeps a copy and knows no leader. What nobody told of has no copy that can be
reached.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from meshq.ids import SYSTEM_SLOT, PeerId, Session, Slot
from meshq.limits import SNAPSHOT_PIECE_BYTES, SNAPSHOTS_SENT_MAX
from meshq.messages import Answer, Ask
from meshq.peer.core.context import Context
from meshq.peer.core.fanning import Answers, FanOut
from meshq.peer.core.hosts import Host
from meshq.peer.core.placing import Placing
from meshq.peer.core.slots import Slots
from meshq.replication.placement import COPIES_MAX, LEVEL_COUNT, MOVES_MAX, members_of
from meshq.replication.quorum import Node

LOOK_S = 1.0
HEALTH = "health"  # asked of other peers
Row = dict[str, Any]


@dataclass
class Health:
    ctx: Context
    slots: Slots
    placing: Placing
    fan_out: FanOut
    _look_at: float = 0.0
    _since: dict[Slot, int] = field(default_factory=dict)  # without a leader, by this peer's clock

    def tick(self) -> None:
        if self.ctx.now >= self._look_at:
            self._look_at = self.ctx.now + LOOK_S
            self._leaderless()

    # ------------------------------------------------------------------------------- what is seen here
    def _leaderless(self) -> list[Host]:
        """Slots with a copy here that has no leader."""
        hosts = self.slots.hosts.values()
        found = [h for h in hosts if h.replica.leader is None and self._is_member(h)]
        self._since = {h.slot: self._since.get(h.slot, self.ctx.wall_ms) for h in found}
        return found

    def _is_member(self, host: Host) -> bool:
        return host.slot != SYSTEM_SLOT and self.slots.me in host.replica.config.nodes()

    def facts(self) -> Row:
        """What this peer can say. Peers are ids."""
        led = [h for h in self.slots.led() if h.slot != SYSTEM_SLOT]
        leaderless = self._leaderless()
        alive = self.slots.supports | {self.ctx.me.peer}
        nodes = self.placing.nodes()
        found = [self._led(h, alive, nodes) for h in led]
        return {
            "led": _bits(h.slot for h in led),
            "followed": _bits(
                h.slot for h in self.slots.hosts.values() if h.replica.leader and self._is_member(h)
            ),
            "slots": [row for row in found if row["missing"] or row["moving"]],
            "leaderless": [
                {
                    "slot": h.slot,
                    "since_ms": self._since[h.slot],
                    "voters": _peers({*h.replica.config.voters, *h.replica.config.outgoing}),
                    "away": _peers(n for n in h.replica.config.voters if n.peer not in alive),
                }
                for h in leaderless
            ],
        }

    def _led(self, host: Host, alive: Collection[PeerId], nodes: Mapping[PeerId, Node]) -> Row:
        r = host.replica
        config, members, last = r.config, r.config.nodes(), r.last.index
        behind = {n: last - match for n, match in r.match().items()}
        level = {n for n in members - r.catching_up() if behind.get(n, last) <= LEVEL_COUNT}
        owners = self.placing.wanted.get(host.slot, ())
        wanted = [nodes.get(peer) or _unknown(peer, members) for peer in owners]
        needed = wanted or sorted(members)
        copies = sum(n.peer in alive and n not in config.witnesses for n in level)
        lacking = [_missing(n, n in members, n in level, alive, behind.get(n, last)) for n in needed]
        coming = [n for n in needed if n not in level and n not in config.voters]
        chosen = self.placing.witnesses.get(host.slot)
        witness = (nodes.get(chosen) or _unknown(chosen, members)) if chosen is not None else None
        going = members - {*needed, witness}
        voters = members_of(needed, witness)[0]
        moves = config.is_joint or set(config.voters) != set(voters) or bool(coming or going)
        return {
            "slot": host.slot,
            "leader": self.ctx.me.peer,
            "copies": copies,
            "wanted": len(needed),
            "missing": [x for x in lacking if x is not None] if copies < len(needed) else [],
            "moving": {
                "from": _peers(going),
                "to": [self._progress(host, n, last - behind.get(n, last)) for n in coming],
                "changing": config.is_joint or not coming,  # all there is left to do
                "waits_for": _peers(n for n in needed if n.peer not in alive),
            }
            if moves
            else None,
        }

    def _progress(self, host: Host, node: Node, entries: int) -> Row:
        """Of a copy on its way. Bytes that went with entries are told as if all entries were of one size."""
        last, sent = host.replica.last.index, self.slots.sending.sent_bytes(host.slot, node)
        total = sum(p.bytes for p in host.stream.partitions.values())
        by_entries = total * entries // last if last else 0
        return {
            "peer": node.peer,
            "entries": entries,
            "entries_total": last,
            "bytes": by_entries if sent is None else min(sent, total),
            "bytes_total": total,
        }

    def on_ask_facts(self, session: Session, message: Ask) -> None:
        self.ctx.send(session, Answer(message.request, self.facts()))

    # ------------------------------------------------------------------------------ put together
    def look(self, done: Callable[[Row], None]) -> None:
        """The whole mesh, as far as it answers. Raises: Overloaded."""
        mine = self.facts()
        self.fan_out.ask(HEALTH, {}, lambda answers: done(self._merge([mine, *answers])))

    def _merge(self, answers: Answers) -> Row:
        led = followed = 0
        rows: dict[int, Row] = {}
        lacking: dict[int, Row] = {}
        for answer in filter(_is_sound, answers):
            led |= int.from_bytes(answer["led"], "big")
            followed |= int.from_bytes(answer["followed"], "big")
            rows |= {row["slot"]: row for row in answer["slots"]}
            for row in answer["leaderless"]:
                known = lacking.get(row["slot"])
                if known is None or row["since_ms"] < known["since_ms"]:
                    lacking[row["slot"]] = row
        slots = range(self.ctx.registry.slots)
        without = [s for s in slots if not led >> s & 1]
        unheard: Row = {"since_ms": None, "voters": None, "away": None}
        return {
            "under_replicated": [self._shown(rows[s], "moving") for s in sorted(rows) if rows[s]["missing"]],
            "moving": [self._shown_move(rows[s]) for s in sorted(rows) if rows[s]["moving"]],
            "leaderless": [
                self._named(lacking.get(s, unheard) | {"slot": s}) for s in without if not followed >> s & 1
            ],
            "led_out_of_reach": [s for s in without if followed >> s & 1],
            "peers_asked": len(answers),
            "throttle": {
                "moves_max": MOVES_MAX,
                "copies_max": COPIES_MAX,
                "snapshots_max": SNAPSHOTS_SENT_MAX,
                "piece_bytes": SNAPSHOT_PIECE_BYTES,
                "bytes_per_s": self.ctx.settings.move_bytes_s,
            },
        }

    def _shown(self, row: Row, *left_out: str) -> Row:
        missing = [{**x, "peer": self._name(x["peer"])} for x in row["missing"]]
        shown = {k: v for k, v in row.items() if k not in left_out}
        return shown | {"leader": self._name(row["leader"]), "missing": missing}

    def _shown_move(self, row: Row) -> Row:
        move = row["moving"]
        return {
            "slot": row["slot"],
            "leader": self._name(row["leader"]),
            "from": sorted(map(self._name, move["from"])),
            "to": [{**x, "peer": self._name(x["peer"])} for x in move["to"]],
            "changing": move["changing"],
            "waits_for": sorted(map(self._name, move["waits_for"])),
        }

    def _named(self, row: Row) -> Row:
        names = {k: row[k] and sorted(map(self._name, row[k])) for k in ("voters", "away")}
        return {"slot": row["slot"], "since_ms": row["since_ms"], **names}

    def _name(self, peer: bytes) -> str:
        registry = self.ctx.registry
        found = registry.peers.get(PeerId(peer)) or registry.left.get(PeerId(peer))
        return found.facts.name if found else peer.hex()


def _missing(
    node: Node, is_member: bool, is_level: bool, alive: Collection[PeerId], behind: int
) -> Row | None:
    """Why this copy does not count; None when it does."""
    if node.peer not in alive:
        why = "away"
    elif not is_member:
        why = "to come"
    elif not is_level:
        why = "behind"
    else:
        return None
    return {"peer": node.peer, "why": why, "entries_behind": behind if is_member else None}


def _unknown(peer: PeerId, members: Collection[Node]) -> Node:
    """A peer that was not met since the start: with the disk that it had as a member, if it was one."""
    return next((n for n in members if n.peer == peer), Node(peer, b""))


def _peers(nodes: Iterable[Node]) -> list[PeerId]:
    return sorted({n.peer for n in nodes})


def _bits(slots: Iterable[int]) -> bytes:
    value = 0
    for slot in slots:
        value |= 1 << slot
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


# What another peer answers, as far as it is used here: another version may answer otherwise.
class _Missing(msgspec.Struct):
    peer: bytes
    why: str
    entries_behind: int | None


class _To(msgspec.Struct, rename={"bytes_": "bytes"}):
    peer: bytes
    entries: int
    entries_total: int
    bytes_: int
    bytes_total: int


class _Move(msgspec.Struct, rename={"from_": "from"}):
    from_: list[bytes]
    to: list[_To]
    changing: bool
    waits_for: list[bytes]


class _Led(msgspec.Struct):
    slot: int
    leader: bytes
    copies: int
    wanted: int
    missing: list[_Missing]
    moving: _Move | None


class _Leaderless(msgspec.Struct):
    slot: int
    since_ms: int
    voters: list[bytes]
    away: list[bytes]


class _Facts(msgspec.Struct):
    led: bytes
    followed: bytes
    slots: list[_Led]
    leaderless: list[_Leaderless]


def _is_sound(answer: Row) -> bool:
    try:
        msgspec.convert(answer, _Facts)
    except msgspec.ValidationError:
        return False
    return True
