"""A stock ZeroMQ socket with a good key that sends one message without an end, in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import zmq

MIB = 1024 * 1024
_PROGRAM = """
import sys, zmq
kind, endpoint, frame_bytes, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
context = zmq.Context()
socket = context.socket(kind)
socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = map(bytes.fromhex, sys.argv[5:])
socket.reconnect_ivl = -1
socket.sndhwm = 0
monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
socket.connect(endpoint)
if kind == zmq.XPUB and socket.poll(10_000):
    socket.recv()  # it takes everything: from here on what is published is sent
for _ in range(count):
    socket.send(b"x" * frame_bytes, zmq.SNDMORE)
socket.send(b"")  # libzmq's own sockets begin to send when they have the end
monitor.poll(10_000)
context.destroy(linger=0)
"""


async def start_greedy(
    endpoint: str, *keys: bytes, kind: int = zmq.DEALER, frame_bytes: int = 16_000, total: int = 100 * MIB
) -> asyncio.subprocess.Process:
    """`keys`: the server's, its own public and secret one."""
    numbers = [str(int(kind)), endpoint, str(frame_bytes), str(total // frame_bytes)]
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PROGRAM, *numbers, *(key.hex() for key in keys)
    )


def rss() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
