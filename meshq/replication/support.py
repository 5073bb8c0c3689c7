"""Support: a peer's promise, for a bounded time, to treat another one as alive.

Raft lets every leader tell every follower, all the time, that it is there. With hundreds of slots on the same
few hosts that is the same news hundreds of times. Here two *peers* that share slots tell each other, whatever
the number of slots, and a slot's voters look up what their peer promised (CockroachDB's store liveness, after
Ongaro 2014, section 9.6).

Support is extended only by a beat that echoes one of one's own recent beats: the other side hears us and we
hear it, so a cut in one direction ends it in both. A peer whose disk does not finish its writes, or whose
loop stands still, sends no beats: it could not lead either.

Whoever membership suspects is supported for `suspect_s` behind its last beat, not for `support_s`: a hint
that shortens the wait. It takes nothing away while beats come, so blocked datagrams cost no election.

    A                                              B
    │ beat 7, echoes 3 ───────────────────────────>│ sent its 3 less than `support_s` ago: supports A until
    │<─────────────────────────── beat 4, echoes 7 │ then + `support_s`, and says so
    │ supported by B for `support_s` from when 7 left

It also says which slots it leads, as a checksum. One who believes otherwise says so by its own checksum, is
sent the list, and forgets the leaders that are none; else it would wait for ever for one that is alive but
no longer leads.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf

from meshq.ids import PeerId, Slot
from meshq.messages import Beat
from meshq.replication.words import SupportGiven, SupportGot

Led = tuple[tuple[Slot, int], ...]  # (slot, term), sorted


@dataclass(frozen=True, slots=True)
class SendBeat:
    peer: PeerId
    beat: Beat


@dataclass(frozen=True, slots=True)
class PeerRestarted:
    """It runs under a higher boot epoch: whatever it led, it leads no more."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class LeadsOnly:
    """It leads these of our slots and no others."""

    peer: PeerId
    slots: frozenset[tuple[int, int]]


SupportEffect = SendBeat | PeerRestarted | LeadsOnly | SupportGiven | SupportGot


@dataclass(frozen=True, slots=True)
class SupportSettings:
    beat_s: float = 0.1
    support_s: float = 1.0  # raising it: fewer false alarms, later fail-over from a host that is cut off
    suspect_s: float = 0.4  # the same, of a peer that membership suspects: some missed beats confirm it
    stall_s: float = 0.4  # a disk or a loop that stands still so long keeps its peer silent


@dataclass(slots=True)
class _Partner:
    epoch: int = 0
    heard: int = 0  # its newest seq
    sent: deque[tuple[int, float]] = field(default_factory=deque)  # own (seq, when), of the last support_s
    given_until: float = -inf
    got_until: float = -inf
    given: bool = False
    got: bool = False
    suspected: bool = False  # by membership
    disputed: bool = False  # it believes that we lead something else than we do


