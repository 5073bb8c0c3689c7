"""A sensor that is a peer: it measures this host and publishes through a peer inside its own process.

    meshq init --data sensor            (or: meshq join TOKEN --data sensor)
    python examples/sensor_peer.py --data sensor --every 1

No second process and no socket in between: `meshq.Peer` runs the whole peer in this event loop, and others of
the mesh can reach it as they reach any peer. Topics are `sensors.HOST.load` (the load averages) and
`sensors.HOST.temperature` (degrees Celsius, where the host has a thermal sensor); values are JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import meshq

THERMAL = Path("/sys/class/thermal")


def read_load() -> dict[str, Any]:
    """The load averages over 1, 5 and 15 minutes, and how many tasks there are."""
    one, five, fifteen, tasks, _ = Path("/proc/loadavg").read_text().split()
    running, _, total = tasks.partition("/")
    return {
        "load1": float(one), "load5": float(five), "load15": float(fifteen),
        "running": int(running), "tasks": int(total),
    }  # fmt: skip


def read_temperatures() -> dict[str, float]:
    """Degrees by sensor; empty on hosts without one."""
    found = {}
    for zone in sorted(THERMAL.glob("thermal_zone*")):
        try:
            found[f"{zone.name}:{(zone / 'type').read_text().strip()}"] = (
                int((zone / "temp").read_text()) / 1000
            )
        except (OSError, ValueError):
            continue  # sensors come and go, and some refuse to be read
    return found


async def measure(peer: meshq.Peer, host: str, every_s: float, count: int | None) -> None:
    number = 0
    while count is None or number < count:
        started = time.monotonic()
        readings: dict[str, Any] = {"load": read_load()}
        if temperatures := read_temperatures():
            readings["temperature"] = temperatures
        for name, value in readings.items():
            value["at"] = time.time()
            # One key a host: its readings stay in order, however many partitions the topic has.
            receipt = await peer.publish(
                f"sensors.{host}.{name}", json.dumps(value).encode(), key=host.encode()
            )
            print(f"{receipt.topic}/{receipt.partition}@{receipt.offset} {value}", flush=True)
        number += 1
        await asyncio.sleep(max(0.0, every_s - (time.monotonic() - started)))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True, help="data directory of `meshq init` or `meshq join`")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--count", type=int, help="stop after so many measurements")
    parser.add_argument("--port", type=int, help="base port, if not the one in the directory's meshq.toml")
    args = parser.parse_args()
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())
    settings = {} if args.port is None else {"port": args.port}
    async with meshq.Peer(data=args.data, **settings) as peer:
        print(f"up on {', '.join(peer.addresses)}", flush=True)
        await measure(peer, host, args.every, args.count)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
