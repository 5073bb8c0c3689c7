"""Membership: SWIM with Lifeguard. Who is alive, found out by asking, and told by rumour.

Each peer asks one other at a time whether it is there. Who does not answer is asked again by way of others;
who still does not is *suspect*, which is told to all, itself included, so that it can refute by signing a
higher incarnation. A suspicion that was not refuted in time is a death. News rides on the questions. What a
peer costs does not grow with the mesh: it asks as often in ten as in a thousand.
Das, Gupta and Motivala, "SWIM", 2002; Dadgar, Phillips and Currey, "Lifeguard", 2018.

What is added: a broken connection is a reason to ask at once; an answer over the connection counts, so
blocked UDP kills nobody; members are the registered peers and nobody else, so the dead stay in the list and
are written to now and then, by which the halves of a split find each other; and once in a while two members
compare notes, a datagram's worth at a time, which mends what rumour lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, assert_never

from meshq.errors import RemoteProtocolError
from meshq.gossip import wire
from meshq.gossip.awareness import Awareness
from meshq.gossip.blockage import Blockage
from meshq.gossip.broadcasts import Broadcasts
from meshq.gossip.errands import Errands
from meshq.gossip.known import Known
from meshq.gossip.mail import Mail
from meshq.gossip.notes import Notes
from meshq.gossip.own import OwnRecord
from meshq.gossip.probing import Probing
from meshq.gossip.reaching import ASK_DEAD, Reaching
from meshq.gossip.settings import LAN, Settings
from meshq.gossip.table import Table, read
from meshq.gossip.transitions import Belief
from meshq.gossip.wire import Claim, Gossip, MemberRecord, Signed
from meshq.gossip.words import (
    AddressesChanged,
    AddressSuggested,
    DatagramReceived,
    Effect,
    Event,
    LeaveRequested,
    LinkAnswered,
    LinkBroken,
    LinkCarried,
    LinkUp,
    Member,
    OwnRecordOutdated,
    Registered,
    Slept,
    Tick,
    VerdictsDiscarded,
)
from meshq.ids import PeerId

if TYPE_CHECKING:
    import random

_RECORDS_PER_ANSWER_MAX = 16  # who lacks more asks again for the rest
_WANTS_MAX = 64
_ALONE_S = 1.0  # between looks at the clock of one who has nobody to probe


class Membership:
    """The machine. `counts`: malformed, unregistered, forged, full (registered peers above PEERS_MAX),
    unhelped (asked for help in vain), udp_blocked (answers that came over the connection alone), refuted,
    caught_up (own records newer than the one it had).

    `links_carry`: the shell takes the payload of ProbeLink and tells LinkCarried, so that who is cut off from
    UDP hears what is said of it, and can refute.

    `verify(peer, data, signature)` says whether that peer signed; `sign` signs as this one. A boot epoch has
    to be higher at every start, made durable before, with another `boot_id`. `level`, `weight` and `zone` are
    told to all, and mean nothing here.
    """

    def __init__(
        self,
        me: PeerId,
        *,
        name: str,
        addresses: Iterable[str],
        boot_epoch: int,
        boot_id: bytes,
        sign: Callable[[bytes], bytes],
        verify: Callable[[PeerId, bytes, bytes], bool],
        rng: random.Random,
        now: float,
        settings: Settings = LAN,
        links_carry: bool = False,
        level: int = 1,
        weight: float | None = None,
        zone: str = "",
    ) -> None:
        self.me = me
        self._verify = verify
        self._rng = rng
        self._settings = settings
        self.counts: Counter[str] = Counter()
        self._out: list[Effect] = []
        self._broadcasts = Broadcasts()
        self._table = Table(me, settings, self._broadcasts, verify, self.counts, self._out)
        own = MemberRecord(
            me, boot_epoch, boot_id, name, list(addresses), 1, level=level, weight=weight, zone=zone
        )
        self._own = OwnRecord(own, sign)
        self._awareness = Awareness(settings.awareness_max)
        self._mail = Mail(self._broadcasts, rng, self._out, links_carry)
        self._blockage = Blockage(self._out)
        self._probing = Probing(
            settings, self._awareness, self._table, self._mail, rng, self._out, self._blockage
        )
        self._errands = Errands(settings, self._mail)
        self._notes = Notes(self._table, self._own)
        self._reaching = Reaching(settings, self._table, self._own, self._mail, rng)
        self._next_probe = self._next_gossip = self._next_sync = self._next_reach = now
        self._due = now
        self._ticked = False

    # ------------------------------------------------------------------------------------------ from outside
    def handle(self, event: Event, *, now: float) -> list[Effect]:
        match event:
            case Tick():
                self._on_tick(now)
            case DatagramReceived(payload, sender, address):
                self._on_datagram(payload, sender, address, now)
            case AddressSuggested(address, keep):
                token = self._probing.token()
                self._reaching.on_suggested(address, keep=keep, token=token, now=now)
            case AddressesChanged(addresses):
                if self._own.move(addresses):
                    self._broadcasts.put(self.me, self._own.signed)
            case Registered(peers):
                self._on_registered(peers, now)
            case LeaveRequested():
                self._on_leave_requested(now)
            case LinkBroken(peer):
                self._on_link_broken(peer, now)
            case LinkUp(peer):
                if peer in self._table.known:
                    self._table.known[peer].linked = True
            case LinkAnswered(peer):
                self._on_link_answered(peer, now)
            case LinkCarried(payload, sender):
                self._on_datagram(payload, sender, None, now)
            case Slept(seconds):
                self._on_stalled(seconds, now)
            case _:
                assert_never(event)
        self._due = max(self._wake(), now)
        out = self._out[:]
        self._out.clear()
        return out

    def deadline(self) -> float:
        """When it next wants a Tick; may change with every event."""
        return self._due

    def members(self) -> list[Member]:
        """All registered peers but this one, by id."""
        return [k.view() for _, k in sorted(self._table.known.items())]

    def member(self, peer: PeerId) -> Member | None:
        known = self._table.known.get(peer)
        return known.view() if known else None

    @property
    def own(self) -> MemberRecord:
        """What this peer says about itself (as many of its addresses as fit)."""
        return self._own.record

    @property
    def awareness(self) -> int:
        return self._awareness.score

    @property
    def suggestions_ignored(self) -> int:
        return self._reaching.suggestions.ignored

    # ------------------------------------------------------------------------------------------------- time
    def _wake(self) -> float:
        news = self._next_gossip if len(self._broadcasts) else float("inf")
        timers = min(self._next_probe, self._next_sync, self._next_reach, news)
        return min(timers, self._probing.wake(), self._errands.wake(), self._table.wake())

    def _on_tick(self, now: float) -> None:
        if now < self._due:
            return
        late_s = now - self._next_probe  # the one timer that never stands still
        if self._ticked and late_s > self._settings.stall_s:
            self._on_stalled(late_s, now)
        self._ticked = True
        self._probing.expire(now)
        self._errands.expire(now)
        self._table.expire(now)
        if now >= self._next_probe:
            period_s = self._settings.probe_s if self._table.known else _ALONE_S
            self._next_probe = now + self._awareness.scale(period_s)
            self._probing.probe_next(now)
        if now >= self._next_sync:
            self._compare_notes(now)
        if now >= self._next_reach:
            self._next_reach = now + self._settings.reach_s
            self._reaching.reach_out(now)
        if len(self._broadcasts) and now >= self._next_gossip:
            self._next_gossip = now + self._settings.gossip_s
            self._gossip(now)

    def _on_stalled(self, late_s: float, now: float) -> None:
        """Answers may wait unread and refutations were not heard: nothing that ran out meanwhile counts."""
        self._probing.clear()
        self._errands.clear()
        self._table.discard_own_verdicts(late_s, now)
        self._awareness.add(1)
        self._out.append(VerdictsDiscarded(late_s))

    # ------------------------------------------------------------------------------------------------- links
    def _on_link_broken(self, peer: PeerId, now: float) -> None:
        known = self._table.known.get(peer)
        if known is None:
            return
        known.linked = False
        self._blockage.on_link_broken(known)
        if known.present:
            self._probing.probe(known, now)

    def _on_link_answered(self, peer: PeerId, now: float) -> None:
        if self._probing.on_link_answered(peer, now):
            self.counts["udp_blocked"] += 1
        if peer in self._table.known:
            self._blockage.on_link_answered(self._table.known[peer])

    # -------------------------------------------------------------------------------------------- datagrams
    def _on_datagram(self, payload: bytes, sender: PeerId, address: str | None, now: float) -> None:
        """`address`: where it came from; None: over the connection, by which answers then go too."""
        try:
            heard = wire.decode(payload)
        except RemoteProtocolError:
            self.counts["malformed"] += 1
            return
        lacking: list[PeerId] = []
        answer: list[Signed] = []
        for signed in heard.records:
            self._on_record(signed, sender, heard.hearsay, now)
        for claim in heard.claims:
            self._on_claim(claim, heard.hearsay, lacking, answer, now)
        known = self._table.known.get(sender)
        if known is not None:
            if address is not None:
                known.direct, known.direct_at = address, now
                self._blockage.on_datagram(known)
            self._table.on_heard(known, now)
            if known.record is None:
                lacking.append(sender)
        self._on_tokens(heard, sender, address, now)
        self._reply(heard, known, sender, lacking, answer, address)

    def _on_record(self, signed: Signed, sender: PeerId, hearsay: bool, now: float) -> None:
        record = read(signed, self.counts)
        if record is None:
            return
        if record.peer == self.me:
            self._on_own_record(record, signed)
            return
        before = self._table.known.get(PeerId(record.peer))
        was_present = before is not None and before.present
        fresh = not hearsay or record.peer == sender
        if not self._table.on_record(record, signed, fresh=fresh, now=now):
            return
        known = self._table.known[PeerId(record.peer)]
        if known.belief is Belief.UNHEARD:
            self._probing.probe(known, now)
        if known.belief is Belief.ALIVE and not was_present:
            self._notes.hurry()
            self._next_sync = min(self._next_sync, now + self._settings.gossip_s)

    def _on_own_record(self, record: MemberRecord, signed: Signed) -> None:
        ahead = self._own.is_behind(record)
        if not ahead and (self._own.outdated_said or not self._own.is_outdated_by(record)):
            return
        if not wire.is_signed(record, signed, self._verify):
            self.counts["forged"] += 1
            return
        if ahead:
            self._own.catch_up(record)
            self.counts["caught_up"] += 1
            self._broadcasts.put(self.me, self._own.signed)
            return
        self._own.outdated_said = True
        self._out.append(OwnRecordOutdated(record.boot_epoch, record.boot_id))

    def _on_claim(
        self, claim: Claim, hearsay: bool, lacking: list[PeerId], answer: list[Signed], now: float
    ) -> None:
        if claim.peer != self.me:
            if self._table.on_claim(claim, hearsay=hearsay, now=now):
                lacking.append(PeerId(claim.peer))
            return
        if self._own.refute(claim.order):
            self.counts["refuted"] += 1
            self._awareness.add(1)
            self._broadcasts.put(self.me, self._own.signed)
        if claim.order < self._own.record.order:
            answer.append(self._own.signed)

    def _on_tokens(self, heard: Gossip, sender: PeerId, address: str | None, now: float) -> None:
        if address is None:  # nobody is helped by way of a connection
            if heard.answered and self._probing.is_asked(heard.answered, sender):
                self._on_link_answered(sender, now)
            elif heard.answered and sender in self._table.known:  # too late for the probe, not for this
                self._blockage.on_link_answered(self._table.known[sender])
            return
        if heard.answered > ASK_DEAD:
            self._probing.on_answered(heard.answered, sender, now)
            self._errands.on_answered(heard.answered, sender)
            self._reaching.suggestions.answered(heard.answered, sender)
        if heard.vouched:
            self._probing.on_vouched(heard.vouched, now)
        if heard.refused:
            self._probing.on_refused(heard.refused)
        if heard.helping:
            self._on_help_asked(heard.helping, PeerId(heard.whom), address, now)

    def _on_help_asked(self, token: int, whom: PeerId, address: str, now: float) -> None:
        known, ours = self._table.known.get(whom), self._probing.token()
        if self._errands.begin(known, ours, token, address, now) and known is not None:
            self._probing.ping(known, ours, now)
        else:
            self.counts["unhelped"] += 1

    def _reply(
        self,
        heard: Gossip,
        known: Known | None,
        sender: PeerId,
        lacking: list[PeerId],
        records: list[Signed],
        address: str | None,
    ) -> None:
        """Answer a question, hand out what was asked for or is newer here, ask for what is lacking."""
        notes, claims, more = self._notes.compare(heard)
        lacking += [p for p in more if p != self.me or not self._own.outdated_said]
        if heard.ask and known is not None and known.claim is not None and self._settings.buddy:
            claims = [known.claim, *(c for c in claims if c != known.claim)]
        if heard.ask and heard.records:
            records = [self._own.signed]  # who shows its own record may not know ours
        records = [*records, *(x for x in notes if x not in records)][:_RECORDS_PER_ANSWER_MAX]
        hearsay = bool(heard.digests or heard.wants or claims)
        if heard.ask and not hearsay:
            news, claims = self._mail.news(records)
            records += news
        if heard.ask or records or claims or lacking:
            head = Gossip(answered=heard.ask, hearsay=hearsay)
            wants = lacking[:_WANTS_MAX]
            payloads = wire.pack(head, records=records, claims=claims, wants=wants)
            if address is None:
                self._mail.carry(sender, payloads)
            else:
                self._mail.emit(address, payloads)

    # ------------------------------------------------------------------------------------------------ sending
    def _gossip(self, now: float) -> None:
        """News that does not wait for the next question."""
        present = [k for k in self._table.known.values() if k.present]
        for known in self._rng.sample(present, min(self._settings.fanout, len(present))):
            if len(self._broadcasts):
                self._mail.send(known, Gossip(), now)

    def _compare_notes(self, now: float) -> None:
        wait_s = self._settings.gossip_s if self._notes.is_hurried() else self._settings.sync_s
        self._next_sync = now + wait_s
        alive = [k for k in self._table.known.values() if k.belief is Belief.ALIVE]
        if alive:
            other = self._rng.choice(alive)
            if other.reach == "link":
                self._mail.carry(other.peer, self._notes.page())
            else:
                self._mail.emit(self._mail.address_of(other, now), self._notes.page())

    # ------------------------------------------------------------------------------------------ configuration
    def _on_registered(self, peers: Iterable[PeerId], now: float) -> None:
        new, gone = self._table.register(peers, now)
        self._probing.remove(gone)
        self._probing.add(new)
        self._mail.retransmits = self._settings.retransmits(len(self._table.known) + 1)
        if new:
            self._next_probe = min(self._next_probe, now + self._settings.probe_s)
            self._reaching.suggestions.hurry(now=now)  # who answered there may be one of the new ones

    def _on_leave_requested(self, now: float) -> None:
        """Tell everybody who is there, once; the record spreads from them if some do not get it."""
        self._own.leave()
        for known in self._table.known.values():
            if known.present:
                self._mail.emit(self._mail.address_of(known, now), wire.pack(records=[self._own.signed]))
