"""P1 as it stands with one replica, P2 and P3: kill -9, again and again, loses and doubles nothing."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import meshq
from tests.mesh.conftest import free_base_port

KILLS = 20
OUTSTANDING = 500  # records without a receipt: few enough to be stored well within their deadline


def _start(path: Path, port: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "meshq",
        "up",
        "--data",
        str(path),
        "--bind",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = subprocess.Popen([*command, "--no-mdns"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None and b"is up" in process.stdout.readline()
    return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.deadline(120)
async def test_every_acknowledged_record_is_there_once_after_twenty_kills(
    directories: Callable[[int], list[Path]], eventually: Any
) -> None:
    path, port = directories(1)[0], free_base_port()
    rng = random.Random(20)
    process = await asyncio.to_thread(_start, path, port)
    receipts: dict[int, meshq.Receipt] = {}
    number = 0
    try:
        async with meshq.connect(data=path) as mesh:
            async with mesh.producer("numbers", linger_ms=1, batch_bytes=2_000) as out:
                stop = False
                room = asyncio.Semaphore(OUTSTANDING)

                async def keep(n: int, pending: Any) -> None:
                    try:
                        receipts[n] = await pending
                    finally:
                        room.release()

                tasks: set[asyncio.Task[None]] = set()

                async def publish() -> None:
                    nonlocal number
                    while not stop:
                        await room.acquire()
                        task = asyncio.create_task(keep(number, out.send(b"%d" % number)))
                        tasks.add(task)
                        number += 1
                        if number % 20 == 0:
                            await asyncio.sleep(0.001)

                publishing = asyncio.create_task(publish())
                for _ in range(KILLS):
                    wanted = len(receipts) + rng.randrange(1, 400)
                    await eventually(lambda wanted=wanted: len(receipts) >= wanted, 20)
                    await asyncio.to_thread(_kill, process)
                    process = await asyncio.to_thread(_start, path, port)
                stop = True
                await publishing
                await asyncio.wait_for(asyncio.gather(*tasks), 40)
            assert len(receipts) == number, "every record got its receipt in the end"
            values: list[bytes] = []
            async with mesh.subscribe("numbers", start="earliest") as records:
                async for record in records:
                    assert record.offset == len(values), "offsets are dense"
                    values.append(record.value)
                    if len(values) == number:
                        break
            shown = await mesh.ask("topic.show", {"topic": "numbers"})
        assert shown["partition"][0]["end"] == number, "nothing is there twice"
        assert values == [b"%d" % n for n in range(number)]
        assert all(values[r.offset] == b"%d" % n for n, r in receipts.items())
    finally:
        _kill(process)
