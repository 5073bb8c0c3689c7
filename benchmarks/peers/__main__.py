"""`make bench-peers`: meshq beside Kafka, NATS JetStream, Redis Streams and RabbitMQ, one after the other.

    python -m benchmarks.peers [--quick] [--only NAME]... [--write FILE]

Each is three nodes on loopback that share this machine with the one client; nothing else is running. What is
written lies below one temporary directory and goes with it; what is started is ended by its process group.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.kafka import Kafka, KafkaFlushing
from benchmarks.peers.measures import Effort, Found, measure
from benchmarks.peers.meshq_three import Meshq
from benchmarks.peers.nats import Nats, NatsBatched, NatsSyncing, NatsSyncingBatched
from benchmarks.peers.rabbitmq import RabbitQuorum, RabbitStreams
from benchmarks.peers.redis_streams import Redis
from benchmarks.peers.system import System, Unable

SYSTEMS: Sequence[type[System]] = (
    Meshq, KafkaFlushing, Kafka, NatsSyncing, NatsSyncingBatched, Nats, NatsBatched, Redis, RabbitQuorum,
    RabbitStreams,
)  # fmt: skip
Results = Mapping[str, tuple[System, Found]]
# Heading, figure, how it is shown, and whether more is better.
COLUMNS = (
    ("100 B records/s", "publish100", "{:,.0f}", True),
    ("1 KiB records/s", "publish1024", "{:,.0f}", True),
    ("single p50, ms", "single_p50", "ms", False),
    ("single p99, ms", "single_p99", "ms", False),
    ("paced p50, ms", "paced_p50", "ms", False),
    ("paced p99, ms", "paced_p99", "ms", False),
    ("catch-up records/s", "catch_up", "{:,.0f}", True),
    ("work queue records/s", "work", "{:,.0f}", True),
    ("fail-over gap, s", "gap", "{:.2f}", False),
    ("MiB resident a node", "memory", "{:,.0f}", False),
    ("idle, of a core a node", "idle", "{:.2%}", False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a few seconds each; the figures say nothing")
    parser.add_argument("--only", action="append", help="systems whose name contains this; more than once")
    parser.add_argument("--write", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    logging.disable(logging.CRITICAL)  # the clients complain of nodes that are killed on purpose
    effort = Effort.quick() if args.quick else Effort()
    chosen = [s for s in SYSTEMS if not args.only or any(o.lower() in s.name.lower() for o in args.only)]
    results: dict[str, tuple[System, Found]] = {}
    for make in chosen:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="meshq-bench-", ignore_cleanup_errors=True) as where:
            results[make.name] = asyncio.run(_run(make(Path(where)), effort))
        _say(f"{make.name}: {time.perf_counter() - start:.0f} s in all")
    text = tables(results, effort)
    print(text)
    if args.write:
        args.write.write_text(text)


async def _run(system: System, effort: Effort) -> tuple[System, Found]:
    try:
        await system.start()
        return system, await measure(system, effort, _say)
    except Unable as e:
        _say(f"{system.name}: {e}")
        return system, Found(why={"start": str(e)})
    finally:
        await system.stop()


def tables(results: Results, effort: Effort) -> str:
    ours = results[Meshq.name][1].figures if Meshq.name in results else {}
    lines = [
        f"Three nodes and one client process of each on {os.cpu_count()} cores; medians of {effort.rounds} "
        f"rounds of {effort.seconds:g} s.",
        "In parentheses: that system's figure divided by meshq's.",
        "",
        "| system | " + " | ".join(heading for heading, *_ in COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name, (_, found) in results.items():
        cells = [_cell(found, ours, figure, how) for _, figure, how, _ in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| system | version | as it was set up | what an acknowledgement promised |",
        "|---|---|---|---|",
    ]
    for name, (system, _) in results.items():
        lines.append(f"| {name} | {system.version or '?'} | {system.settings} | {system.promised} |")
    missing = [
        f"- {name}, {part}: {why}" for name, (_, found) in results.items() for part, why in found.why.items()
    ]
    return "\n".join([*lines, *(["", "Not measured:", "", *missing] if missing else []), ""])


def _cell(found: Found, ours: Mapping[str, float], figure: str, how: str) -> str:
    value = found.figures.get(figure)
    if value is None:
        return "-"
    shown = f"{value * 1e3:.2f}" if how == "ms" else how.format(value)
    base = ours.get(figure)
    return shown if not base or found.figures is ours else f"{shown} ({value / base:.2f})"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
