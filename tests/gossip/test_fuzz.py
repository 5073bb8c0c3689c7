"""Broken datagrams and notes do no harm. How long is tried: MESHQ_FUZZ_S (15 s), MESHQ_FUZZ_LONG_S (1 h)."""

from __future__ import annotations

import os
import random

import pytest

from meshq.errors import RemoteProtocolError
from meshq.gossip import wire
from meshq.gossip.wire import Signed
from meshq.gossip.words import State
from tests.gossip import fuzz

FUZZ_S = float(os.environ.get("MESHQ_FUZZ_S", "15"))
FUZZ_LONG_S = float(os.environ.get("MESHQ_FUZZ_LONG_S", "3600"))


def test_the_corpus_has_a_datagram_of_each_kind_as_it_is_made_today() -> None:
    """A change of the format shows here: then keep the old ones, and add the new."""
    kept = {path.name: path.read_bytes() for path in fuzz.CORPUS.iterdir()}
    for name, data in fuzz.seeds().items():
        assert kept[name] == data
        if name.startswith("record"):
            wire.read_record(Signed(data, bytes(64)))
        else:
            wire.decode(data)


def test_the_corpus_breaks_nothing() -> None:
    fuzzer = fuzz.Fuzzer(seed=1)
    for data in fuzz.corpus():
        fuzzer.feed(data)


def test_every_datagram_cut_short_anywhere_is_refused() -> None:
    for data in fuzz.seeds().values():
        for end in range(len(data)):
            with pytest.raises(RemoteProtocolError):
                wire.decode(data[:end])


def test_broken_input_is_a_result_or_a_protocol_error() -> None:
    _fuzz(FUZZ_S)


@pytest.mark.long
def test_broken_input_is_a_result_or_a_protocol_error_for_long() -> None:
    _fuzz(FUZZ_LONG_S)


def _fuzz(seconds: float) -> None:
    """A new seed each time; it is printed when something broke, with the input."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    found = fuzz.run(seconds, seed)
    print(found)
    # It looks where it should: each decoder both read and refused, and the machine came to each belief.
    assert {f"{what} {how}" for what in ("gossip", "record") for how in ("read", "refused")} <= found.keys()
    assert {"sealed opened", "sealed forged"} <= found.keys()
    assert {f"member {state}" for state in State} <= found.keys()
