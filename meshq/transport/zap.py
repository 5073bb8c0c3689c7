"""Who may connect: ZeroMQ's authentication protocol (RFC 27), answered in the event loop.

libzmq asks over an in-process socket once per handshake: this domain (one per listener), this CURVE key,
this address? The answer is no unless everything about the question is as it should be and `decide` says a
name. What we answer as `User-Id` is the key itself, in hex; libzmq attaches it to every frame of that
connection, and that is what each message is authorized by afterwards, since a handshake may be long past
when a key is revoked.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

import zmq

from meshq.errors import InternalError
from meshq.transport.drain import KEY_BYTES, Drain, receive, send
from meshq.transport.sparingly import Sparingly

ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
VERSION: Final = b"1.0"
_FRAMES_MAX: Final = 16  # of a question; it is refused
log = logging.getLogger(__name__)


class ZapHandler:
    """Answers for every server socket of the context; make it before the first of them is bound.

    `decide(domain, key, address)` returns the user id to admit the connection, None to refuse it; if it
    raises, that is a refusal too. By convention the id is `key.hex()`, and that is what is passed on,
    whatever was returned. Without a handler every server of `context.py` refuses everybody.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], decide: Callable[[str, bytes, str], str | None]
    ) -> None:
        self.refused: Counter[tuple[str, str]] = Counter()  # (domain, reason); domains are ours, so few
        self._decide = decide
        self._loop = asyncio.get_running_loop()
        self._logged = Sparingly()
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(ZAP_ENDPOINT)
        except zmq.ZMQError as e:
            self._socket.close(linger=0)
            raise InternalError(f"this context has a ZAP handler already: {e}") from None
        self._drain = Drain(self._socket, self._read)

    def close(self) -> None:
        """From here on every handshake is refused. Idempotent."""
        self._drain.close()
        self._socket.close(linger=0)

    def _read(self) -> bool:
        frames = receive(self._socket, _FRAMES_MAX)
        if frames is None:
            return False
        parts = [frame.bytes for frame in frames]
        if len(parts) < 4:
            self.refused["", "malformed"] += 1  # nobody to answer: libzmq gives up the handshake by itself
            return True
        asker, delimiter, version, request, *question = parts
        admitted, reason, user = self._judge(version, question)
        if not admitted:
            domain = question[0].decode("utf-8", "replace") if question else ""
            self.refused[domain, reason] += 1
            if (unsaid := self._logged.say(self._loop.time())) is not None:
                about = {"domain": domain, "reason": reason, "key": user, "unsaid": unsaid}
                log.info("Refused", extra={"event": "Refused", **about})
        status = b"200" if admitted else b"400"
        user_id = user.encode() if admitted else b""
        try:
            send(self._socket, [asker, delimiter, VERSION, request, status, reason.encode(), user_id, b""])
        except zmq.ZMQError:
            self.refused["", "unanswered"] += 1  # the asking connection is gone
        self._drain.poke()
        return True

    def _judge(self, version: bytes, question: list[bytes]) -> tuple[bool, str, str]:
        """(admitted, reason, hex of the key)."""
        if version != VERSION or len(question) < 4:
            return False, "malformed", ""
        domain, address, _routing_id, mechanism, *credentials = question
        if mechanism != b"CURVE":
            return False, "mechanism", ""
        if len(credentials) != 1 or len(credentials[0]) != KEY_BYTES:
            return False, "malformed", ""
        key = credentials[0]
        try:
            host = address.decode("utf-8", "replace").removeprefix("::ffff:")  # IPv4 on a listener for both
            user = self._decide(domain.decode(), key, host)
        except Exception:
            log.exception("deciding about a key failed", extra={"event": "Refused", "key": key.hex()})
            return False, "error", key.hex()
        if user is None:
            return False, "key", key.hex()
        return True, "OK", key.hex()
