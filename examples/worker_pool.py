"""A pool of workers for functions called elsewhere, as one knows it from Celery or taskiq, without a broker.

    python examples/worker_pool.py work --concurrency 4 --data ~/.meshq      # on any number of hosts
    python examples/worker_pool.py call sha256 FILE... --wait --data ~/.meshq

A function becomes a task by `@pool.task`. `await pool.call(mesh, "name", ...)` stores the call and returns
its id; some worker does it, and publishes what came of it under that id. What a worker of such a
pool is expected to do is in `Pool._do`:

    a call that takes long   its time is extended while it runs
    one that raises          again, after a growing delay, `max_deliver` times; then it is a dead letter
    one that raises Reject   a dead letter at once
    a worker that dies       its calls go to others when `ack_wait` is over
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import meshq


class Reject(Exception):
    """Raised by a task: calling it again is no use."""


class Pool:
    """`topic`: where calls are stored; what came of them is in `TOPIC.results`."""

    def __init__(self, topic: str, *, ack_wait: float = 30.0, max_deliver: int = 5) -> None:
        self.topic, self.results = topic, f"{topic}.results"
        self.ack_wait, self.max_deliver = ack_wait, max_deliver
        self._tasks: dict[str, Callable[..., Any]] = {}

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._tasks[function.__name__] = function
        return function

    async def call(self, mesh: meshq.Mesh, name: str, *args: Any, **kwargs: Any) -> str:
        """The call's id. When this returns the call is on disk, whoever dies."""
        call_id = uuid.uuid4().hex
        call = {"id": call_id, "task": name, "args": args, "kwargs": kwargs}
        await mesh.publish(self.topic, json.dumps(call).encode())
        return call_id

    async def work(self, mesh: meshq.Mesh, concurrency: int) -> None:
        """Do calls, so many at a time, until cancelled. No more are taken than can be begun at once, so that
        others are free to take the rest.
        """
        calls = mesh.subscribe(
            self.topic, group="workers", ack_wait=self.ack_wait, max_deliver=self.max_deliver,
            credit_records=concurrency,
        )  # fmt: skip
        async with calls, asyncio.TaskGroup() as running:
            async for record in calls:
                running.create_task(self._do(mesh, record))

    async def _do(self, mesh: meshq.Mesh, record: meshq.GroupRecord) -> None:
        extending = asyncio.create_task(self._extend(record))
        try:
            call = json.loads(record.value)
            if call["task"] not in self._tasks:
                raise Reject(f"no task is called {call['task']!r}")
            function = self._tasks[call["task"]]
            value = await asyncio.to_thread(function, *call["args"], **call["kwargs"])
            answer = json.dumps({"id": call["id"], "value": value, "attempts": record.attempts})
            await mesh.publish(self.results, answer.encode(), key=call["id"].encode())
            with contextlib.suppress(meshq.LeaseLost):  # it took too long: done twice, and told twice
                await record.ack()
            print(f"{call['id']} {call['task']}: done", flush=True)
        except (Reject, ValueError, KeyError, TypeError) as e:
            record.reject(f"{type(e).__name__}: {e}"[:256])
            print(f"{record.partition}@{record.offset}: rejected: {e}", flush=True)
        except Exception as e:
            record.nack()
            print(f"{record.partition}@{record.offset}: attempt {record.attempts}: {e}", flush=True)
        finally:
            extending.cancel()

    async def _extend(self, record: meshq.GroupRecord) -> None:
        while True:
            await asyncio.sleep(self.ack_wait / 3)
            record.extend()


pool = Pool("pool.calls")


@pool.task
def sha256(path: str) -> str:
    if not Path(path).is_absolute():
        raise Reject(f"{path} is not an absolute path")
    with Path(path).open("rb") as f:  # a file that is not there yet may be there when it is tried again
        return hashlib.file_digest(f, "sha256").hexdigest()


@pool.task
def count_words(path: str) -> int:
    return len(Path(path).read_text(errors="replace").split())


async def call(mesh: meshq.Mesh, task: str, paths: list[str], wait: bool) -> None:
    """Wait for what comes of them, in the order they are done."""
    results = mesh.subscribe(pool.results)
    if wait:
        await results.ready()  # from now on none is missed
    waiting = {await pool.call(mesh, task, path): path for path in paths}
    for call_id, path in waiting.items():
        print(f"{call_id} {path}", flush=True)
    while wait and waiting:
        answer = json.loads((await anext(results)).value)
        path = waiting.pop(answer["id"], "")
        if path:
            print(f"{path}: {answer['value']}", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    verbs = parser.add_subparsers(dest="verb", required=True)
    working, calling = verbs.add_parser("work"), verbs.add_parser("call")
    for verb in (working, calling):
        verb.add_argument("--data", help="data directory of a peer on this host")
        verb.add_argument("--credentials", help="or a file made by `meshq client add`")
    working.add_argument("--concurrency", type=int, default=4)
    calling.add_argument("task", choices=["sha256", "count_words"])
    calling.add_argument("paths", nargs="+", metavar="FILE")
    calling.add_argument("--wait", action="store_true", help="for what comes of it")
    args = parser.parse_args()
    where = {"credentials": args.credentials} if args.credentials else {"data": args.data or "~/.meshq"}
    async with meshq.connect(**where) as mesh:
        if args.verb == "work":
            print("working", flush=True)
            await pool.work(mesh, args.concurrency)
        else:
            await call(mesh, args.task, args.paths, args.wait)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
