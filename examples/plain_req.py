"""Publish with a plain ZeroMQ REQ socket, with receipts: no meshq here, only its credentials file.

    python examples/plain_req.py app.meshq orders.eu "12 boxes" --key 42 --header trace=abc

    sends      ["PUB", topic, key, value]   or with a fifth frame, headers as a msgpack map of text to bytes
    receives   ["200", msgpack{topic, partition, offset, copies}]   or [status, name of the error, text]

An empty key frame means no key. A request that was not answered may or may not be stored; asking again may
store it twice, which meshq's own client would not.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path

import msgspec
import zmq

TIMEOUT_MS = 30_000


def connect(credentials: Path) -> zmq.Socket[bytes]:
    """A REQ socket at the first peer; any peer takes records for all topics."""
    with credentials.open("rb") as f:
        document = tomllib.load(f)
    peer, client = document["peers"][0], document["client"]
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
    socket.curve_serverkey = peer["server_key"].encode()
    socket.curve_publickey = client["public_key"].encode()
    socket.curve_secretkey = client["secret_key"].encode()
    socket.rcvtimeo = TIMEOUT_MS
    socket.linger = 0
    socket.connect(peer["requests"])
    return socket


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("credentials", type=Path)
    parser.add_argument("topic")
    parser.add_argument("value", nargs="+", help="one record each")
    parser.add_argument("--key", default="")
    parser.add_argument("--header", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()

    headers = {name: value.encode() for name, _, value in (h.partition("=") for h in args.header)}
    socket = connect(args.credentials)
    try:
        for value in args.value:
            frames = [b"PUB", args.topic.encode(), args.key.encode(), value.encode()]
            if headers:
                frames.append(msgspec.msgpack.encode(headers))
            socket.send_multipart(frames)
            status, *answer = socket.recv_multipart()
            if status != b"200":
                print(f"{status.decode()} {answer[0].decode()}: {answer[1].decode()}", file=sys.stderr)
                return 1
            receipt = msgspec.msgpack.decode(answer[0])
            print("{topic}/{partition}@{offset} copies={copies}".format(**receipt), flush=True)
        return 0
    except zmq.Again:
        print(f"no answer within {TIMEOUT_MS // 1000} s: it may or may not be stored", file=sys.stderr)
        return 1
    finally:
        zmq.Context.instance().destroy(linger=0)


if __name__ == "__main__":
    sys.exit(main())
