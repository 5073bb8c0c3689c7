"""The machine by itself: events in, effects out, time moved by hand."""

from __future__ import annotations

import random
from typing import Any, TypeVar

from meshq import batch as batches
from meshq.batch import RawRecord, seal
from meshq.client.core import ClientCore
from meshq.client.credit import Flow, share
from meshq.client.facts import (
    AskRequested,
    BatchSealed,
    CloseLink,
    Consumed,
    Doubt,
    Effect,
    Event,
    Fail,
    Garbled,
    Hand,
    HomeWanted,
    LinkDown,
    LinkUp,
    OpenLink,
    Received,
    Seed,
    Send,
    Settle,
    Start,
    SubscribeRequested,
    Ticked,
    TopicWanted,
)
from meshq.errors import (
    DiskFull,
    Forbidden,
    NotOwner,
    OutcomeUnknown,
    OutOfOrderSequence,
    Overloaded,
    TooLarge,
    Unavailable,
    UnknownProducer,
)
from meshq.messages import (
    EARLIEST,
    LATEST,
    OFFSET,
    TIMESTAMP,
    Accepted,
    Credit,
    Deliver,
    DeliverItem,
    Hello,
    PeerRoute,
    Ping,
    Pong,
    Produce,
    Produced,
    Read,
    ReadStarted,
    Resolve,
    Routes,
    Started,
    TopicInfo,
    TopicsChanged,
    Unread,
    Watch,
    Welcome,
    failure,
)

MESH = b"m" * 16
A, B = b"a" * 32, b"b" * 32
INFO = TopicInfo("t", b"topic id 16 byte", 1, 5, 1 << 20)
T = TypeVar("T")