class Support:
    """One a host. `led(peer)` and `believed(peer)`: what we lead of its slots, and what we think it leads."""

    def __init__(
        self,
        *,
        epoch: int,
        now: float,
        led: Callable[[PeerId], Led],
        believed: Callable[[PeerId], Led],
        settings: SupportSettings | None = None,
    ) -> None:
        self._epoch = epoch
        self._led = led
        self._believed = believed
        self._settings = settings or SupportSettings()
        self._partners: dict[PeerId, _Partner] = {}  # bounded by the registered peers
        self._seq = 0
        self._beat_at = self.due = now  # `due`: when a tick is wanted; perhaps too early, never too late
        self._disk_stalled = False
        self._out: list[SupportEffect] = []

    # ---------------------------------------------------------------------------------------------- facts
    def given(self) -> set[PeerId]:
        """Whom this host treats as alive."""
        return {peer for peer, p in self._partners.items() if p.given}

    def got(self) -> set[PeerId]:
        """Who is known to treat this host as alive."""
        return {peer for peer, p in self._partners.items() if p.got}

    def _look(self) -> None:
        """Beats only put off when support ends, so `due` is looked for when its time has come."""
        ends = [t for p in self._partners.values() for t in self._ends(p)]
        self.due = min([self._beat_at, *ends]) if self._partners else inf

    def _ends(self, p: _Partner) -> Sequence[float]:
        return [t for t, holds in ((self._given_until(p), p.given), (p.got_until, p.got)) if holds]

    def _given_until(self, p: _Partner) -> float:
        t = self._settings
        return p.given_until - (t.support_s - t.suspect_s) if p.suspected else p.given_until

    # --------------------------------------------------------------------------------------------- events
    def on_partners(self, peers: Collection[PeerId]) -> list[SupportEffect]:
        """These share slots with this host."""
        for peer in sorted(set(self._partners) - set(peers)):
            self._drop(peer, self._partners.pop(peer))
        for peer in sorted(set(peers) - set(self._partners)):
            self._partners[peer] = _Partner()
        self._look()
        return self._take()

    def on_disk(self, *, stalled: bool) -> None:
        """Whether a write has been waiting for longer than `stall_s`."""
        self._disk_stalled = stalled

    def on_beat(self, peer: PeerId, beat: Beat, *, now: float) -> list[SupportEffect]:
        p = self._partners.get(peer)
        if p is None or beat.epoch < p.epoch:
            return []
        if beat.epoch > p.epoch:
            self._on_restarted(peer, p, beat.epoch)
        if beat.seq <= p.heard:
            return self._take()  # late or repeated
        p.heard = beat.seq
        sent_at = self._sent_at(p, beat.echo, now) if beat.echo_epoch == self._epoch else None
        if sent_at is not None:
            p.given_until = now + self._settings.support_s
            self._set_given(peer, p, True)
            if beat.supports:
                p.got_until = max(p.got_until, sent_at + self._settings.support_s)
                self._set_got(peer, p, p.got_until > now)
                self.due = min(self.due, p.got_until)  # of an old beat, that is soon
        p.disputed = beat.believed != checksum(self._led(peer))
        if beat.slots is not None and checksum(self._believed(peer)) != beat.led:
            self._out.append(LeadsOnly(peer, frozenset((slot, term) for slot, term in beat.slots)))
        return self._take()

    def on_gone(self, peer: PeerId) -> list[SupportEffect]:
        """Its connection broke and it did not answer: what was promised to it need not be waited for.

        A promise that is ended early costs an election at most; nothing that is decided hangs on it.
        """
        p = self._partners.get(peer)
        if p is not None:
            self._set_given(peer, p, False)
            self._set_got(peer, p, False)
            p.given_until = p.got_until = -inf
            p.sent.clear()  # what it still has of ours on the way proves nothing
        return self._take()

    def on_suspected(self, peer: PeerId, suspected: bool) -> None:
        """Membership does not hear it, or does again. What that ends is ended by the next tick."""
        p = self._partners.get(peer)
        if p is not None:
            p.suspected = suspected
            self._look()

    def on_tick(self, *, now: float) -> list[SupportEffect]:
        late_s = now - self._beat_at
        if late_s > self._settings.stall_s:
            self._on_stalled(late_s)
        for peer, p in self._partners.items():
            if p.given and now >= self._given_until(p):
                self._set_given(peer, p, False)
            if p.got and now >= p.got_until:
                self._set_got(peer, p, False)
        if now >= self._beat_at:
            self._beat_at = now + self._settings.beat_s
            if not self._disk_stalled:
                self._beat(now)
        self._look()
        return self._take()

    # ----------------------------------------------------------------------------------------- how it is done
    def _beat(self, now: float) -> None:
        self._seq += 1
        for peer, p in self._partners.items():
            while p.sent and p.sent[0][1] <= now - self._settings.support_s:
                p.sent.popleft()
            p.sent.append((self._seq, now))
            led = self._led(peer)
            slots = [(int(slot), term) for slot, term in led] if p.disputed else None
            sums = checksum(led), checksum(self._believed(peer))
            beat = Beat(self._epoch, self._seq, p.heard, p.epoch, p.given, *sums, slots)
            self._out.append(SendBeat(peer, beat))

    def _sent_at(self, p: _Partner, echo: int, now: float) -> float | None:
        """When the echoed beat left; None for one that is not of ours or is too old to prove anything."""
        for seq, at in p.sent:
            if seq == echo:
                return at if now - at < self._settings.support_s else None
        return None

    def _on_restarted(self, peer: PeerId, p: _Partner, epoch: int) -> None:
        known = p.epoch > 0
        p.epoch, p.heard = epoch, 0
        p.sent.clear()
        if known:
            self._set_given(peer, p, False)
            self._set_got(peer, p, False)
            self._out.append(PeerRestarted(peer))

    def _on_stalled(self, late_s: float) -> None:
        """This host stood still: what it did not hear meanwhile says nothing about others."""
        for p in self._partners.values():
            p.given_until += late_s

    def _drop(self, peer: PeerId, p: _Partner) -> None:
        self._set_given(peer, p, False)
        self._set_got(peer, p, False)

    def _set_given(self, peer: PeerId, p: _Partner, given: bool) -> None:
        if p.given != given:
            p.given = given
            self._out.append(SupportGiven(peer, given))

    def _set_got(self, peer: PeerId, p: _Partner, got: bool) -> None:
        if p.got != got:
            p.got = got
            self._out.append(SupportGot(peer, got))

    def _take(self) -> list[SupportEffect]:
        out, self._out = self._out, []
        return out


@lru_cache(maxsize=512)  # asked for at every beat, of what changes only when leaders do
def checksum(led: Led) -> int:
    return zlib.crc32(repr(led).encode()) if led else 0
