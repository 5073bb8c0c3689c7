"""Order processing as a work queue: retries for what may pass, dead letters for what will not.

    python examples/orders.py place 5 --data ~/.meshq            # five orders (one of them makes no sense)
    python examples/orders.py work --ledger ledger.db --data ~/.meshq        # as many of these as you like
    python examples/orders.py letters --data ~/.meshq            # what was given up, and why

A record may be handed out more than once (a worker dies after charging, before it says so). So what a worker
does has to be the same when it is done twice: here the ledger refuses a second charge of the same order.

    may pass (the payment service is away)   nack: again, after a growing delay, ten times at most
    will not pass (the order makes no sense) reject: a dead letter at once, with the reason
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sqlite3
import uuid
from typing import Any

import meshq

TOPIC, GROUP = "shop.orders", "billing"


class PaymentAway(Exception):
    """The payment service does not answer just now."""


class Ledger:
    """Who was charged what, once an order."""

    def __init__(self, path: str, failing: int) -> None:
        self._db = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._db.execute("CREATE TABLE IF NOT EXISTS charges (id TEXT PRIMARY KEY, customer TEXT, cents INT)")
        self._failing = failing

    def charge(self, order: dict[str, Any], attempt: int) -> bool:
        """Whether it was the first time. Raises: PaymentAway, ValueError."""
        if not isinstance(order.get("cents"), int) or order["cents"] <= 0:
            raise ValueError(f"nobody can be charged {order.get('cents')!r} cents")
        if attempt <= self._failing:  # stands for the network between here and the service
            raise PaymentAway
        done = self._db.execute(
            "INSERT OR IGNORE INTO charges VALUES (?, ?, ?)", (order["id"], order["customer"], order["cents"])
        )
        return done.rowcount == 1


async def place(mesh: meshq.Mesh, count: int) -> None:
    for n in range(count):
        cents = -1 if n == count - 1 else random.randrange(1, 10_000)
        customer = f"c{n}"
        order = {"id": str(uuid.uuid4()), "customer": customer, "cents": cents}
        await mesh.publish(TOPIC, json.dumps(order).encode(), key=customer.encode())
    print(f"{count} orders placed", flush=True)


async def work(mesh: meshq.Mesh, ledger: Ledger, until_idle: float | None) -> None:
    async with mesh.subscribe(TOPIC, group=GROUP, ack_wait=30.0, max_deliver=10) as orders:
        while True:
            try:
                record = await asyncio.wait_for(anext(orders), until_idle)
            except TimeoutError:
                return
            try:
                first = ledger.charge(json.loads(record.value), record.attempts)
            except PaymentAway:
                record.nack()
                print(f"{record.offset}: payment away, attempt {record.attempts}", flush=True)
            except (ValueError, KeyError) as e:
                await record.reject(str(e))
                print(f"{record.offset}: rejected: {e}", flush=True)
            else:
                await record.ack()  # once this returns, nobody is handed it again
                print(f"{record.offset}: {'charged' if first else 'was charged before'}", flush=True)


async def letters(mesh: meshq.Mesh) -> None:
    """`meshq group redrive shop.orders billing` hands them out again, when they can be done after all."""
    waiting = sum(p.dead for p in await mesh.group_show(TOPIC, GROUP))
    print(f"{waiting} dead letters", flush=True)
    if waiting:
        async with mesh.subscribe(f"_dead.{GROUP}.{TOPIC}", start="earliest") as dead:
            for _ in range(waiting):
                r = await anext(dead)
                reason, origin = r.headers["meshq-reason"], r.headers["meshq-origin"]
                print(f"{origin.decode()} {reason.decode()}: {r.value.decode()}", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    verbs = parser.add_subparsers(dest="verb", required=True)
    placing, working, reading = (verbs.add_parser(v) for v in ("place", "work", "letters"))
    for verb in (placing, working, reading):
        verb.add_argument("--data", help="data directory of a peer on this host")
        verb.add_argument("--credentials", help="or a file made by `meshq client add`")
    placing.add_argument("count", type=int)
    working.add_argument("--ledger", required=True, metavar="FILE", help="a SQLite database")
    working.add_argument("--failing", type=int, default=1, help="how often each payment fails at first")
    working.add_argument("--until-idle", type=float, metavar="SECONDS", help="stop when there is no more")
    args = parser.parse_args()
    where = {"credentials": args.credentials} if args.credentials else {"data": args.data or "~/.meshq"}
    async with meshq.connect(**where) as mesh:
        match args.verb:
            case "place":
                await place(mesh, args.count)
            case "work":
                await work(mesh, Ledger(args.ledger, args.failing), args.until_idle)
            case "letters":
                await letters(mesh)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
