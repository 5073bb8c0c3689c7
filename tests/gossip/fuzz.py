"""Broken input for gossip's decoders: datagrams of every kind, changed in the ways in which things break.

Whatever arrives is a result or RemoteProtocolError, a sealed datagram a result or Dropped, and the machine
stands and believes nothing that was not signed. `corpus/` keeps a datagram of each kind, and each input that
once broke something; every run begins with all of them. `make fuzz-membership FUZZ_S=3600` runs for an hour.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from meshq.errors import RemoteProtocolError
from meshq.gossip import wire
from meshq.gossip.machine import Membership
from meshq.gossip.wire import Digest, Gossip, Signed
from meshq.gossip.words import DatagramReceived, LinkCarried, SendDatagram, Tick
from meshq.ids import MeshId, PeerId
from meshq.transport.sealed import Dropped, Opener, Sealer
from tests.gossip.scripts import claim, hear, record, signed
from tests.gossip.simulation import address_of, member, number, peer_id

CORPUS = Path(__file__).parent / "corpus"
_MACHINE_FOR = 200  # inputs, then another one
_MESH, _KEY = MeshId(bytes(range(16))), (7, bytes(range(32)))
_ODD = (0, 1, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), None, True, "", b"", "x" * 300, b"x" * 2_000,
        [], {}, 0.5, float("nan"), [[]], {"a": 1})  # fmt: skip


def seeds() -> dict[str, bytes]:
    """A datagram of each kind, by name: what `corpus/` was made of."""
    own, other = signed(2), signed(3, boot=2, version=7)
    kinds: dict[str, list[bytes]] = {
        "question": wire.pack(Gossip(ask=2**62 + 5)),
        "question-of-a-suspect": wire.pack(Gossip(ask=2**62 + 5), claims=[claim(2, 3)]),
        "question-to-the-dead": wire.pack(
            Gossip(ask=1, hearsay=True), records=[own], claims=[claim(1, 2, dead=True)]
        ),
        "answer": wire.pack(Gossip(answered=2**62 + 5), records=[own, other]),
        "answer-with-wants": wire.pack(Gossip(answered=9), wants=[peer_id(n) for n in range(1, 6)]),
        "help": wire.pack(Gossip(helping=2**62 + 9, whom=peer_id(3))),
        "vouched": wire.pack(Gossip(vouched=2**62 + 9)),
        "refused": wire.pack(Gossip(refused=2**62 + 9)),
        "news": wire.pack(records=[own, other], claims=[claim(4, 3), claim(1, 2), claim(3, 2, dead=True)]),
        "left": wire.pack(records=[signed(2, version=2, left=True)]),
        "notes": wire.pack(
            Gossip(hearsay=True), digests=[Digest(peer_id(n), n, 2**40) for n in range(1, 45)]
        ),
        "notes-with-claims": wire.pack(
            Gossip(hearsay=True), claims=[claim(2, 4, dead=True)], digests=[Digest(peer_id(2), 1, 1)]
        ),
        "record": [msgspec.msgpack.encode(record(2))],
        "record-of-many-addresses": [
            msgspec.msgpack.encode(
                msgspec.structs.replace(record(4), addresses=[f"[fe80::{n}%eth0]:7700" for n in range(8)])
            )
        ],
    }
    return {name: payloads[0] for name, payloads in kinds.items()}


def corpus() -> list[bytes]:
    return [path.read_bytes() for path in sorted(CORPUS.iterdir())]


class Fuzzer:
    """`outcomes` counts what became of the inputs."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.kept = corpus()
        self.outcomes: Counter[str] = Counter()
        self._sealer = Sealer({_KEY[0]: _KEY[1]}, _KEY[0], _MESH, peer_id(2), 1)
        self._begin()

    def _begin(self) -> None:
        self._machine = member(1, registered=range(1, 7))
        for n in (2, 3, 4):
            hear(self._machine, n, records=[signed(n)])
        self._opener = Opener({_KEY[0]: _KEY[1]}, _MESH, peer_id(1))
        self._left, self._now = _MACHINE_FOR, 0.0

    def step(self) -> None:
        data = self.mutated()
        try:
            self.feed(data)
        except Exception:
            print(f"this input broke something: {data.hex()}", file=sys.stderr)
            raise

    def feed(self, data: bytes) -> None:
        """To all decoders. Raises: whatever they should not have."""
        self._decode("gossip", wire.decode, data)
        self._decode("record", lambda x: wire.read_record(Signed(x, bytes(64))), data)
        self._open(data)
        self._tell(data)

    def mutated(self) -> bytes:
        data = self.rng.choice(self.kept)
        if self.rng.random() < 0.5:
            data = self._restructured(data)
        for _ in range(self.rng.choice((0, 1, 1, 2, 8))):
            data = self.rng.choice(_BYTES)(self.rng, data, self.kept)
        return data

    def _restructured(self, data: bytes) -> bytes:
        """Still msgpack, but with something else in one place or more."""
        try:
            tree = msgspec.msgpack.decode(data)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            return data
        for _ in range(self.rng.choice((1, 1, 2, 5))):
            tree = _changed(self.rng, tree)
        try:
            return msgspec.msgpack.encode(tree)
        except (OverflowError, TypeError, ValueError, RecursionError):
            return data  # an integer of more than 64 bits

    def _decode(self, what: str, decoder: Callable[[bytes], Any], data: bytes) -> None:
        try:
            decoder(data)
            self.outcomes[f"{what} read"] += 1
        except RemoteProtocolError:
            self.outcomes[f"{what} refused"] += 1

    def _open(self, data: bytes) -> None:
        """As it is; and, rarely, sealed under the right key and then damaged."""
        if len(data) <= wire.PAYLOAD_BYTES_MAX and self.rng.random() < 0.1:
            data = self._sealer.seal(data)
            if self.rng.random() < 0.8:
                data = self.rng.choice(_BYTES)(self.rng, data, self.kept)
        try:
            self._opener.open(data)
            self.outcomes["sealed opened"] += 1
        except Dropped as e:
            self.outcomes[f"sealed {e.reason.value}"] += 1

    def _tell(self, data: bytes) -> None:
        m = self._machine
        sender = self.rng.choice((2, 3, 4, 5, 9))
        own = m.own.order
        if self.rng.random() < 0.9:
            effects = m.handle(DatagramReceived(data, peer_id(sender), address_of(sender)), now=self._now)
        else:
            effects = m.handle(LinkCarried(data, peer_id(sender)), now=self._now)
        assert m.own.order >= own
        assert m.own.boot_epoch == own[0]
        assert all(len(x.payload) <= wire.PAYLOAD_BYTES_MAX for x in effects if isinstance(x, SendDatagram))
        self._left -= 1
        if self._left % 20 == 0:
            self._now += 0.1
            m.handle(Tick(), now=self._now)
        if self._left == 0:
            self._look(m)
            self._begin()

    def _look(self, m: Membership) -> None:
        """Nobody is believed to be what it did not sign: a name, an address, an incarnation."""
        for x in m.members():
            n = number(x.peer)
            assert x.name in ("", f"peer{n}")
            assert (x.boot_epoch, x.version) in _SIGNED.get(PeerId(x.peer), set()) | {(0, 0)}
            self.outcomes[f"member {x.state}"] += 1


