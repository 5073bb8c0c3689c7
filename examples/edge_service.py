"""A service at the edge that goes on publishing while the network is away, and loses and doubles nothing.

    python examples/edge_service.py app.meshq edge.readings --outbox ./outbox

Each reading is published into an outbox: a directory of this program's own. `publish` returns when this
host's disk has the record, whether any peer can be reached or not; what waits is sent when one can, in order,
once, over restarts of this program too. Ctrl-C ends it; what still waits is sent by the next start.

Prints `queued ID` for each reading and, from time to time, how many wait. Look from outside with
`meshq outbox show ./outbox`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import time
import uuid

import meshq

SAY_EVERY_S = 1.0


async def serve(mesh: meshq.Mesh, topic: str, every: float) -> None:
    host = socket.gethostname()
    said = time.monotonic()
    while True:
        reading = {"id": uuid.uuid4().hex, "host": host, "at": time.time(), "load1": os.getloadavg()[0]}
        try:
            await mesh.publish(topic, json.dumps(reading).encode(), key=host.encode())
            print(f"queued {reading['id']}", flush=True)
        except meshq.OutboxFull as e:
            # As long as nothing can be sent there is no room for more: this reading is given up, knowingly.
            print(f"given up {reading['id']}: {e}", flush=True)
        if mesh.outbox is not None and time.monotonic() - said >= SAY_EVERY_S:
            said = time.monotonic()
            status = mesh.outbox.status()
            print(f"{status['queued'] + status['sent']} wait, {status['parked']} parked", flush=True)
        await asyncio.sleep(every)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("credentials", help="file of `meshq client add`")
    parser.add_argument("topic")
    parser.add_argument("--outbox", required=True, help="a directory of this program's own")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between readings (1)")
    args = parser.parse_args()
    async with meshq.connect(credentials=args.credentials, outbox=args.outbox, name="edge_service") as mesh:
        await serve(mesh, args.topic, args.every)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
