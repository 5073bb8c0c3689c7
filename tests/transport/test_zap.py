"""Only a CURVE key that `decide` knows for exactly this listener is admitted."""

from __future__ import annotations

import pytest
import zmq

from meshq.errors import InternalError
from meshq.transport.zap import ZAP_ENDPOINT, ZapHandler


async def ask(world, *frames: bytes) -> list[bytes]:
    with world.context.socket(zmq.DEALER) as asker:
        asker.setsockopt(zmq.LINGER, 0)
        asker.connect(ZAP_ENDPOINT)
        asker.send_multipart([b"", *frames])
        return await world.receive(asker)


def test_admits_a_known_key_and_names_it_in_hex(run):
    async def scenario(world):
        key, _ = world.admit("requests")
        answer = await ask(world, b"1.0", b"7", b"requests", b"10.0.0.1", b"", b"CURVE", key)
        assert answer == [b"", b"1.0", b"7", b"200", b"OK", key.hex().encode(), b""]
        assert not world.zap.refused

    run(scenario)


@pytest.mark.parametrize(
    ("version", "domain", "mechanism", "credentials", "reason"),
    [
        (b"1.0", b"requests", b"CURVE", [b"k" * 32], "key"),
        (b"1.0", b"feed", b"CURVE", [b"known"], "key"),
        (b"1.0", b"", b"CURVE", [b"known"], "key"),
        (b"1.0", b"requests", b"NULL", [], "mechanism"),
        (b"1.0", b"requests", b"PLAIN", [b"user", b"password"], "mechanism"),
        (b"1.0", b"requests", b"CURVE", [b"k" * 31], "malformed"),
        (b"1.0", b"requests", b"CURVE", [], "malformed"),
        (b"1.0", b"requests", b"CURVE", [b"known", b"more"], "malformed"),
        (b"2.0", b"requests", b"CURVE", [b"known"], "malformed"),
        (b"1.0", b"\xff", b"CURVE", [b"known"], "error"),
    ],
)
def test_refuses_and_counts_everything_else(run, version, domain, mechanism, credentials, reason):
    async def scenario(world):
        key, _ = world.admit("requests")
        given = [key if c == b"known" else c for c in credentials]
        answer = await ask(world, version, b"7", domain, b"10.0.0.1", b"", mechanism, *given)
        assert answer[3] == b"400" and answer[5] == b""
        assert world.zap.refused == {(domain.decode("utf-8", "replace"), reason): 1}

    run(scenario)


def test_a_decision_that_raises_is_a_refusal_and_is_logged(run, caplog):
    async def scenario(world):
        world.admitted = None
        answer = await ask(world, b"1.0", b"7", b"requests", b"10.0.0.1", b"", b"CURVE", b"k" * 32)
        assert answer[3] == b"400"
        assert world.zap.refused == {("requests", "error"): 1}
        assert "deciding about a key failed" in caplog.text

    run(scenario)


def test_questions_cut_short_do_not_break_it(run):
    async def scenario(world):
        assert (await ask(world, b"1.0", b"7"))[3] == b"400"
        key, _ = world.admit("requests")
        with world.context.socket(zmq.DEALER) as asker:
            asker.connect(ZAP_ENDPOINT)
            asker.send_multipart([b"x"])
            asker.send_multipart([b"x"] * 40)
        assert (await ask(world, b"1.0", b"7", b"requests", b"", b"", b"CURVE", key))[3] == b"200"

    run(scenario)


def test_a_context_has_one_handler(run):
    async def scenario(world):
        with pytest.raises(InternalError, match="has a ZAP handler already"):
            ZapHandler(world.context, world.decide)

    run(scenario)


def test_without_the_handler_nobody_gets_in(run):
    async def scenario(world):
        server = world.router()
        world.zap.close()
        world.zap.close()
        stranger = world.client(zmq.DEALER, server.bound[0], world.admit("requests"), stranger=True)
        assert await world.refused(stranger)

    run(scenario)
