"""One node of a kinship cluster for `benchmarks.membership`: a process that writes what it is told.

    python -m benchmarks.kinship_node NAME PORT SEED_PORT,... '{"probe_interval": 0.1, ...}'

One JSON object a line on standard output: `at_ms` of wall time, `event`, `name`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import kinship


async def main(name: str, port: str, seeds: list[str], options: dict[str, Any]) -> None:
    where = {"bind": f"127.0.0.1:{port}", "seeds": [f"127.0.0.1:{s}" for s in seeds]}
    config = kinship.Config.lan(name=name, keys=[b"k" * 32], **where, **options)
    async with kinship.Cluster(config) as cluster:
        events = cluster.events()
        say("Ready", ",".join(sorted(m.name for m in cluster.members())))
        for member in cluster.members():
            say("MemberJoined", member.name)
        async for event in events:
            say(type(event).__name__, getattr(getattr(event, "member", None), "name", None))


def say(event: str, name: str | None) -> None:
    print(json.dumps({"at_ms": time.time_ns() // 1_000_000, "event": event, "name": name}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3].split(","), json.loads(sys.argv[4])))
