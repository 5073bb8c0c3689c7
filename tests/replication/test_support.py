"""Support: proved both ways, ended on both sides, silent when the host could not lead."""

from __future__ import annotations

from meshq.ids import PeerId, Slot
from meshq.replication.support import Beat, LeadsOnly, Led, PeerRestarted, SendBeat, Support, SupportSettings
from meshq.replication.words import SupportGiven, SupportGot

A, B = PeerId(b"a" * 16), PeerId(b"b" * 16)
S = SupportSettings()


class Pair:
    """Two hosts and the two directions between them, a beat at a time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.led: dict[PeerId, Led] = {A: (), B: ()}
        self.believed: dict[PeerId, Led] = {A: (), B: ()}
        self.sides = {A: self.side(A, 1), B: self.side(B, 1)}
        self.cut: set[PeerId] = set()  # whose beats are lost
        self.seen: list[tuple[PeerId, object]] = []

    def side(self, peer: PeerId, epoch: int) -> Support:
        support = Support(
            epoch=epoch, now=self.now, led=lambda _: self.led[peer], believed=lambda _: self.believed[peer]
        )
        support.on_partners([B if peer == A else A])
        return support

    def beat(self, times: int = 1, *, who: str = "ab") -> list[object]:
        """What was seen meanwhile."""
        begin = len(self.seen)
        for _ in range(times):
            self.now += S.beat_s
            for peer, other in ((A, B), (B, A)):
                if peer.decode()[0] in who:
                    for effect in self.sides[peer].on_tick(now=self.now):
                        self.carry(peer, other, effect)
        return [effect for _, effect in self.seen[begin:]]

    def carry(self, peer: PeerId, other: PeerId, effect: object) -> None:
        if not isinstance(effect, SendBeat):
            self.seen.append((peer, effect))
        elif peer not in self.cut:
            for answer in self.sides[other].on_beat(peer, effect.beat, now=self.now):
                self.carry(other, peer, answer)


def test_support_is_given_when_both_directions_are_proved() -> None:
    pair = Pair()
    pair.beat(4)
    assert pair.sides[A].given() == pair.sides[A].got() == {B}
    assert pair.sides[B].given() == pair.sides[B].got() == {A}


def test_a_direction_that_never_worked_gives_no_support() -> None:
    pair = Pair()
    pair.cut.add(A)
    pair.beat(20)
    assert not pair.sides[A].given()
    assert not pair.sides[B].given()


def test_a_cut_in_one_direction_ends_it_on_both_sides() -> None:
    for cut in (A, B):
        pair = Pair()
        pair.beat(4)
        pair.cut.add(cut)
        pair.beat(int(2 * S.support_s / S.beat_s) + 2)
        for side in pair.sides.values():
            assert not side.given()
            assert not side.got()


def test_a_peer_is_not_sure_of_support_for_longer_than_the_other_gives_it() -> None:
    pair = Pair()
    pair.beat(4)
    pair.cut |= {A, B}
    while pair.sides[A].got():
        assert pair.sides[B].given()
        pair.beat()


def test_a_restart_is_seen_by_its_epoch_and_ends_support() -> None:
    pair = Pair()
    pair.beat(4)
    pair.sides[B] = pair.side(B, 2)
    seen = pair.beat()
    assert seen[:3] == [SupportGiven(B, False), SupportGot(B, False), PeerRestarted(B)]
    pair.beat(4)
    assert pair.sides[A].given() == {B}


def test_echoes_of_an_earlier_run_prove_nothing() -> None:
    pair = Pair()
    pair.beat(4)
    pair.sides[B] = pair.side(B, 2)
    pair.sides[B].on_tick(now=pair.now)
    late = Beat(1, 9, 1, 1, True, 0, 0)  # echoes beat 1 of B's first run
    assert pair.sides[B].on_beat(A, late, now=pair.now) == []


def test_an_older_epoch_is_not_listened_to() -> None:
    pair = Pair()
    pair.sides[B] = pair.side(B, 5)
    pair.beat(4)
    before = pair.sides[A].given()
    assert pair.sides[A].on_beat(B, Beat(4, 99, 1, 1, True, 0, 0), now=pair.now) == []
    assert pair.sides[A].given() == before


def test_a_stalled_disk_is_silent() -> None:
    pair = Pair()
    pair.beat(4)
    pair.sides[A].on_disk(stalled=True)
    pair.beat(int(S.support_s / S.beat_s) + 2)
    assert not pair.sides[B].given()
    pair.sides[A].on_disk(stalled=False)
    pair.beat(4)
    assert pair.sides[B].given() == {A}


def test_a_loop_that_stood_still_does_not_blame_the_others() -> None:
    pair = Pair()
    pair.beat(4)
    pair.now += 5.0
    effects = pair.sides[A].on_tick(now=pair.now)
    assert SupportGiven(B, False) not in effects


def test_a_broken_connection_ends_it_at_once() -> None:
    pair = Pair()
    pair.beat(4)
    assert pair.sides[A].on_gone(B) == [SupportGiven(B, False), SupportGot(B, False)]


def test_who_believes_in_another_leadership_is_sent_the_list() -> None:
    pair = Pair()
    pair.beat(4)
    pair.led[A] = ((Slot(1), 3),)
    pair.believed[B] = ((Slot(1), 2), (Slot(2), 2))
    assert LeadsOnly(A, frozenset({(1, 3)})) in pair.beat(3)
    pair.believed[B] = pair.led[A]
    pair.beat(2)
    assert not [e for e in pair.beat(4) if isinstance(e, LeadsOnly)]


def test_a_suspicion_shortens_the_wait_of_who_hears_no_beats() -> None:
    pair = Pair()
    pair.beat(4)
    pair.cut = {A, B}
    pair.sides[A].on_suspected(B, True)
    times = round(S.suspect_s / S.beat_s) + 1
    assert SupportGiven(B, False) in pair.beat(times)
    assert pair.sides[A].given() == set() and pair.sides[B].given() == {A}


def test_a_suspicion_alone_takes_nothing_away() -> None:
    """As when datagrams are blocked, and connections are not."""
    pair = Pair()
    pair.beat(4)
    pair.sides[A].on_suspected(B, True)
    assert not [x for x in pair.beat(30) if isinstance(x, SupportGiven)]
    pair.cut = {A, B}
    pair.sides[A].on_suspected(B, False)
    pair.beat(round(S.suspect_s / S.beat_s) + 1)
    assert pair.sides[A].given() == {B}, "and one that is taken back is none"
