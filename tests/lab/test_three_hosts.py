"""Three hosts that share nothing but a wire: made, joined and found without any address given."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.network import Host, Network, why_not

MESHQ = (sys.executable, "-m", "meshq")
TOPIC = "plant.line1.secrettopicname"
SECRET = b"the payload nobody on the wire may see"

pytestmark = [pytest.mark.lab, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(3) as made:
        yield made


def _up(host: Host, data: Path) -> subprocess.Popen[bytes]:
    """A peer with nothing but its data directory; returns once it serves this host's tools."""
    process = host.start(*MESHQ, "up", "--data", data, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert b"is up" in line, (
        line,
        process.stderr.read() if process.stderr and process.poll() is not None else "",
    )
    return process


def _status(host: Host, data: Path) -> dict[str, object]:
    done = host.run(*MESHQ, "status", "--data", data, "--json")
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.deadline(90)
def test_init_on_one_join_on_two_publish_on_host_2_read_on_host_3(
    network: Network, tmp_path: Path, eventually_sync
) -> None:
    if shutil.which("tcpdump") is None:
        pytest.skip("needs tcpdump to look at the wire")
    h1, h2, h3 = network.hosts
    data = [tmp_path / h.name for h in network.hosts]
    lines = [b"%d %s %s" % (i, SECRET, bytes(range(11, 256))) for i in range(2_000)]
    pcap = tmp_path / "wire.pcap"
    with network.capture(pcap):
        h1.run(*MESHQ, "init", "--data", data[0], "--name", "first")
        _up(h1, data[0])
        for host, where, name in ((h2, data[1], "second"), (h3, data[2], "third")):
            token = h1.run(*MESHQ, "invite", "--data", data[0]).stdout.decode().strip()
            host.run(*MESHQ, "join", token, "--data", where, "--name", name)
            (where / "peers.json").unlink(missing_ok=True)  # so that only multicast can find the others
            _up(host, where)
        eventually_sync(
            lambda: all(
                _status(h, d)["peers_reachable"] == 3 for h, d in zip(network.hosts, data, strict=True)
            ),
            30,
        )
        eventually_sync(lambda: _status(h3, data[2])["slots"]["replicas"] > 40, 20)  # type: ignore[index]
        published = h2.run(*MESHQ, "pub", TOPIC, "--data", data[1], "-v", input=b"\n".join(lines) + b"\n")
        assert published.stdout.count(b"copies=") == len(lines)
        read = h3.run(
            *MESHQ, "sub", TOPIC, "--data", data[2], "--from", "earliest", "--count", str(len(lines))
        )
        assert read.stdout == b"".join(line + b"\n" for line in lines)
        # The records crossed the wire at least once, sealed.
        eventually_sync(lambda: pcap.stat().st_size > sum(map(len, lines)))
    wire = pcap.read_bytes()
    for word in (TOPIC.encode(), b"secrettopicname", SECRET, b"second", b"third"):
        assert word not in wire


@pytest.mark.deadline(90)
def test_a_record_published_before_a_join_is_read_after_it(
    network: Network, tmp_path: Path, eventually_sync
) -> None:
    h1, h2, _ = network.hosts
    d1, d2 = tmp_path / "one", tmp_path / "two"
    h1.run(*MESHQ, "init", "--data", d1)
    _up(h1, d1)
    names = [f"before{i}" for i in range(20)]
    for name in names:
        h1.run(*MESHQ, "pub", name, "--data", d1, input=name.encode())
    token = h1.run(*MESHQ, "invite", "--data", d1).stdout.decode().strip()
    h2.run(*MESHQ, "join", token, "--data", d2, "--name", "joined")
    _up(h2, d2)
    eventually_sync(lambda: _status(h2, d2)["slots"]["replicas"] > 80, 20)  # type: ignore[index]
    read = h2.run(*MESHQ, "sub", "#", "--data", d2, "--from", "earliest", "--count", str(len(names)))
    assert sorted(read.stdout.split()) == sorted(n.encode() for n in names)
