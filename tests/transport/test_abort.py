"""libzmq's heartbeats can abort a process (docs/facts.md), so no socket of ours has them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import zmq

# A socket with a small queue that nobody reads, and a sender that fills it and is killed.
VICTIM = """
import signal, subprocess, sys, time, zmq
socket = zmq.Context().socket(zmq.ROUTER)
socket.setsockopt(zmq.RCVHWM, 5)
socket.setsockopt(zmq.HEARTBEAT_IVL, int(sys.argv[1]))
socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10_000)
port = socket.bind_to_random_port("tcp://127.0.0.1")
sender = subprocess.Popen([sys.executable, "-c", f'''
import time, zmq
socket = zmq.Context().socket(zmq.DEALER)
socket.connect("tcp://127.0.0.1:{port}")
for _ in range(50): socket.send(bytes(100))
time.sleep(30)
'''])
session = socket.recv()
socket.send_multipart([session, bytes(3_000_000)])  # unread, so that its end is a reset
deadline = time.monotonic() + 10
while time.monotonic() < deadline and not socket.poll(0):
    time.sleep(0.01)
time.sleep(0.5)
sender.kill()
sender.wait()
time.sleep(1.0)  # several heartbeats
while socket.poll(200):
    socket.recv_multipart()
"""


def test_no_socket_of_ours_has_heartbeats(run):
    async def scenario(world):
        router, feed, ingest = world.router(), world.feed(), world.ingest()
        link = world.link(router.bound[0], world.admit("requests"), [])
        for ours in (router, feed, ingest, link):
            assert ours._socket.getsockopt(zmq.HEARTBEAT_IVL) == 0
            assert ours._socket.getsockopt(zmq.TCP_KEEPALIVE) == 1
            assert ours._socket.getsockopt(zmq.TCP_MAXRT) > 0

    run(scenario)


@pytest.mark.long
@pytest.mark.parametrize(("every_ms", "ends"), [(0, "well"), (200, "aborted")])
def test_what_heartbeats_do(every_ms, ends):
    """When the second one ends well, libzmq is mended and they may come back."""
    command = [sys.executable, "-c", VICTIM, str(every_ms)]
    done = subprocess.run(command, check=False, capture_output=True, timeout=30)
    assert (b"!_io_error" in done.stderr) is (ends == "aborted"), done.stderr
    assert (done.returncode == 0) is (ends == "well")
