"""Read topics with a plain ZeroMQ SUB socket: no meshq here, only its credentials file.

    python examples/plain_sub.py app.meshq orders.eu
    python examples/plain_sub.py app.meshq orders.eu --framed

The feed sends each record in two forms, and a subscription chooses by its first byte:

    plain    subscribe to a prefix of topics          receives [topic, value]
    framed   subscribe to \\x01 + topic + \\x00       receives [\\x01 topic \\x00, msgpack of metadata, value]

It is at most once and from now on: a durable reader uses meshq's client. Any language with ZeroMQ and CURVE
can do the same in as many lines.
"""

from __future__ import annotations

import argparse
import contextlib
import tomllib
from pathlib import Path

import msgspec
import zmq


def connect(credentials: Path) -> zmq.Socket[bytes]:
    """A SUB socket at the feed of the first peer; any peer serves all topics."""
    with credentials.open("rb") as f:
        document = tomllib.load(f)
    peer, client = document["peers"][0], document["client"]
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    socket.curve_serverkey = peer["server_key"].encode()
    socket.curve_publickey = client["public_key"].encode()
    socket.curve_secretkey = client["secret_key"].encode()
    socket.linger = 0
    socket.connect(peer["feed"])
    return socket


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("credentials", type=Path)
    parser.add_argument("topic", help="a topic, or without --framed a prefix of topics")
    parser.add_argument("--framed", action="store_true", help="with offset, key and headers")
    parser.add_argument("--count", type=int, help="stop after so many records")
    args = parser.parse_args()

    socket = connect(args.credentials)
    topic = args.topic.encode()
    socket.subscribe(b"\x01" + topic + b"\x00" if args.framed else topic)
    print("subscribed", flush=True)
    received = 0
    while args.count is None or received < args.count:
        frames = socket.recv_multipart()
        received += 1
        if args.framed:
            meta = msgspec.msgpack.decode(frames[1])
            name = frames[0][1:-1].decode()
            place = f"{name}/{meta['partition']}@{meta['offset']}"
            print(place, meta["timestamp"], meta["key"], meta["headers"], frames[2], flush=True)
        else:
            print(frames[0].decode(), frames[1], flush=True)
    zmq.Context.instance().destroy(linger=0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
