"""Where plain publishers send to: a bound CURVE SUB that takes everything its admitted keys publish.

A PUB socket waits for nobody: what does not fit is dropped on its side, what arrives comes here with the
key it was sent under. A bound SUB subscribes to a new connection only from its own thread's turn, so a
publisher's first moments may be lost; acceptance without acknowledgement is what this socket promises, and
no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import zmq

from meshq.batch import Buffer
from meshq.limits import FRAMES_MAX
from meshq.transport.allowance import Allowance, bind_watched
from meshq.transport.context import CLIENTS_THREAD, harden_server
from meshq.transport.drain import Drain, content, guarded, key_of, receive
from meshq.transport.tcp import is_too_large

RECEIVE_QUEUE_MAX: Final = 1_000  # messages of one publisher that libzmq holds; over it, TCP pushes back


class IngestServer:
    """Serves `on_message(key, frames)` with 1 to `frames_max` frames; what they mean is the owner's matter.

    With an `allowance`, a connection that sends more is cut; so is one whose message is larger than
    `whole_bytes_max` in all its frames.

    `counters`: too_many_frames, too_large, no_key, on_message_failed, cut_*.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        *,
        endpoints: Sequence[str],
        public_key: bytes,
        secret_key: bytes,
        domain: str,
        message_bytes_max: int,
        on_message: Callable[[bytes, list[Buffer]], None],
        affinity: int = CLIENTS_THREAD,
        frames_max: int = FRAMES_MAX,
        allowance: Allowance | None = None,
        whole_bytes_max: int | None = None,
    ) -> None:
        """Raises: UsageError when an endpoint cannot be bound."""
        self.counters: Counter[str] = Counter()
        self._on_message = on_message
        self._frames_max = frames_max
        self._whole_bytes_max = whole_bytes_max
        self._socket = context.socket(zmq.SUB)
        harden_server(
            self._socket,
            public_key=public_key,
            secret_key=secret_key,
            domain=domain,
            affinity=affinity,
            message_bytes_max=message_bytes_max,
        )
        self._socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE_MAX)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self.bound, self._watch = bind_watched(context, self._socket, endpoints, allowance, self.counters)
        self._drain = Drain(self._socket, self._read)
        if self._watch is not None:
            self._watch.read = self._drain.poke

    def close(self) -> None:
        """Cut every connection; no callback afterwards. Idempotent."""
        if self._watch is not None:
            self._watch.close()
        self._drain.close()
        self._socket.close(linger=0)

    def _read(self) -> bool:
        frames = receive(self._socket, self._frames_max)
        if frames is None:
            if self._watch is not None:
                self._watch.on_empty()
            return False
        if not frames:
            self.counters["too_many_frames"] += 1
            return True
        if self._watch is not None:
            self._watch.on_message(frames[0])
        if is_too_large(frames, self._whole_bytes_max, self.counters):
            return True
        key = key_of(frames[0])
        if key is None:
            self.counters["no_key"] += 1
            return True
        guarded(self.counters, "on_message_failed", self._on_message, key, [content(f) for f in frames])
        return True
