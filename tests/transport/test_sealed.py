"""A datagram is read when it opens and is new, and otherwise dropped with a reason."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshq.errors import UsageError
from meshq.ids import MeshId, PeerId
from meshq.limits import DATAGRAM_BYTES_MAX, PEERS_MAX, REPLAY_WINDOW
from meshq.transport import sealed
from meshq.transport.sealed import Dropped, Opener, Reason, Sealer

MESH = MeshId(b"m" * 16)
A, B = PeerId(b"a" * 16), PeerId(b"b" * 16)
KEY, OTHER_KEY = b"k" * 32, b"o" * 32


def sealer(
    *,
    keys: dict[int, bytes] | None = None,
    active: int = 1,
    mesh: MeshId = MESH,
    sender: PeerId = A,
    boot: int = 1,
) -> Sealer:
    return Sealer(keys or {1: KEY}, active, mesh, sender, boot)


def opener(keys: dict[int, bytes] | None = None) -> Opener:
    return Opener(keys or {1: KEY}, MESH, B)


def reason_of(o: Opener, datagram: bytes) -> Reason:
    with pytest.raises(Dropped) as caught:
        o.open(datagram)
    return caught.value.reason


def test_what_was_sealed_opens_with_sender_epoch_and_sequence() -> None:
    s, o = sealer(boot=7), opener()
    first, second = o.open(s.seal(b"one")), o.open(s.seal(b"two"))
    assert (first.sender, first.boot_epoch, first.sequence, first.payload) == (A, 7, 1, b"one")
    assert (second.sequence, second.payload) == (2, b"two")
    assert not o.dropped


def test_the_largest_payload_fills_the_datagram_and_one_more_byte_is_refused() -> None:
    datagram = sealer().seal(b"x" * sealed.PAYLOAD_BYTES_MAX)
    assert len(datagram) == DATAGRAM_BYTES_MAX
    assert len(opener().open(datagram).payload) == sealed.PAYLOAD_BYTES_MAX
    with pytest.raises(UsageError):
        sealer().seal(b"x" * (sealed.PAYLOAD_BYTES_MAX + 1))


def test_neither_sender_nor_mesh_nor_payload_is_readable() -> None:
    datagram = sealer().seal(b"payload")
    for secret in (MESH, A, b"payload"):
        assert secret not in datagram


def test_a_change_of_any_byte_is_noticed_and_leaves_the_window_alone() -> None:
    datagram = sealer().seal(b"hello")
    o = opener()
    for place in range(len(datagram)):
        changed = bytearray(datagram)
        changed[place] ^= 1
        assert reason_of(o, bytes(changed)) in (Reason.FOREIGN, Reason.FOREIGN_KEY, Reason.FORGED)
    assert o.open(datagram).payload == b"hello"


def test_a_cut_or_lengthened_datagram_is_dropped() -> None:
    datagram = sealer().seal(b"hello")
    o = opener()
    for size in range(len(datagram)):
        assert reason_of(o, datagram[:size]) in (Reason.SHORT, Reason.FORGED)
    assert reason_of(o, datagram + b"\0") is Reason.FORGED
    assert reason_of(o, b"\0" * (DATAGRAM_BYTES_MAX + 1)) is Reason.OVERSIZED


def test_another_mesh_another_key_and_an_unknown_key_are_dropped() -> None:
    o = opener()
    assert reason_of(o, sealer(mesh=MeshId(b"n" * 16)).seal(b"")) is Reason.FORGED
    assert reason_of(o, sealer(keys={1: OTHER_KEY}).seal(b"")) is Reason.FORGED
    assert reason_of(o, sealer(keys={2: KEY}, active=2).seal(b"")) is Reason.FOREIGN_KEY
    assert o.dropped == {Reason.FORGED: 2, Reason.FOREIGN_KEY: 1}


def test_ones_own_datagram_come_back_is_dropped() -> None:
    assert reason_of(opener(), sealer(sender=B).seal(b"")) is Reason.OWN


def test_a_replay_is_dropped_and_reordering_within_the_window_is_not() -> None:
    s, o = sealer(), opener()
    datagrams = [s.seal(b"%d" % n) for n in range(REPLAY_WINDOW)]
    for datagram in reversed(datagrams):
        o.open(datagram)
    for datagram in datagrams:
        assert reason_of(o, datagram) is Reason.REPLAYED
    o.open(s.seal(b"next"))
    assert reason_of(o, datagrams[0]) is Reason.TOO_OLD


def test_a_lower_boot_epoch_is_dropped_and_a_higher_one_begins_anew() -> None:
    before, after, o = sealer(boot=1), sealer(boot=2), opener()
    o.open(before.seal(b""))
    late = before.seal(b"")
    assert o.open(after.seal(b"")).sequence == 1
    assert reason_of(o, late) is Reason.OLD_BOOT


def test_keys_are_rotated_without_losing_what_was_seen() -> None:
    s, o = sealer(), opener()
    old = s.seal(b"old")
    o.open(old)
    o.use({1: KEY, 2: OTHER_KEY})
    s.use({1: KEY, 2: OTHER_KEY}, 2)
    assert o.open(s.seal(b"new")).sequence == 2
    assert reason_of(o, old) is Reason.REPLAYED
    o.use({2: OTHER_KEY})
    assert reason_of(o, old) is Reason.FOREIGN_KEY
    with pytest.raises(UsageError):
        s.use({1: KEY}, 2)
    with pytest.raises(UsageError):
        o.use({1: b"short"})


def test_senders_are_bounded() -> None:
    o = opener()
    peers = [PeerId(n.to_bytes(16, "big")) for n in range(PEERS_MAX + 1)]
    for peer in peers[:-1]:
        o.open(sealer(sender=peer).seal(b""))
    assert reason_of(o, sealer(sender=peers[-1]).seal(b"")) is Reason.TOO_MANY_SENDERS
    o.open(sealer(sender=peers[0], boot=99).seal(b""))


class DumbWindow:
    """The window as a set, to compare with."""

    def __init__(self) -> None:
        self.epoch = -1
        self.seen: set[int] = set()

    def accepts(self, epoch: int, sequence: int) -> bool:
        if epoch > self.epoch:
            self.epoch, self.seen = epoch, set()
        good = (
            epoch == self.epoch
            and sequence not in self.seen
            and (not self.seen or sequence > max(self.seen) - REPLAY_WINDOW)
        )
        if good:
            self.seen.add(sequence)
        return good


SEQUENCES = st.one_of(
    st.integers(0, 8),
    st.integers(REPLAY_WINDOW - 4, REPLAY_WINDOW + 4),
    st.integers(2 * REPLAY_WINDOW - 4, 2 * REPLAY_WINDOW + 4),
    st.integers(2**64 - 4, 2**64 - 1),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), SEQUENCES), max_size=60))
def test_the_window_accepts_what_a_plain_set_would(arrivals: list[tuple[int, int]]) -> None:
    window, dumb = sealed._Window(), DumbWindow()
    for epoch, sequence in arrivals:
        try:
            window.admit(epoch, sequence)
            accepted = True
        except Dropped:
            accepted = False
        assert accepted == dumb.accepts(epoch, sequence)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_anything_at_all_is_only_dropped(datagram: bytes) -> None:
    with pytest.raises(Dropped):
        opener().open(datagram)
    with pytest.raises(Dropped):
        opener().open(b"MQG\x01\x00\x00\x00\x01" + datagram)
