"""Messages: every struct comes back as it was, and whatever else arrives is refused."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
import typing

import msgspec
import pytest

from meshq import messages
from meshq.errors import Fenced, MeshqError, NotOwner, Overloaded, RemoteProtocolError
from meshq.limits import ASK_BYTES_MAX, MESSAGE_BYTES_MAX, MIB
from meshq.messages import Failure, Message, decode_answer, decode_request, encode, error_of, failure

FUZZ_S = 2.0
REQUESTS = typing.get_args(messages.ClientMessage) + typing.get_args(messages.PeerMessage)
ANSWERS = typing.get_args(messages.ServerMessage)
ALL = [
    c for c in vars(messages).values() if isinstance(c, type) and issubclass(c, Message) and c is not Message
]


def example(kind: msgspec.inspect.Type, rng: random.Random) -> typing.Any:
    """A value of a type, near its bounds as often as not."""
    match kind:
        case msgspec.inspect.IntType(ge=low, le=high, lt=end):
            top = high if high is not None else end - 1
            return rng.choice((low, top, rng.randint(low, top)))
        case msgspec.inspect.BytesType(min_length=low, max_length=high):
            return rng.randbytes(rng.choice((low or 0, 40 if high is None else high)))
        case msgspec.inspect.StrType(max_length=high):
            return rng.choice("aé€😀") * rng.choice((0, 1, 40 if high is None else high))
        case msgspec.inspect.BoolType():
            return rng.random() < 0.5
        case msgspec.inspect.AnyType():
            return rng.choice((None, -1, 0.5, "text", b"bytes", [1, [2]], {"a": {"b": [True]}}))
        case msgspec.inspect.NoneType():
            return None
        case msgspec.inspect.RawType():
            return msgspec.Raw(msgspec.msgpack.encode(rng.choice((None, [1, b"x"], {"a": 2}))))
        case msgspec.inspect.UnionType(types=kinds):
            return example(rng.choice(kinds), rng)
        case msgspec.inspect.ListType(item_type=item, max_length=high):
            return [example(item, rng) for _ in range(rng.choice((0, 1, min(high, 64))))]
        case msgspec.inspect.TupleType(item_types=items):
            return tuple(example(item, rng) for item in items)
        case msgspec.inspect.DictType(key_type=key, value_type=value):
            return {example(key, rng): example(value, rng) for _ in range(rng.randrange(4))}
        case msgspec.inspect.StructType(cls=cls, fields=fields):
            return cls(**{field.name: example(field.type, rng) for field in fields})
        case _:
            raise TypeError(f"no example of {kind}: teach it to this test")


def examples(cls: type[Message], count: int) -> list[Message]:
    rng = random.Random(cls.__name__)
    return [example(msgspec.inspect.type_info(cls), rng) for _ in range(count)]


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.__name__)
def test_a_message_comes_back_as_it_was(cls: type[Message]) -> None:
    decode = decode_request if cls in REQUESTS else decode_answer
    for message in examples(cls, 30):
        assert decode(encode(message)) == message
        assert decode(memoryview(encode(message))) == message


@pytest.mark.parametrize("cls", ALL, ids=lambda c: c.__name__)
def test_a_message_is_taken_only_by_the_side_it_is_meant_for(cls: type[Message]) -> None:
    decode = decode_answer if cls in REQUESTS else decode_request
    for message in examples(cls, 5):
        with pytest.raises(RemoteProtocolError, match="cannot be read"):
            decode(encode(message))


def test_every_message_has_a_number_of_its_own_and_one_side() -> None:
    numbers = [c.__struct_config__.tag for c in ALL]
    assert len(set(numbers)) == len(ALL)
    assert set(REQUESTS) | set(ANSWERS) == set(ALL)
    assert not set(REQUESTS) & set(ANSWERS)


def test_fields_that_a_later_version_adds_are_passed_over() -> None:
    assert decode_request(msgspec.msgpack.encode([3, 7, "new", {"nested": [1]}])) == messages.Ping(7)


def test_fields_that_have_defaults_may_be_left_out() -> None:
    assert decode_request(msgspec.msgpack.encode([1, 1, 1])) == messages.Hello(1, 1)


@pytest.mark.parametrize(
    "value",
    [
        [3, -1],
        [3, 1 << 63],
        [3, 1.0],
        [3, "1"],
        [3],
        [999, 1],
        ["3", 1],
        {"token": 1},
        None,
        [20, [[0, b"x" * 15, 0, 0]]],
        [20, [[0, b"x" * 17, 0, 0]]],
        [20, [[0, b"x" * 16, 1 << 32, 0]]],
        [20, [[0, b"x" * 16, 0, 0]] * 65],
        [10, 1, "x" * 256],
        [30, 1, [[b"x" * 16, 0, 0, 0]] * (messages.Items + 1)],
        [40, 1, "what", {1: 2}],
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_value_outside_its_type_is_refused(value: object) -> None:
    with pytest.raises(RemoteProtocolError, match="cannot be read"):
        decode_request(msgspec.msgpack.encode(value))


ASK = b"\x94\x28\x01\xa1a\x81\xa1a"  # an Ask whose one argument follows


@pytest.mark.parametrize(
    "data",
    [
        ASK + b"\xdd" + struct.pack(">I", MESSAGE_BYTES_MAX) + b"\x80" * MESSAGE_BYTES_MAX,
        ASK + b"\xdd" + struct.pack(">I", ASK_BYTES_MAX) + b"\x80" * ASK_BYTES_MAX,
        ASK + b"\x91" * 60_000,
        ASK + b"\x91" * MESSAGE_BYTES_MAX,
        ASK + b"\xdd\xff\xff\xff\xff",
        ASK + b"\xdf\xff\xff\xff\xff",
        ASK + b"\xdb\xff\xff\xff\xff",
        ASK + b"\xc6\xff\xff\xff\xff",
        ASK + b"\x81\x80\x01",
        ASK + b"\xd7\xff" + b"\xff" * 8,
        b"\x93\x03\x01" + b"\x91" * MESSAGE_BYTES_MAX,
        b"\x92\x14\xdd" + struct.pack(">I", MESSAGE_BYTES_MAX) + b"\x80" * MESSAGE_BYTES_MAX,
        b"\x94\x0c\x01\xa1a\xdd" + struct.pack(">I", 3 * MIB) + b"\xa1a" * 3 * MIB,
        b"\x92\x14\xdd\x00\x00\x00\x40",
    ],
    ids=lambda data: f"{data[:14].hex()} {len(data)}",
)
def test_a_hostile_message_is_refused_at_once_and_without_a_heap(data: bytes) -> None:
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(RemoteProtocolError, match="cannot be read"):
            decode_request(data)
        assert time.monotonic() - start < 1.0
        assert tracemalloc.get_traced_memory()[1] < 24 * MIB
    finally:
        tracemalloc.stop()


def test_the_largest_lists_of_a_request_are_taken() -> None:
    watch = messages.Watch(1, "", ["x" * 255] * messages.Items)
    propose = messages.ProposeRegistry(1, bytes(5 * MIB))
    for message in (watch, propose):
        assert len(encode(message)) > ASK_BYTES_MAX
        assert decode_request(encode(message)) == message


@pytest.mark.parametrize("decode", [decode_request, decode_answer])
def test_fuzzed_bytes_are_a_message_or_refused(decode: typing.Callable[[bytes], Message]) -> None:
    rng = random.Random(7)
    sides = REQUESTS if decode is decode_request else ANSWERS
    valid = [encode(message) for cls in sides for message in examples(cls, 3)]
    end = time.monotonic() + FUZZ_S
    read = refused = 0
    while time.monotonic() < end:
        data = bytearray(rng.choice(valid) if rng.random() < 0.8 else rng.randbytes(rng.randrange(40)))
        for _ in range(rng.randrange(4)):
            place = rng.randrange(min(len(data), 64) + 1)
            match rng.randrange(3):
                case 0:
                    data[place : place + 1] = rng.randbytes(1)
                case 1:
                    del data[place : place + rng.randrange(1, 5)]
                case _:
                    data[place:place] = rng.choice((b"\xdd\xff\xff\xff\xff", b"\xd7\xff", rng.randbytes(3)))
        try:
            assert isinstance(decode(bytes(data)), sides)
            read += 1
        except RemoteProtocolError:
            refused += 1
    assert read > 1_000 and refused > 1_000


def test_an_error_travels_as_a_failure() -> None:
    answer = decode_answer(encode(failure(9, Overloaded("full", retry_after_ms=250))))
    assert answer == Failure(9, 429, "Overloaded", "full", 250)
    came = error_of(answer)
    assert isinstance(came, Overloaded)
    assert (came.text, came.retry_after_ms) == ("full", 250)


@pytest.mark.parametrize("wait_ms", [-5, 1 << 40])
def test_any_error_makes_a_failure_that_can_be_read(wait_ms: int) -> None:
    answer = decode_answer(encode(failure(0, Fenced("é" * 9_000, retry_after_ms=wait_ms))))
    assert isinstance(answer, Failure)
    assert len(answer.text) == 2_000
    assert type(error_of(answer)) is Fenced


def test_the_end_of_a_read_says_why() -> None:
    ended = messages.ReadEnded(1, bytes(16), 0, 503, "NotOwner", "ask the owner")
    came: MeshqError = error_of(ended)
    assert isinstance(came, NotOwner) and came.retriable
