"""Rereading: a witness reads its own log through when it starts, and gets what is damaged from a keeper.

A witness has what some keeper lacks (replication/witnesses.py), so its log matters before the applied index
too, where anybody else's is only history. It is read when the one keeper that has everything is gone, and
then it is too late to find damage in it:

    start, or damage found ──> ReadSlotLog, piece by piece ──> all of it is sound
                                    ^        └── damaged ──> "log" to the keepers ──> written in its place ──┐
                                    └────────────────────────────────────────────────────────────────────────┘

What is applied is the same everywhere in one generation, so any keeper's copy of it will do. What all keepers
have is not looked at: nobody needs it here. While no keeper can be reached it is tried again and again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from meshq.entries import decode_entry, follows
from meshq.errors import MeshqError, Overloaded, UsageError
from meshq.ids import SYSTEM_SLOT, PeerId, Session, Slot
from meshq.limits import MIB
from meshq.messages import Answer, Ask
from meshq.peer.core.context import Context
from meshq.peer.core.events import ReadSlotLog, SlotLogRead
from meshq.peer.core.fanning import FanOut
from meshq.peer.core.hosts import Host
from meshq.peer.core.saving import start_of
from meshq.peer.core.slots import Slots
from meshq.replication.generations import generation_of
from meshq.replication.quorum import Node
from meshq.replication.words import Item, Position
from meshq.streams.publish import check_payload, payload_of

LOG: Final = "log"  # asked of keepers
BYTES: Final = MIB  # of payloads in one piece
AGAIN_S: Final = 1.0  # between one try and the next
ASKED_MAX: Final = 64  # pieces that are being read for other peers; more: `Overloaded`


@dataclass(slots=True)
class _Look:
    """Entries from `at` on are still to be read, before `end`. `due`: when a keeper is asked again."""

    at: int
    end: int
    due: float | None = None


@dataclass
class Rereading:
    ctx: Context
    slots: Slots
    fan_out: FanOut
    _looks: dict[Slot, _Look] = field(default_factory=dict)  # of slots that this peer is a witness of
    _asked: dict[Node, tuple[Session, int]] = field(default_factory=dict)  # ASKED_MAX
    _number: int = 0

    def start(self) -> None:
        for host in self.slots.hosts.values():
            self.look(host)

    def look(self, host: Host) -> None:
        """Unless it is being looked at."""
        if not host.replica.is_witness or host.slot == SYSTEM_SLOT or host.slot in self._looks:
            return
        self._looks[host.slot] = _Look(0, host.stream.applied_index + 1)
        self._go_on(host.slot)

    def tick(self) -> None:
        for slot, look in list(self._looks.items()):
            if look.due is not None and look.due <= self.ctx.now:
                look.due = None
                self._go_on(slot)

    def _go_on(self, slot: Slot) -> None:
        look, host = self._looks[slot], self._host(slot)
        if host is not None:
            look.at = max(look.at, host.replica.everywhere + 1, start_of(host).index + 1)
        if host is None or look.at >= look.end:
            del self._looks[slot]
            return
        self.ctx.out.append(ReadSlotLog(slot, self._reader(0), self._before(host, look.at), BYTES))

    def _host(self, slot: Slot) -> Host | None:
        host = self.slots.hosts.get(slot)
        gone = host is None or host.is_emptied or host.is_replaced or host.replica.is_stale
        return None if gone else host

    def _reader(self, number: int) -> Node:
        """Who such a read is for: this peer, or with a number another one's request."""
        return Node(self.ctx.me.peer, b"reread%d" % number)

    @staticmethod
    def _before(host: Host, index: int) -> Position:
        return Position(index - 1, host.replica.log.term_at(index - 1) or 0, b"")

    # ------------------------------------------------------------------------------ what was read
    def on_log_read(self, event: SlotLogRead) -> bool:
        """Whether that was read for this."""
        to = event.read.to
        if to in self._asked:
            self._answer(to, event)
        elif to == self._reader(0):
            self._on_read(event)
        else:
            return False
        return True

    def _on_read(self, event: SlotLogRead) -> None:
        look = self._looks.get(event.slot)
        if look is None:
            return
        if event.read.items:
            look.at = event.read.items[-1].entry.index + 1
            self._go_on(event.slot)
        elif event.damage is None:
            del self._looks[event.slot]  # trimmed meanwhile
        else:
            self.ctx.count("log_pieces_damaged")
            self._ask(event.slot, look)

    def _ask(self, slot: Slot, look: _Look) -> None:
        host = self._host(slot)
        if host is None:
            del self._looks[slot]
            return
        args = {"slot": int(slot), "index": look.at, "generation": generation_of(host.replica.term)}
        keepers: dict[PeerId, dict[str, Any]] = {n.peer: {} for n in host.replica.config.keepers()}

        def on_answers(answers: list[dict[str, Any]]) -> None:
            found = next((x for x in (self._sound(host, look, a) for a in answers) if x), ())
            if not found or self._host(slot) is not host or self._looks.get(slot) is not look:
                look.due = self.ctx.now + AGAIN_S
                return
            self._write(host, look, found)

        try:
            self.fan_out.ask(
                LOG, args, on_answers, each=keepers, enough=lambda a: bool(self._sound(host, look, a))
            )
        except Overloaded:
            look.due = self.ctx.now + AGAIN_S

    @staticmethod
    def _sound(host: Host, look: _Look, answer: dict[str, Any]) -> tuple[Item, ...]:
        """The entries from there on, as another peer has them: dense, of the terms known here, each behind
        the one before, with their payloads.
        """
        items: list[Item] = []
        try:
            for index, data, payload in answer.get("entries", ()):
                entry = decode_entry(index, data)
                dense = index == look.at + len(items) and host.replica.log.term_at(index) == entry.term
                if not dense or (items and not follows(items[-1].entry.chain, entry)):
                    return ()
                check_payload(entry, payload)
                items.append(Item(entry, payload))
        except (MeshqError, TypeError, ValueError):
            return ()
        return tuple(i for i in items if i.entry.index < look.end)

    def _write(self, host: Host, look: _Look, items: tuple[Item, ...]) -> None:
        """What was trimmed meanwhile is not to come back: it would lie before a gap."""
        if start_of(host).index >= items[0].entry.index:
            self._go_on(host.slot)
            return

        def done() -> None:
            self.ctx.count("log_entries_mended", len(items))
            look.at = items[-1].entry.index + 1
            if self._looks.get(host.slot) is look:
                self._go_on(host.slot)

        def failed(_: MeshqError) -> None:
            look.due = self.ctx.now + AGAIN_S

        payloads = (payload_of(*i) for i in items if len(i.payload))
        self.ctx.disk.submit(
            host.slot,
            entries=tuple(i.entry for i in items),
            payloads=tuple(p for p in payloads if p is not None),
            done=done,
            failed=failed,
        )

    # -------------------------------------------------------------------------------- asked by others
    def on_ask(self, session: Session, message: Ask) -> None:
        """Raises: UsageError, Overloaded."""
        slot, index = message.args.get("slot"), message.args.get("index")
        if not (isinstance(slot, int) and isinstance(index, int)):
            raise UsageError("entries are asked for by `slot`, `index` and `generation`")
        if len(self._asked) >= ASKED_MAX:
            raise Overloaded("this peer reads as much for others as it may", retry_after_ms=1_000)
        host = self._host(Slot(slot))
        same = host is not None and generation_of(host.replica.term) == message.args.get("generation")
        if host is None or not same or not start_of(host).index < index <= host.stream.applied_index:
            self.ctx.send(session, Answer(message.request, {}))
            return
        self._number += 1
        to = self._reader(self._number)
        self._asked[to] = (session, message.request)
        self.ctx.out.append(ReadSlotLog(host.slot, to, self._before(host, index), BYTES))

    def _answer(self, to: Node, event: SlotLogRead) -> None:
        session, request = self._asked.pop(to)
        host = self._host(event.slot)
        applied = host.stream.applied_index if host is not None else 0
        items = [i for i in event.read.items if i.entry.index <= applied]
        value = {"entries": [[i.entry.index, i.entry.encode(), bytes(i.payload)] for i in items]}
        self.ctx.send(session, Answer(request, value))
