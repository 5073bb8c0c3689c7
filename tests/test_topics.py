"""Topics and patterns, against twins that enumerate every topic of a small world."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshq.errors import UsageError
from meshq.limits import TOPIC_BYTES_MAX
from meshq.topics import check_pattern, check_topic, contains, contains_prefix, is_internal, matches

# "ab" begins with "a" and "_xa" with "_x": what a prefix that ends inside a word runs into.
WORDS = ("a", "ab", "b", "_x", "_xa")
WORLD = [".".join(words) for count in range(1, 5) for words in product(WORDS, repeat=count)]

words = st.sampled_from([*WORDS, "*"])
patterns = st.builds(
    lambda parts, rest: ".".join([*parts, "#"] if rest or not parts else parts),
    st.lists(words, max_size=3),
    st.booleans(),
)


def dumb_matches(pattern: str, topic: str) -> bool:
    """Word by word, recursively, as one would explain it."""

    def rest_matches(wanted: list[str], given_words: list[str]) -> bool:
        if not wanted:
            return not given_words
        if wanted[0] == "#":
            return True
        if not given_words or wanted[0] not in ("*", given_words[0]):
            return False
        return rest_matches(wanted[1:], given_words[1:])

    first = topic.split(".")[0]
    if first.startswith("_") and pattern.split(".")[0] != first:
        return False
    return rest_matches(pattern.split("."), topic.split("."))


@given(patterns, st.sampled_from(WORLD))
def test_a_pattern_matches_what_its_twin_matches(pattern: str, topic: str) -> None:
    assert matches(pattern, topic) == dumb_matches(pattern, topic)


@given(patterns, patterns)
def test_containment_is_that_every_topic_of_the_inner_is_one_of_the_outer(outer: str, inner: str) -> None:
    meant = [t for t in WORLD if dumb_matches(inner, t)]
    assert contains(outer, inner) == all(dumb_matches(outer, t) for t in meant)


@given(patterns, st.sampled_from(WORLD), st.integers(0, 12))
def test_a_prefix_is_contained_when_every_topic_that_begins_with_it_is(
    outer: str, topic: str, size: int
) -> None:
    prefix = topic[:size]
    begun = [t for t in WORLD if t.startswith(prefix)]
    begun += [prefix + more for more in ("b", "b.b")]  # a word may always go on
    begun = [t for t in begun if not t.startswith(".")]
    assert contains_prefix(outer, prefix) == all(dumb_matches(outer, t) for t in begun)


@pytest.mark.parametrize("pattern", ["#", "*.#", "*", "*.*"])
def test_no_wildcard_reaches_what_is_internal(pattern: str) -> None:
    assert is_internal("_dead.g.t")
    assert not any(matches(pattern, t) for t in WORLD if is_internal(t))
    assert not contains(pattern, "_x.#")
    assert not contains_prefix(pattern, "_x.")
    assert not contains_prefix(pattern, "")


def test_the_rest_may_be_no_word_at_all() -> None:
    assert matches("a.#", "a")
    assert matches("_x.#", "_x")
    assert not matches("a.*", "a")


def test_every_topic_has_a_word_so_star_and_rest_mean_the_same() -> None:
    assert contains("*.#", "#")
    assert contains("#", "*.#")


@pytest.mark.parametrize("prefix", ["\x01", "\x01a\x00", "a b", ".", "a..", "ä", "a\n"])
def test_a_prefix_no_topic_can_begin_with_is_contained_in_nothing(prefix: str) -> None:
    assert not contains_prefix("#", prefix)
    assert not contains_prefix("a.#", prefix)


@pytest.mark.parametrize("name", ["a", "a.b", "plant.line-1.temp_2", "_dead.g.t", "x" * TOPIC_BYTES_MAX])
def test_a_topic_is_a_topic_and_a_pattern(name: str) -> None:
    assert check_topic(name) == name
    assert check_pattern(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "a.", ".a", "a..b", "a b", "a\n", "ä", "a/b", "a.*", "#", "x" * (TOPIC_BYTES_MAX + 1)]
)
def test_what_is_not_a_topic_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not a topic"):
        check_topic(name)


@pytest.mark.parametrize("pattern", ["#", "*", "a.*", "a.#", "*.b.#", "a.*.c"])
def test_wildcards_stand_for_whole_words_and_the_rest_is_last(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize("pattern", ["", "a*", "a.#.b", "##", "a#", "#.a", "a.**", "a.#\n", "a." * 200 + "a"])
def test_what_is_not_a_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="is not a pattern"):
        check_pattern(pattern)


@given(st.text(max_size=20))
def test_no_text_but_a_topic_passes(text: str) -> None:
    try:
        check_topic(text)
    except UsageError:
        return
    assert all(word and word.replace("_", "a").replace("-", "a").isalnum() for word in text.split("."))
    assert text.isascii()
