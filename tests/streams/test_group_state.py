"""What a group's state comes to at worst: its row always travels in a snapshot."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from meshq.limits import GROUP_PENDING_MAX, GROUP_REASONS_MAX, MESSAGE_BYTES_MAX, REASON_CHARS_MAX
from meshq.peer.core.pieces import encode_rows
from meshq.streams.groups.state import GRAVES_MAX, MAX_DELIVER, REJECTED, GroupState, decode_state
from meshq.streams.groups.words import LEADER, Bury, Grant, Lapse, Open, Settle, Verdict

PART = 8  # of the records of the largest state are made, for it takes long
FAR = 1 << 40  # offsets and indices as they are after long


def reason(n: int) -> str:
    return "\U0001f600" * (REASON_CHARS_MAX - 6) + f"{n:06d}"


def granted(state: GroupState, count: int = 1) -> int:
    """To a member of its own, under a lease of its own, which is its offset."""
    first = state.next
    state.apply(Grant(first.to_bytes(16, "big"), ((first, first + count),)), first)
    return first


def rejected(state: GroupState, why: str, count: int = 1, verdict: Verdict = Verdict.REJECT) -> None:
    first = granted(state, count)
    state.apply(Settle(verdict, LEADER, ((first, first + count, first),), 0, why), 0)


def test_the_largest_row_is_far_below_what_a_message_holds() -> None:
    state = GroupState(Open(3, 1_000, 0, FAR))
    for n in range(2 * GRAVES_MAX):
        rejected(state, reason(n))
        state.apply(Bury(((state.next - 1, state.next),)), 0)
        state.apply(Settle(Verdict.ACK, LEADER, ((*(first := granted(state), first + 1), first),)), 0)
    for n in range(GROUP_PENDING_MAX // 2 // PART):
        rejected(state, reason(n))
        granted(state)
    assert (state.pending, len(state.graves)) == (GROUP_PENDING_MAX // PART, GRAVES_MAX)
    kept = {why.reason for _, _, why in state.dying.runs()}
    assert kept == {*(reason(n) for n in range(GROUP_REASONS_MAX)), REJECTED}
    assert PART * len(encode_rows([(b"C" * 85, state.encode())], then=0)) < MESSAGE_BYTES_MAX // 2


steps = st.lists(
    st.one_of(
        st.tuples(st.just("reject"), st.integers(0, GROUP_REASONS_MAX + 20), st.integers(1, 3)),
        st.tuples(st.just("nack"), st.just(0), st.integers(1, 3)),
        st.tuples(st.just("bury"), st.integers(0, 200), st.integers(1, 40)),
        st.tuples(st.just("expire"), st.integers(0, 200), st.just(0)),
    ),
    max_size=150,
)


@settings(max_examples=25)
@given(steps, st.integers(0, GROUP_REASONS_MAX))
def test_few_reasons_are_kept_and_what_is_read_from_disk_keeps_the_same_ones(
    made: list[tuple[str, int, int]], before: int
) -> None:
    state = GroupState(Open(1, 1_000, 1, 0))
    for n in range(before):
        rejected(state, str(1_000 + n))
    for what, n, count in made:
        if what == "reject":
            rejected(state, str(n), count)
        elif what == "nack":  # handed out as often as may be
            rejected(state, "", count, Verdict.NACK)
        elif what == "bury":
            state.apply(Bury(((n, n + count),)), 0)
        else:
            state.expire(max(state.low, n))
            state.apply(Lapse(), 0)
    reasons = {why.reason for _, _, why in state.dying.runs()}
    assert len(reasons - {REJECTED, MAX_DELIVER}) <= GROUP_REASONS_MAX
    again = decode_state(state.encode())
    for one in (state, again):
        for n in range(GROUP_REASONS_MAX + 3):
            rejected(one, f"new {n}")
    assert again.encode() == state.encode(), "the same are kept from here on"