_SIGNED = {peer_id(n): {(1, 1), (1, 2), (2, 7)} for n in range(2, 7)}


def _changed(rng: random.Random, tree: Any) -> Any:
    if not isinstance(tree, list) or not tree or rng.random() < 0.1:
        return rng.choice(_ODD)
    tree = list(tree)
    at = rng.randrange(len(tree))
    match rng.randrange(5):
        case 0:
            del tree[at]
        case 1:
            tree.insert(at, rng.choice(tree))
        case 2:
            tree[at] = tree[rng.randrange(len(tree))]
        case 3 if isinstance(tree[at], list):
            tree[at] = tree[at] * rng.choice((2, 40, 200))
        case _:
            tree[at] = _changed(rng, tree[at])
    return tree


def _flip(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _replace(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 1, 2, 4, 9))) + data[at + rng.choice((0, 1, 4)) :]


def _cut(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _splice(rng: random.Random, data: bytes, kept: list[bytes]) -> bytes:
    other = rng.choice(kept)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


_HEADS = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdc\xff\xff",
    b"\xdf\x7f\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\x00\xff\xff\xff",
    b"\x91" * 600,
    b"\x00" * 1_500,
)


def _swell(rng: random.Random, data: bytes, _: list[bytes]) -> bytes:
    """Heads of msgpack that claim far more than follows; and what is larger than a datagram."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(_HEADS) + data[at:]


_BYTES = (_flip, _replace, _cut, _splice, _swell)


def run(seconds: float, seed: int) -> Counter[str]:
    fuzzer = Fuzzer(seed)
    for data in fuzzer.kept:
        fuzzer.feed(data)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(100):
            fuzzer.step()
        fuzzer.outcomes["inputs"] += 100
    return fuzzer.outcomes


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().getrandbits(32)
    print(f"seed {seed}, {seconds:g} s", flush=True)
    for outcome, count in sorted(run(seconds, seed).items()):
        print(f"{count:12,}  {outcome}")


if __name__ == "__main__":
    main()
