"""One stage of a log pipeline: reads raw lines in order, parses them, and passes them on. Run as many as you
like.

    python examples/collect_log.py /var/log/syslog logs.raw --data ~/.meshq      # on every host: lines by
    host python examples/log_pipeline.py logs.raw logs.parsed --data ~/.meshq         # here, and here, and
    there

The programs share the partitions of `logs.raw` as an ordered group: each partition is with one of them, so
the lines of a host stay in order. Start one more and it takes over its share; stop one, by Ctrl-C or kill -9,
and the others take over what it had, from where it was. A batch is acknowledged when all that came of it is
stored: what is lost with a program is done again by the next one, so a line may be passed on twice and never
be missing."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
from datetime import UTC, datetime

import meshq

LEVEL = re.compile(rb"\b(DEBUG|INFO|WARN(?:ING)?|ERROR|CRITICAL)\b")


def parse(record: meshq.Record) -> bytes:
    """What the next stage gets of a line."""
    level = LEVEL.search(record.value)
    return json.dumps(
        {
            "host": (record.key or b"").decode(errors="replace"),
            "at": datetime.fromtimestamp(record.timestamp / 1000, UTC).isoformat(),
            "level": level.group(1).decode() if level else "INFO",
            "text": record.value.decode(errors="replace"),
            "from": f"{record.topic}/{record.partition}@{record.offset}",
        }
    ).encode()


async def pass_on(logs: meshq.OrderedSubscription, out: meshq.Producer) -> None:
    while True:
        try:
            records = await logs.take()  # of one partition, in order
        except StopAsyncIteration:
            return
        for record in records:
            await out.ready()
            out.send(parse(record), key=record.key)
        await out.flush()  # raises when some could not be stored: then they are not acknowledged
        try:
            await records[-1].ack()  # this one and all before it
        except meshq.LeaseLost as e:
            print(f"taken over by another: {e}", flush=True)
        else:
            last = records[-1]
            print(f"{last.topic}/{last.partition}: {len(records)} to {last.offset}", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source")
    parser.add_argument("target")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data", help="data directory of the peer on this host")
    where.add_argument("--credentials", help="file of `meshq client add`")
    parser.add_argument("--group", default="pipeline")
    parser.add_argument("--session-timeout", type=float, default=10.0, help="seconds until others take over")
    args = parser.parse_args()
    async with (
        meshq.connect(credentials=args.credentials, data=args.data, name="log_pipeline") as mesh,
        mesh.producer(args.target, compression="zstd") as out,
        mesh.subscribe(
            args.source, group=args.group, mode="ordered", session_timeout=args.session_timeout
        ) as logs,
    ):
        for number in (signal.SIGINT, signal.SIGTERM):  # leave, so that the others need not wait
            asyncio.get_running_loop().add_signal_handler(number, lambda: asyncio.ensure_future(logs.close()))
        print(f"parsing {args.source} into {args.target}", flush=True)
        await pass_on(logs, out)


if __name__ == "__main__":
    asyncio.run(main())