class Machine:
    """A core whose link to A is home; `routes` says who owns all slots."""

    def __init__(self, *, home: bool = True) -> None:
        seeds = [Seed(A, ("tcp://a:1",), "a"), Seed(B, ("tcp://b:1",), "b")]
        self.core = ClientCore(seeds, mesh_id=MESH, name="app", rng=random.Random(3))
        self.now = 100.0
        self.effects: list[Effect] = []
        self.do(Ticked())
        if home:
            self.up(A)
            self.routes(0)
            self.effects.clear()

    def do(self, event: Event) -> list[Effect]:
        new = self.core.handle(event, now=self.now)
        self.effects += new
        return new

    def up(self, key: bytes) -> None:
        self.do(LinkUp(key))
        self.hear(key, Welcome(1, MESH, bytes(16), bytes(16), 1_000))

    def hear(self, key: bytes, message: Any, *payloads: bytes) -> list[Effect]:
        return self.do(Received(key, message, payloads))

    def routes(self, owner: int, version: int = 1) -> list[Effect]:
        peers = [PeerRoute(k[:16], k[:1].decode(), k, [f"{k[:1].decode()}:1"]) for k in (A, B)]
        return self.hear(A, Routes(version, peers, [owner] * 8))

    def wait(self, seconds: float) -> list[Effect]:
        """Time passes; the machine is ticked whenever it wants to be."""
        end, new = self.now + seconds, []
        while (deadline := self.core.deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            new += self.do(Ticked())
        self.now = end
        return new

    def seal(self, ticket: int, count: int = 1, seconds: float = 30.0) -> list[Effect]:
        body = seal([RawRecord(None, b"%d" % ticket)] * count, base_timestamp_ms=0)
        return self.do(BatchSealed(ticket, 1, INFO, 0, body, self.now + seconds, in_flight=8))


def sent(effects: list[Effect], kind: type[T]) -> list[T]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


def of(effects: list[Effect], kind: type[T]) -> list[T]:
    return [e for e in effects if isinstance(e, kind)]


def copies(effects: list[Effect]) -> list[tuple[int, bytes, int]]:
    """What was published: (request, producer id, first sequence)."""
    found = []
    for e in effects:
        if isinstance(e, Send) and isinstance(e.message, Produce):
            for item, data in zip(e.message.items, e.payloads, strict=True):
                header = batches.read_header(data)
                found.append((item.request, header.producer_id, header.first_sequence))
    return found


# ----------------------------------------------------------------------------------------------------- links
def test_says_hello_and_waits_for_the_welcome() -> None:
    m = Machine(home=False)
    assert m.effects == [OpenLink(A, ("tcp://a:1",))]
    assert m.do(HomeWanted(1, m.now + 10)) == []
    assert m.do(LinkUp(A)) == [Send(A, Hello(1, 1, MESH, "app"))]
    assert m.hear(A, Welcome(1, MESH, bytes(16), bytes(16), 0)) == [Settle(1, None)]


def test_tries_the_next_peer_beside_a_silent_one_and_at_once_after_a_refusal() -> None:
    m = Machine(home=False)
    assert m.wait(0.31) == [OpenLink(B, ("tcp://b:1",))]
    m = Machine(home=False)
    assert m.do(LinkDown(A, "nobody listens")) == [OpenLink(B, ("tcp://b:1",))]


def test_a_lost_home_is_replaced_at_once_by_a_link_that_is_up() -> None:
    m = Machine(home=False)
    m.wait(0.31)
    m.up(A)
    m.up(B)
    m.do(TopicWanted(1, "t", m.now + 30))
    effects = m.do(LinkDown(A, "lost"))
    assert [(e.server_key, type(e.message)) for e in of(effects, Send)] == [(B, Resolve)]


def test_pings_every_five_seconds_and_gives_up_after_ten_of_silence() -> None:
    m = Machine()
    (ping,) = sent(m.wait(5.1), Ping)
    m.hear(A, Pong(ping.token))
    effects = m.wait(10.1)
    assert len(sent(effects, Ping)) >= 1
    assert CloseLink(A) in effects
    assert OpenLink(B, ("tcp://b:1",)) in effects


def test_what_cannot_be_read_closes_the_link() -> None:
    m = Machine()
    assert CloseLink(A) in m.do(Garbled(A, "nonsense"))
    assert m.hear(A, Pong(1)) == []


def test_a_link_to_an_owner_is_opened_when_needed_and_closed_after_a_minute_of_rest() -> None:
    m = Machine()
    m.routes(1, version=2)
    assert of(m.seal(1), OpenLink) == [OpenLink(B, ("tcp://b:1",))]
    m.do(LinkUp(B))
    ((request, _, _),) = copies(m.hear(B, Welcome(1, MESH, bytes(16), bytes(16), 0)))
    assert m.hear(B, Produced([Accepted(request, 0, 1)])) == [Settle(1, Accepted(request, 0, 1))]
    for _ in range(13):
        effects = m.wait(5.0)
        for e in of(effects, Send):
            m.hear(e.server_key, Pong(0))
    assert CloseLink(B) in m.effects and CloseLink(A) not in m.effects


def test_routes_never_go_back() -> None:
    m = Machine()
    m.routes(0, version=7)
    m.routes(1, version=6)
    assert [e.server_key for e in of(m.seal(1), Send)] == [A]


# ------------------------------------------------------------------------------------------------- publishing
def test_batches_go_in_sequence_and_no_more_than_the_window() -> None:
    m = Machine()
    for ticket in range(10):
        m.seal(ticket, count=3)
    found = copies(m.effects)
    assert [first for _, _, first in found] == [0, 3, 6, 9, 12, 15, 18, 21]
    assert len({producer for _, producer, _ in found}) == 1
    # The receipt of the third frees nothing while the first is unresolved: its repeat must find its receipt.
    assert copies(m.hear(A, Produced([Accepted(found[2][0], 6, 1)]))) == []
    effects = m.hear(A, Produced([Accepted(found[0][0], 0, 1), Accepted(found[1][0], 3, 1)]))
    assert [first for _, _, first in copies(effects)] == [24, 27]


def test_batches_that_wait_for_a_link_travel_in_one_message() -> None:
    m = Machine(home=False)
    for ticket in range(5):
        m.seal(ticket)
    m.up(A)
    (message,) = sent(m.routes(0), Produce)
    assert len(message.items) == 5


def test_after_a_loss_the_same_bytes_go_again_under_the_same_sequence() -> None:
    m = Machine()
    m.seal(1)
    m.seal(2)
    before = copies(m.effects)
    m.do(LinkDown(A, "lost"))
    m.effects.clear()
    m.wait(2.0)
    m.up(A)
    after = copies(m.effects)
    assert [c[1:] for c in after] == [c[1:] for c in before]
    assert not {c[0] for c in after} & {c[0] for c in before}
    assert m.hear(A, Produced([Accepted(before[0][0], 0, 1)])) == []  # of a copy that was written off


def test_the_pipeline_behind_a_refused_batch_is_sent_again_in_order() -> None:
    m = Machine()
    for ticket in range(3):
        m.seal(ticket)
    first, second, third = copies(m.effects)
    m.hear(A, failure(first[0], Overloaded("busy", retry_after_ms=1_000)))
    m.hear(A, failure(second[0], UnknownProducer("")))
    assert copies(m.wait(2.0)) == []  # an answer is still on its way
    m.hear(A, failure(third[0], OutOfOrderSequence("")))
    again = copies(m.effects)[3:] + copies(m.wait(1.0))
    assert [c[1:] for c in again] == [first[1:], second[1:], third[1:]]
    assert of(m.effects, Fail) == []


def test_a_window_of_batches_that_is_sent_away_is_one_failed_attempt() -> None:
    """Each refusal doubled the pause: a window of sixteen sent away once waited for two seconds."""
    m = Machine()
    for ticket in range(8):
        m.seal(ticket)
    for request, _, _ in copies(m.effects):
        m.hear(A, failure(request, NotOwner("another leads it", retry_after_ms=20)))
    assert len(copies(m.wait(0.1))) == 8


def test_overloaded_is_given_the_time_it_asked_for() -> None:
    m = Machine()
    m.seal(1)
    ((request, _, _),) = copies(m.effects)
    m.hear(A, failure(request, Overloaded("busy", retry_after_ms=3_000)))
    m.routes(0, version=3)
    assert copies(m.wait(2.9)) == []
    assert len(copies(m.wait(0.2))) == 1


def test_a_batch_that_waited_for_a_full_disk_in_vain_says_so() -> None:
    """Its owner's answer to the batch before it is why it never left."""
    m = Machine()
    m.seal(1, seconds=1)
    ((request, _, _),) = copies(m.effects)
    m.hear(A, failure(request, DiskFull("at its watermark", retry_after_ms=5_000)))
    assert [type(f.error) for f in of(m.wait(1.0), Fail)] == [DiskFull]
    m.seal(2, seconds=1)
    (fail,) = of(m.wait(1.0), Fail)
    assert fail.ticket == 2 and isinstance(fail.error, DiskFull) and "at its watermark" in str(fail.error)


def test_never_sent_is_unavailable_and_sent_is_unknown() -> None:
    m = Machine()
    m.routes(1, version=2)
    m.seal(1, seconds=5)
    (fail,) = of(m.wait(5.0), Fail)
    assert isinstance(fail.error, Unavailable) and "b at tcp://b:1" in str(fail.error)
    m.routes(0, version=3)
    m.seal(2, seconds=5)
    ((request, _, _),) = copies(m.effects)
    m.hear(A, Pong(0))
    (doubt,) = of(m.wait(5.0), Doubt)
    assert isinstance(doubt.error, OutcomeUnknown)
    assert m.hear(A, Produced([Accepted(request, 9, 1)])) == [Settle(2, Accepted(request, 9, 1))]


def test_a_batch_refused_for_good_fails_and_those_behind_it_go_on_under_a_fresh_id() -> None:
    m = Machine()
    for ticket in range(3):
        m.seal(ticket)
    first, second, third = copies(m.effects)
    m.effects.clear()
    m.hear(A, failure(first[0], TooLarge("too large")))
    (fail,) = of(m.effects, Fail)
    assert fail.ticket == 0 and isinstance(fail.error, TooLarge)
    m.hear(A, failure(second[0], UnknownProducer("")))
    m.hear(A, failure(third[0], UnknownProducer("")))
    again = copies(m.effects)
    assert [c[2] for c in again] == [0, 1]
    assert {c[1] for c in again}.isdisjoint({first[1]})


def test_a_forgotten_producer_goes_on_under_a_fresh_id_unless_a_copy_is_unaccounted_for() -> None:
    m = Machine()
    m.seal(1)
    ((request, old, _),) = copies(m.effects)
    m.hear(A, Produced([Accepted(request, 0, 1)]))
    m.effects.clear()
    m.seal(2)
    ((request, _, first),) = copies(m.effects)
    assert first == 1
    ((_, new, first),) = copies(m.hear(A, failure(request, UnknownProducer(""))))
    assert first == 0 and new != old

    m = Machine()
    m.seal(1)
    ((request, _, _),) = copies(m.effects)
    m.hear(A, Produced([Accepted(request, 0, 1)]))
    m.seal(2)
    m.do(LinkDown(A, "lost"))
    m.effects.clear()
    m.wait(1.0)
    m.up(A)
    ((request, _, _),) = copies(m.effects)
    (fail,) = of(m.hear(A, failure(request, UnknownProducer(""))), Fail)
    assert fail.ticket == 2 and isinstance(fail.error, OutcomeUnknown)


# --------------------------------------------------------------------------------------------------- asking
def test_an_administrative_request_is_sent_once() -> None:
    m = Machine()
    m.do(AskRequested(1, "topic.create", {"name": "x"}, m.now + 30))
    (fail,) = of(m.do(LinkDown(A, "lost")), Fail)
    assert isinstance(fail.error, OutcomeUnknown)
    m.do(AskRequested(2, "topic.create", {}, m.now + 5))
    (fail,) = of(m.wait(5.0), Fail)
    assert isinstance(fail.error, Unavailable)


# -------------------------------------------------------------------------------------------------- reading
def delivery(base: int, count: int, first: int | None = None) -> tuple[Deliver, bytes]:
    data = batches.frame(seal([RawRecord(None, b"v")] * count, base_timestamp_ms=0))
    item = DeliverItem(INFO.topic_id, 0, base, 77, base if first is None else first)
    return Deliver(9, [item]), data


def reading(start: Start) -> Machine:
    m = Machine()
    m.do(SubscribeRequested(9, "t", start, 1 << 20, 10_000, 1))
    (watch,) = sent(m.effects, Watch)
    m.hear(A, TopicsChanged(watch.request, 500, [INFO]))
    return m


def test_reads_at_the_owner_from_where_it_was_asked_to_with_credit() -> None:
    m = reading(Start(EARLIEST))
    (read,) = sent(m.effects, Read)
    assert [(i.start, i.value, i.version) for i in read.items] == [(EARLIEST, 0, 5)]
    assert sent(m.effects, Credit) == [Credit(9, 1 << 20, 10_000)]
    assert Settle(1, None) in m.hear(A, ReadStarted(9, [Started(INFO.topic_id, 0, 40, 50)]))
    (hand,) = of(m.hear(A, *delivery(38, 5, first=40)), Hand)
    assert (hand.base_offset, hand.first, hand.records, hand.timestamp_ms) == (38, 40, 3, 77)


def test_goes_on_at_its_position_and_takes_nothing_twice() -> None:
    m = reading(Start(EARLIEST))
    m.hear(A, ReadStarted(9, [Started(INFO.topic_id, 0, 0, 9)]))
    assert len(of(m.hear(A, *delivery(0, 4)), Hand)) == 1
    assert of(m.hear(A, *delivery(0, 4)), Hand) == []
    m.do(LinkDown(A, "lost"))
    m.effects.clear()
    m.wait(1.0)
    m.up(A)
    m.wait(3.0)
    (read,) = sent(m.effects, Read)
    assert [(i.start, i.value) for i in read.items] == [(OFFSET, 4)]


def test_a_gap_is_not_taken_but_read_again_unless_the_owner_said_so() -> None:
    m = reading(Start(EARLIEST))
    m.hear(A, ReadStarted(9, [Started(INFO.topic_id, 0, 0, 9)]))
    m.effects.clear()
    assert of(m.hear(A, *delivery(5, 4)), Hand) == []
    assert sent(m.effects, Unread) == [Unread(9, [(INFO.topic_id, 0)])]
    m.hear(A, Pong(0))
    (read,) = sent(m.wait(1.0), Read)
    assert read.items[0].value == 0
    m.hear(A, ReadStarted(9, [Started(INFO.topic_id, 0, 5, 9)]))  # what was before is not there any more
    assert len(of(m.hear(A, *delivery(5, 4)), Hand)) == 1


def test_moved_slots_are_read_at_their_new_owner() -> None:
    m = reading(Start(EARLIEST))
    m.hear(A, ReadStarted(9, [Started(INFO.topic_id, 0, 3, 9)]))
    m.effects.clear()
    m.routes(1, version=2)
    m.up(B)
    (read,) = [e for e in of(m.effects, Send) if isinstance(e.message, Read)]
    assert read.server_key == B and read.message.items[0].value == 3  # type: ignore[attr-defined]


def starts(effects: list[Effect]) -> list[tuple[bytes, int, int]]:
    """Of every partition asked for: where, the kind of start and its value."""
    return [
        (e.server_key, i.start, i.value)
        for e in of(effects, Send)
        if isinstance(e.message, Read)
        for i in e.message.items
    ]


def test_latest_is_the_time_of_subscribing_for_an_owner_that_is_not_asked_at_once() -> None:
    assert starts(reading(Start(LATEST)).effects) == [(A, LATEST, 0)]
    m = Machine()
    m.routes(1, version=2)
    m.do(SubscribeRequested(9, "t", Start(LATEST), 1 << 20, 10_000, 1))
    (watch,) = sent(m.effects, Watch)
    m.hear(A, TopicsChanged(watch.request, 500, [INFO]))
    m.wait(3.0)
    m.up(B)
    assert starts(m.effects) == [(B, TIMESTAMP, 500)], "records stored since then are not missed"


def test_latest_that_was_asked_for_in_vain_goes_on_from_the_time_of_subscribing() -> None:
    m = reading(Start(LATEST))
    m.effects.clear()
    m.routes(1, version=2)  # moved before its owner named an offset
    m.up(B)
    assert starts(m.effects) == [(B, TIMESTAMP, 500)]


def home_after(m: Machine, version: int, topics: list[TopicInfo]) -> list[Effect]:
    """A is lost; B is home, with its registry at this version, and answers the watch."""
    m.do(LinkDown(A, "lost"))
    m.wait(3.0)
    m.effects.clear()
    m.up(B)
    m.hear(B, Routes(version, [PeerRoute(B[:16], "b", B, ["b:1"])], [0] * 8))
    watch = sent(m.effects, Watch)[-1]
    return m.hear(B, TopicsChanged(watch.request, 600, topics))


def test_a_home_with_an_older_registry_takes_no_topic_away() -> None:
    m = reading(Start(EARLIEST))
    m.hear(A, ReadStarted(9, [Started(INFO.topic_id, 0, 0, 9)]))
    m.hear(A, *delivery(0, 4))
    home_after(m, INFO.version - 1, [])
    assert starts(m.effects)[-1] == (B, OFFSET, 4)
    assert not sent(m.effects, Unread)


def test_a_topic_that_went_and_came_back_goes_on_where_it_was() -> None:
    m = reading(Start(EARLIEST))
    m.hear(A, ReadStarted(9, [Started(INFO.topic_id, 0, 0, 9)]))
    m.hear(A, *delivery(0, 4))
    home_after(m, INFO.version, [])
    m.effects.clear()
    m.wait(1.0)
    assert not starts(m.effects), "this home knows of all topics there were: it is gone"
    (watch,) = m.core._reading._watches
    m.hear(B, TopicsChanged(watch, 700, [INFO]))
    assert starts(m.effects) == [(B, OFFSET, 4)]


def test_credit_is_given_again_when_half_is_taken() -> None:
    m = reading(Start(EARLIEST))
    m.hear(A, ReadStarted(9, [Started(INFO.topic_id, 0, 0, 0)]))
    m.effects.clear()
    m.hear(A, *delivery(0, 6_000))
    assert sent(m.effects, Credit) == []
    (hand,) = of(m.effects, Hand)
    m.do(Consumed(9, A, len(hand.payload), 6_000))
    assert sent(m.effects, Credit) == [Credit(9, len(hand.payload), 6_000)]


def test_a_refused_watch_ends_the_subscription() -> None:
    m = Machine()
    m.do(SubscribeRequested(9, "t", Start(EARLIEST), 1 << 20, 10_000, 1))
    (watch,) = sent(m.effects, Watch)
    effects = m.hear(A, failure(watch.request, Forbidden("not you")))
    assert [type(e).__name__ for e in effects] == ["EndSubscription", "Fail"]


def test_a_share_of_credit_has_a_floor_and_a_batch_may_overdraw_it() -> None:
    assert share(8 << 20, 4, 256 << 10) == 2 << 20
    assert share(8 << 20, 100, 256 << 10) == 256 << 10
    flow = Flow()
    assert flow.grant(1_000, 10) == (1_000, 10)
    flow.on_pushed(5_000, 1, keep=True)
    assert flow.grant(1_000, 10) is None
    flow.on_taken(5_000, 1)
    assert flow.grant(1_000, 10) == (5_000, 1)
    assert flow.open_bytes == 1_000
