"""A producer that keeps its batches full: what both parts of `make bench` measure publishing with."""

from __future__ import annotations

import time

import meshq
from meshq.client.mesh import Mesh

BATCH_BYTES = 256 * 1024
IN_FLIGHT = 16


async def publish_many(mesh: Mesh, topic: str, value: bytes, count: int) -> float:
    """Seconds a record, from the first to the last receipt."""
    values = [value] * 4096
    async with mesh.producer(topic, batch_bytes=BATCH_BYTES, in_flight=IN_FLIGHT) as out:
        await out.send(value)
        start = time.perf_counter()
        done = 0
        while done < count:
            taken = out.send_many(values)
            done += taken
            if taken < len(values):
                await out.ready()
        await out.flush()
        return (time.perf_counter() - start) / done


async def publish_each(mesh: Mesh, topic: str, value: bytes, count: int) -> float:
    async with mesh.producer(topic, batch_bytes=BATCH_BYTES, in_flight=IN_FLIGHT) as out:
        await out.send(value)
        start = time.perf_counter()
        send, done = out.send, 0
        while done < count:
            try:
                while done < count:
                    send(value)
                    done += 1
            except meshq.Overloaded:
                await out.ready()
        await out.flush()
        return (time.perf_counter() - start) / count
