from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.security.authorization import FIRST_CHARACTERS, Principal
from meshq.security.certificates import Capability, issue, verify
from meshq.topics import matches

from .world import AUTHORITY, FIRST, JOINER, NOW, SERIAL, certify

EVERY = [bytes([c]) for c in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-"]


def subscriber(*patterns: str) -> Principal:
    return Principal("app", "client", b"k" * 32, tuple(Capability("subscribe", p) for p in patterns))


ADMIN = Principal("admin", "client", b"k" * 32, admin=True)


def test_a_verb_permits_itself_only() -> None:
    app = Principal(
        "app", "client", b"k" * 32, (Capability("publish", "in.#"), Capability("subscribe", "out.*"))
    )
    assert app.may_publish("in.a.b") and not app.may_publish("out.a") and not app.may_publish("inn")
    assert app.may_read("out.a") and not app.may_read("in.a") and not app.may_read("out.a.b")
    assert app.may_subscribe("out.*") and app.may_subscribe("out.a") and not app.may_subscribe("out.#")
    assert not app.may_subscribe("#") and not app.may_subscribe("in.a")


def test_nobody_without_a_capability_does_anything() -> None:
    nobody = Principal("app", "client", b"k" * 32)
    assert not nobody.may_publish("a") and not nobody.may_read("a") and not nobody.may_subscribe("a")
    assert nobody.feed_subscriptions(b"a.") == nobody.feed_subscriptions(b"") == []


def test_meshqs_own_topics_are_reached_by_naming_their_word_only() -> None:
    everything = subscriber("#", "*.#")
    assert not everything.may_read("_dead.g.t") and not everything.may_subscribe("_dead.#")
    assert everything.feed_subscriptions(b"_dead.") == everything.feed_subscriptions(b"\x01_dead.g\x00") == []
    named = subscriber("_dead.#")
    assert named.may_read("_dead.g.t") and named.may_subscribe("_dead.g.*")
    assert named.feed_subscriptions(b"_dead.") == [b"_dead."]
    assert named.feed_subscriptions(b"_dead") == named.feed_subscriptions(b"_") == []


def test_a_certificate_makes_a_principal() -> None:
    client = issue(
        AUTHORITY,
        kind="client",
        name="app",
        curve_key=JOINER.curve_public,
        serial=SERIAL,
        now=NOW,
        capabilities=[("publish", "a")],
    )
    app = Principal.of(verify(client, AUTHORITY.key, NOW))
    assert (app.name, app.kind, app.key, app.admin) == ("app", "client", JOINER.curve_public, False)
    assert app.may_publish("a") and not app.may_read("a") and app.peer_id is None
    peer = Principal.of(verify(certify(FIRST), AUTHORITY.key, NOW))
    assert peer.admin and peer.peer_id == FIRST.peer_id and peer.may_publish("anything")


@pytest.mark.parametrize(("pattern", "admin"), [("#", True), ("a.#", False)])
def test_admin_on_everything_makes_an_administrator(pattern: str, admin: bool) -> None:
    signed = issue(
        AUTHORITY,
        kind="client",
        name="ops",
        curve_key=JOINER.curve_public,
        serial=SERIAL,
        now=NOW,
        capabilities=[("admin", pattern)],
    )
    assert Principal.of(verify(signed, AUTHORITY.key, NOW)).admin is admin


@pytest.mark.parametrize(
    ("pattern", "prefix", "approved"),
    [
        # A plain prefix needs the rest permitted: only `.#` gives it, and only once its words are complete.
        ("plant.#", b"plant.", True),
        ("plant.#", b"plant.line1.te", True),
        ("plant.#", b"plant", False),  # `plants` begins with it too
        ("plant.#", b"plan", False),
        ("plant.#", b"other.", False),
        ("plant.*.#", b"plant.line1.", True),
        ("plant.*.temp", b"plant.line1.temp", False),
        ("plant.line1", b"plant.line1", False),  # an exact topic is not a prefix
        ("plant.*", b"plant.", False),
        ("#", b"p", True),
        ("#", b"plant.line1", True),
        ("#", b"_", False),
        # The framed form of one topic ends in NUL, so an exact capability will do.
        ("plant.line1", b"\x01plant.line1\x00", True),
        ("plant.*", b"\x01plant.line1\x00", True),
        ("plant.*", b"\x01plant.line1.temp\x00", False),
        ("plant.line1", b"\x01plant.line\x00", False),
        ("plant.#", b"\x01plant\x00", True),
        # Without the NUL it is a prefix like any other.
        ("plant.line1", b"\x01plant.line1", False),
        ("plant.#", b"\x01plant.", True),
        ("plant.#", b"\x01plant", False),
        # What no topic can begin with is nothing.
        ("#", b"\xff", False),
        ("#", "é".encode(), False),
        ("#", b"a b", False),
        ("#", b"a..", False),
        ("#", b".a", False),
        ("#", b"a.*", False),
        ("#", b"a\x00", False),
        ("#", b"\x00", False),
        ("#", b"a\n", False),
        ("#", b"\x01a\x00\x00", False),
        ("#", b"\x01\x00", False),
        ("#", b"\x01\x01a", False),
        ("#", b"\x01a\n\x00", False),
        ("#", b"\x01" + b"a" * 255 + b"\x00", True),
        ("#", b"a" * 300, False),
        ("#", b"a" * 257, False),
        ("#", b"\x01" + b"a" * 256 + b"\x00", False),
    ],
)
def test_what_a_raw_subscription_is_approved_for(pattern: str, prefix: bytes, approved: bool) -> None:
    assert subscriber(pattern).feed_subscriptions(prefix) == ([prefix] if approved else [])


def test_everything_is_one_subscription_for_each_first_character() -> None:
    assert sorted(subscriber("#").feed_subscriptions(b"")) == sorted(EVERY)
    assert sorted(subscriber("#").feed_subscriptions(b"\x01")) == sorted(b"\x01" + c for c in EVERY)
    assert subscriber("a.#", "b").feed_subscriptions(b"") == []
    assert len(FIRST_CHARACTERS) == 63


def test_an_administrator_reads_everything_but_still_names_meshqs_own() -> None:
    assert ADMIN.may_publish("a") and ADMIN.may_read("a.b") and ADMIN.may_subscribe("#")
    assert ADMIN.feed_subscriptions(b"") == subscriber("#").feed_subscriptions(b"")
    assert ADMIN.feed_subscriptions(b"plant") == [b"plant"]
    assert ADMIN.feed_subscriptions(b"_dead.g") == [b"_dead.g"]
    assert ADMIN.feed_subscriptions(b"\x01_dead.g\x00") == [b"\x01_dead.g\x00"]
    assert ADMIN.feed_subscriptions(b"_") == ADMIN.feed_subscriptions(b"_dea") == []
    assert ADMIN.feed_subscriptions(b"\x01_") == ADMIN.feed_subscriptions(b"\xff") == []


words = st.sampled_from(["a", "b", "ab", "_a", "-", "a1"])
patterns = st.builds(
    lambda head, tail: ".".join([*head, tail]),
    st.lists(words | st.just("*"), max_size=2),
    words | st.sampled_from(["*", "#"]),
)


@given(patterns, st.text("ab._-1\x01\x00", max_size=6), st.lists(words, min_size=1, max_size=4).map(".".join))
def test_an_approved_prefix_never_shows_a_topic_that_may_not_be_read(
    pattern: str, prefix: str, topic: str
) -> None:
    """The feed carries `topic` and `\\x01 topic \\x00`; what is approved is a prefix of their bytes."""
    for approved in subscriber(pattern).feed_subscriptions(prefix.encode()):
        for form in (topic.encode(), b"\x01" + topic.encode() + b"\x00"):
            if form.startswith(approved):
                assert matches(pattern, topic)
