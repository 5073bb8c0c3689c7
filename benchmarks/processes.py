"""What the benchmarks need of the machine: free ports, processes that get ready, what they cost."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cpu_s(pid: int) -> float:
    """On a core, all threads together, to the nanosecond: ticks of 10 ms would be the figure itself."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def memory_mib(pid: int) -> dict[str, float]:
    """`VmRSS`, `RssAnon`."""
    status = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return {w[0].rstrip(":"): int(w[1]) / 1024 for w in status if w[0] in ("VmRSS:", "RssAnon:")}


def percentile(values: list[float], at: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * at // 100)]


def free_port(peers: int = 1) -> int:
    """A base port: this one and those above it are free, six a peer, ten apart."""
    for base in range(17_700, 19_000, 10):
        try:
            for offset in (10 * peer + port for peer in range(peers) for port in range(6)):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        return base
    raise SystemExit("no free ports between 17700 and 19000")


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.stat().st_size):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args} did not get ready")
        time.sleep(0.02)


@contextmanager
def one_peer(where: Path) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    """A mesh of one, up: its data directory and its process."""
    data = where / "peer"
    run = [sys.executable, "-m", "meshq"]
    subprocess.run([*run, "init", "--data", data], check=True, capture_output=True)
    command = [*run, "up", "--data", data, "--bind", "127.0.0.1", "--port", str(free_port()), "--no-mdns"]
    peer = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(data / "run.json", peer)
        yield data, peer
    finally:
        peer.terminate()
        peer.wait()
