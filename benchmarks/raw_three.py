"""The raw loop of three: what a majority of three disks costs with ZeroMQ CURVE and LMDB alone, and no logic.

Three processes of one kind. Each takes batches from the producer, hands the same bytes to the other two, and
answers when two of the three disks have synced them: so each leads a third of what is sent, as peers of meshq
each lead about a third of the slots. Everything that waits on a process, its own and the others', goes into
one LMDB transaction with one sync. No topics, no checks, no terms, no offsets.
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

NODES = 3
_LEAD, _COPY, _COPIED, _STOP = b"L", b"C", b"A", b"S"


def serve(ready: Path, number: int, ports: list[int], public: bytes, secret: bytes) -> None:
    context = zmq.Context(io_threads=2)
    router = _server(context, ports[number], public, secret)
    others = [_dealer(context, port, public) for i, port in enumerate(ports) if i != number]
    done = context.socket(zmq.PULL)
    done.bind("inproc://done")
    waiting: queue.SimpleQueue[tuple[bytes, bytes, bytes, zmq.Frame]] = queue.SimpleQueue()
    with tempfile.TemporaryDirectory(dir=ready.parent) as where:
        env = lmdb.open(where, map_size=64 << 30)
        threading.Thread(target=_write, args=(env, waiting, context), daemon=True).start()
        poller = zmq.Poller()
        for socket in (router, done, *others):
            poller.register(socket, zmq.POLLIN)
        ready.write_text("up")
        _loop(poller, router, done, others, waiting)


def _loop(
    poller: zmq.Poller,
    router: zmq.Socket[bytes],
    done: zmq.Socket[bytes],
    others: list[zmq.Socket[bytes]],
    waiting: queue.SimpleQueue[tuple[bytes, bytes, bytes, zmq.Frame]],
) -> None:
    copies: dict[tuple[bytes, bytes], int] = {}  # by client and number, until all three have it

    def count(client: bytes, number: bytes) -> None:
        copies[client, number] += 1
        if copies[client, number] == 2:
            router.send_multipart([client, number])
        elif copies[client, number] == NODES:
            del copies[client, number]

    while True:
        for socket, _ in poller.poll():
            if socket is router:
                frames = router.recv_multipart(copy=False)
                sender, kind = frames[0].bytes, frames[1].bytes
                if kind == _STOP:
                    return
                waiting.put((kind, sender, frames[2].bytes, frames[3]))
                if kind == _LEAD:
                    copies[sender, frames[2].bytes] = 0
                    for other in others:
                        other.send_multipart([_COPY, sender + frames[2].bytes, frames[3]], copy=False)
            elif socket is done:
                synced = done.recv_multipart()
                for kind, sender, number in zip(*[iter(synced)] * 3, strict=True):
                    if kind == _LEAD:
                        count(sender, number)
                    else:
                        router.send_multipart([sender, _COPIED, number])
            else:
                _, number = socket.recv_multipart()
                count(number[:-8], number[-8:])


def _write(
    env: lmdb.Environment,
    waiting: queue.SimpleQueue[tuple[bytes, bytes, bytes, zmq.Frame]],
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    done = context.socket(zmq.PUSH)
    done.connect("inproc://done")
    offset = 0
    while True:
        batch = [waiting.get()]
        while not waiting.empty():
            batch.append(waiting.get())
        with env.begin(write=True) as txn:
            for *_, data in batch:
                txn.put(offset.to_bytes(8, "big"), data.buffer, append=True)
                offset += 1
        done.send_multipart([part for kind, sender, number, _ in batch for part in (kind, sender, number)])


class Client:
    """The producer's side: batches to the three in turn."""

    def __init__(self, ports: list[int], public: bytes) -> None:
        self._context = zmq.Context()
        self._nodes = [_dealer(self._context, port, public) for port in ports]
        self._poller = zmq.Poller()
        for node in self._nodes:
            self._poller.register(node, zmq.POLLIN)
        self._sent = 0

    def publish(self, data: bytes, *, count: int, in_flight: int) -> float:
        """Seconds for `count` batches, each answered when a majority has it, so many on their way at once."""
        start = time.perf_counter()
        sent = answered = 0
        while answered < count:
            while sent < count and sent - answered < in_flight:
                self._put(self._nodes[sent % NODES], data)
                sent += 1
            for node, _ in self._poller.poll():
                node.recv()
                answered += 1
        return time.perf_counter() - start

    def latencies(self, data: bytes, *, count: int) -> list[float]:
        found = []
        for i in range(count):
            start = time.perf_counter()
            self._put(self._nodes[i % NODES], data)
            self._nodes[i % NODES].recv()
            found.append(time.perf_counter() - start)
        return found

    def close(self) -> None:
        for node in self._nodes:
            node.send_multipart([_STOP, b"", b"", b""])
            node.close(linger=1_000)
        self._context.term()

    def _put(self, node: zmq.Socket[bytes], data: bytes) -> None:
        self._sent += 1
        node.send_multipart([_LEAD, self._sent.to_bytes(8, "big"), data], copy=False)


def _server(
    context: zmq.Context[zmq.Socket[bytes]], port: int, public: bytes, secret: bytes
) -> zmq.Socket[bytes]:
    router = context.socket(zmq.ROUTER)
    router.curve_server, router.curve_publickey, router.curve_secretkey = True, public, secret
    router.router_mandatory = True
    router.sndhwm = router.rcvhwm = 0
    router.bind(f"tcp://127.0.0.1:{port}")
    return router


def _dealer(context: zmq.Context[zmq.Socket[bytes]], port: int, server: bytes) -> zmq.Socket[bytes]:
    dealer = context.socket(zmq.DEALER)
    dealer.curve_serverkey = server
    dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
    dealer.sndhwm = dealer.rcvhwm = 0
    dealer.connect(f"tcp://127.0.0.1:{port}")
    return dealer


if __name__ == "__main__":
    ready, number, facts = sys.argv[1:]
    given = json.loads(facts)
    serve(Path(ready), int(number), given["ports"], given["public"].encode(), given["secret"].encode())
