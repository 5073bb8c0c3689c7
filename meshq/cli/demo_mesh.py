"""The demonstration's mesh: peers on loopback, each a process of its own, in a directory that is removed.

Nothing of it outlives the demonstration, whichever way that ends, and nothing outside is touched: the peers
listen on 127.0.0.1 only, on ports that were free, and see no MESHQ_* setting of this shell.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import sys
import tempfile
from asyncio.subprocess import Process
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from meshq.cli.founding import PORT_STEP
from meshq.cli.reach import Failed
from meshq.peer.settings import PEERS

HOST: Final = "127.0.0.1"
START_S: Final = 30.0
STOP_S: Final = 12.0  # a peer promises ten
POLL_S: Final = 0.02
_LOG_LINES = 8  # shown when something went wrong


class DemoMesh:
    """`async with DemoMesh(3) as mesh`: made, not yet started."""

    def __init__(self, peers: int) -> None:
        self.names = [f"peer{i + 1}" for i in range(peers)]
        self.base_port = free_base_port(peers)
        self.path = Path(tempfile.mkdtemp(prefix="meshq-demo-"))
        self._running: dict[str, Process] = {}

    def data(self, name: str) -> Path:
        return self.path / name

    async def make(self) -> None:
        """`meshq init --peers`."""
        made = await self._meshq(
            "init", "--peers", str(len(self.names)), "--out", str(self.path), "--port", str(self.base_port),
            log="init",
        )  # fmt: skip
        if await made.wait() != 0:
            raise Failed(f"the mesh could not be made: {self.log_of('init')}")

    async def start(self, name: str) -> None:
        """Returns when the peer is up."""
        seed = f"{HOST}:{self.base_port}"
        arguments = ["up", "--data", str(self.data(name)), "--bind", HOST, "--seed", seed]
        process = await self._meshq(*arguments, "--disk-reserve-bytes", "16MiB", log=name)
        self._running[name] = process
        try:
            async with asyncio.timeout(START_S):
                while not (self.data(name) / "run.json").exists():
                    if process.returncode is not None:
                        raise Failed(f"{name} did not start: {self.log_of(name)}")
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise Failed(f"{name} was not up within {START_S:g} s: {self.log_of(name)}") from None

    async def stop(self, name: str) -> int:
        """SIGTERM; its exit code."""
        process = self._running.pop(name)
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                return await process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            raise Failed(f"{name} did not stop within {STOP_S:g} s: {self.log_of(name)}") from None

    async def kill(self, name: str) -> None:
        """SIGKILL: it gets no word in."""
        process = self._running.pop(name)
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        (self.data(name) / "run.json").unlink(missing_ok=True)  # `start` waits for the new one

    def log_of(self, name: str) -> str:
        """The end of what it said."""
        with suppress(OSError):
            lines = (self.path / f"{name}.log").read_text(errors="replace").splitlines()
            return "\n".join(lines[-_LOG_LINES:])
        return "(it said nothing)"

    async def __aenter__(self) -> DemoMesh:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = [self.stop(name) for name in list(self._running)]
        try:
            await asyncio.gather(*stopped, return_exceptions=True)
        finally:
            for process in self._running.values():
                with suppress(ProcessLookupError):
                    process.kill()
            shutil.rmtree(self.path, ignore_errors=True)

    async def _meshq(self, *arguments: str, log: str) -> Process:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MESHQ_")}
        with (self.path / f"{log}.log").open("ab") as output:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", "meshq", *arguments,
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
                start_new_session=True,  # Ctrl-C is for the demonstration, which stops them in order
            )  # fmt: skip


def free_base_port(peers: int = 1) -> int:
    """A base port from which this many peers of one host find all their ports free just now."""
    for _ in range(200):
        base = random.randrange(15_000, 30_000, PORT_STEP)
        if all(_is_free(base + PORT_STEP * i) for i in range(peers)):
            return base
    raise Failed("no free ports were found on this host")


def _is_free(base: int) -> bool:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind((HOST, base))
        for port in range(base, base + PEERS + 1):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
                tcp.bind((HOST, port))
    except OSError:
        return False
    return True
