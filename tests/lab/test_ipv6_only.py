"""Two hosts on a wire that has no IPv4."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.network import Host, Network, why_not

MESHQ = (sys.executable, "-m", "meshq")

pytestmark = [pytest.mark.lab, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


def _up(host: Host, data: Path) -> None:
    process = host.start(*MESHQ, "up", "--data", data, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    assert "is up on [fd77::" in line and "10.77" not in line and "127.0.0.1" not in line, line


@pytest.mark.deadline(60)
def test_peers_join_and_find_each_other_by_ipv6_alone(tmp_path: Path, eventually_sync) -> None:
    with Network(2) as network:
        h1, h2 = network.hosts
        for host in network.hosts:
            host.run("ip", "address", "del", f"{host.address}/24", "dev", "eth0")
        d1, d2 = tmp_path / "one", tmp_path / "two"
        h1.run(*MESHQ, "init", "--data", d1)
        _up(h1, d1)
        token = h1.run(*MESHQ, "invite", "--data", d1).stdout.decode().strip()
        h2.run(*MESHQ, "join", token, "--data", d2, "--name", "joined")
        (d2 / "peers.json").unlink(missing_ok=True)  # so that only multicast can find the other
        _up(h2, d2)

        def reachable() -> int:
            status = h2.run(*MESHQ, "status", "--data", d2, "--json").stdout
            return int(json.loads(status)["peers_reachable"])

        eventually_sync(lambda: reachable() == 2, 20)
        h2.run(*MESHQ, "pub", "six", "--data", d2, input=b"over six\n")
        read = h1.run(*MESHQ, "sub", "six", "--data", d1, "--from", "earliest", "--count", "1")
        assert read.stdout == b"over six\n"
