"""The raw loop: ZeroMQ CURVE into LMDB with the same group commit, and nothing else.

What meshq's path could be at best in this language on this machine: a ROUTER takes messages, a writer thread
puts all that wait into one transaction with full sync, and each is answered after its commit. No topics, no
checks, no state. Run as a program it is the server; `publish` and `read` are the other side.
"""

from __future__ import annotations

import json
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path

import lmdb
import zmq


def serve(ready: Path) -> None:
    context = zmq.Context(io_threads=2)
    public, secret = zmq.curve_keypair()
    router = context.socket(zmq.ROUTER)
    router.curve_server, router.curve_publickey, router.curve_secretkey = True, public, secret
    router.router_mandatory = True  # so that a full queue is waited for, not dropped
    port = router.bind_to_random_port("tcp://127.0.0.1")
    waiting: queue.SimpleQueue[tuple[bytes, bytes] | None] = queue.SimpleQueue()
    done = context.socket(zmq.PULL)
    done.bind("inproc://done")
    with tempfile.TemporaryDirectory(dir=ready.parent) as where:
        env = lmdb.open(where, map_size=64 << 30)
        threading.Thread(target=_write, args=(env, waiting, context), daemon=True).start()
        ready.write_text(json.dumps({"port": port, "server_key": public.decode()}))
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(done, zmq.POLLIN)
        while True:
            for socket, _ in poller.poll():
                if socket is done:
                    for client in done.recv_multipart():
                        router.send_multipart([client, b"ok"])
                    continue
                client, kind, data = router.recv_multipart()
                if kind == b"stop":
                    return
                if kind == b"read":
                    _send_all(env, router, client)
                else:
                    waiting.put((client, data))


def _write(env: lmdb.Environment, waiting: queue.SimpleQueue, context: zmq.Context) -> None:
    done = context.socket(zmq.PUSH)
    done.connect("inproc://done")
    offset = 0
    while True:
        batch = [waiting.get()]
        while not waiting.empty():
            batch.append(waiting.get())
        with env.begin(write=True) as txn:
            for _, data in batch:
                txn.put(offset.to_bytes(8, "big"), data, append=True)
                offset += 1
        done.send_multipart([client for client, _ in batch])


def _send_all(env: lmdb.Environment, router: zmq.Socket, client: bytes) -> None:
    with env.begin() as txn:
        for _, value in txn.cursor():
            router.send_multipart([client, value])
    router.send_multipart([client, b""])


class Client:
    """The producer's and reader's side of the raw loop."""

    def __init__(self, ready: Path) -> None:
        where = json.loads(ready.read_text())
        self._context = zmq.Context()
        public, secret = zmq.curve_keypair()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.curve_serverkey = where["server_key"].encode()
        self._socket.curve_publickey, self._socket.curve_secretkey = public, secret
        self._socket.linger = 1_000
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.connect(f"tcp://127.0.0.1:{where['port']}")

    def publish(self, data: bytes, *, count: int, in_flight: int) -> float:
        """Seconds for `count` messages, each acknowledged after its sync, so many on their way at once."""
        start = time.perf_counter()
        sent = acknowledged = 0
        while acknowledged < count:
            while sent < count and sent - acknowledged < in_flight:
                self._socket.send_multipart([b"put", data], copy=False)
                sent += 1
            self._socket.recv()
            acknowledged += 1
        return time.perf_counter() - start

    def latencies(self, data: bytes, *, count: int) -> list[float]:
        found = []
        for _ in range(count):
            start = time.perf_counter()
            self._socket.send_multipart([b"put", data])
            self._socket.recv()
            found.append(time.perf_counter() - start)
        return found

    def read(self) -> tuple[float, int]:
        """Seconds and bytes of reading everything back."""
        start = time.perf_counter()
        self._socket.send_multipart([b"read", b""])
        size = 0
        while data := self._socket.recv(copy=False).buffer:
            size += len(data)
        return time.perf_counter() - start, size

    def close(self) -> None:
        self._socket.send_multipart([b"stop", b""])
        self._socket.close()
        self._context.term()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
