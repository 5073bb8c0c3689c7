"""Count the records of a topic by key, in windows of time. It may be killed at any moment, and counts right
all the same.

    python examples/windowed_count.py orders.eu counts.orders --window 60 --data ~/.meshq

It keeps no files. What it has counted of a window that is still open is in memory alone, and the records of
that window are not acknowledged: whoever goes on (this program started again, or another member of the group)
begins with the window's first record and counts it anew. A window is closed by the first record behind it.
Then its counts are published, and once they are stored the records are acknowledged, all of them by one word.

If it is killed between these two, the counts are published again: the same ones, under the same key. Whoever
reads them keeps the last of a key. Each partition is counted by itself; to get the count of a key over all,
add them up."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections import Counter
from dataclasses import dataclass, field

import meshq


@dataclass
class Window:
    """What was counted in one partition since `start` (ms since 1970). `last`: the record to acknowledge."""

    start: int
    counts: Counter[str] = field(default_factory=Counter)
    last: meshq.OrderedRecord | None = None


class Counting:
    def __init__(self, out: meshq.Producer, window_ms: int) -> None:
        self._out = out
        self._window_ms = window_ms
        self._open: dict[tuple[str, int], Window] = {}

    def forget(self, topic: str, partition: int) -> None:
        """The partition goes to another member, which counts its open window from the beginning."""
        self._open.pop((topic, partition), None)

    async def count(self, record: meshq.OrderedRecord) -> None:
        # When the leader appended it: never decreasing along a partition, and the same whenever it is read.
        start = record.timestamp - record.timestamp % self._window_ms
        place = (record.topic, record.partition)
        window = self._open.get(place)
        if window is not None and start > window.start:
            await self._close(place, window)
            if self._open.pop(place, None) is not window:
                return  # it went to another member meanwhile, and this record with it
            window = None
        if window is None:
            window = self._open[place] = Window(start)
        window.counts[(record.key or b"").decode(errors="replace")] += 1
        window.last = record

    async def _close(self, place: tuple[str, int], window: Window) -> None:
        topic, partition = place
        for key, count in sorted(window.counts.items()):
            value = {"key": key, "partition": partition, "window_ms": window.start, "count": count}
            await self._out.ready()
            self._out.send(json.dumps(value).encode(), key=f"{key}/{partition}/{window.start}".encode())
        await self._out.flush()
        if self._open.get(place) is window and window.last is not None:  # still ours
            try:
                await window.last.ack()
            except meshq.LeaseLost:
                return  # and counted by another, who says the same
        print(f"{topic}/{partition}: {sum(window.counts.values())} in window {window.start}", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source")
    parser.add_argument("target")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", help="data directory of the peer on this host")
    where.add_argument("--credentials", help="file of `meshq client add`")
    parser.add_argument("--window", type=float, default=60.0, help="seconds")
    parser.add_argument("--group", default="windowed-count")
    parser.add_argument("--session-timeout", type=float, default=10.0, help="seconds until others take over")
    args = parser.parse_args()
    async with (
        meshq.connect(credentials=args.credentials, data=args.data, name="windowed_count") as mesh,
        mesh.producer(args.target) as out,
    ):
        counting = Counting(out, round(args.window * 1000))
        async with mesh.subscribe(
            args.source, group=args.group, mode="ordered", session_timeout=args.session_timeout,
            on_revoke=counting.forget,
        ) as stream:  # fmt: skip
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(
                    number, lambda: asyncio.ensure_future(stream.close())
                )
            print(f"counting {args.source} into {args.target}", flush=True)
            async for record in stream:
                await counting.count(record)


if __name__ == "__main__":
    asyncio.run(main())
