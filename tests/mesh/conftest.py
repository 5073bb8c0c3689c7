"""Real peers on loopback, in this process or in others, for tests of the whole."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from zmq.utils import z85

import meshq
from meshq.security.certificates import Verb, issue, new_serial
from meshq.security.credentials import Credentials, CredentialsPeer
from meshq.security.directory import DataDirectory, create_mesh

PORTS_EACH = 6
_next = [20_000 + os.getpid() % 400 * 100]


def free_base_port() -> int:
    """A base port whose six ports are free now (TCP, and UDP on the base)."""
    while True:
        base = _next[0] = _next[0] + 10
        try:
            for offset in range(PORTS_EACH):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", base + offset))
            with socket.socket(type=socket.SOCK_DGRAM) as s:
                s.bind(("127.0.0.1", base))
        except OSError:
            continue
        return base


def make_directories(where: Path, count: int, slots: int = 256) -> list[Path]:
    paths = [where / f"peer{i}" for i in range(1, count + 1)]
    names = [f"peer{i}" for i in range(1, count + 1)]
    create_mesh(paths, names, mesh_name="test", slots=slots, replicas=3, now=time.time())
    return paths


@asynccontextmanager
async def running(paths: list[Path], **settings: Any) -> AsyncIterator[list[meshq.Peer]]:
    """Embedded peers that know each other's address by seed."""
    ports = [free_base_port() for _ in paths]
    seeds = [f"127.0.0.1:{port}" for port in ports]
    async with AsyncExitStack() as stack:
        peers = [
            await stack.enter_async_context(
                meshq.Peer(path, port=port, bind=["127.0.0.1"], seed=seeds, mdns=False, **settings)
            )
            for path, port in zip(paths, ports, strict=True)
        ]
        yield peers


async def all_linked(peers: list[meshq.Peer]) -> bool:
    return all([(await p.ask("status"))["peers_reachable"] == len(peers) for p in peers])


@pytest.fixture
def directories(tmp_path: Path) -> Callable[[int], list[Path]]:
    return lambda count: make_directories(tmp_path, count)


async def add_client(
    path: Path, peers: list[meshq.Peer], name: str, *capabilities: tuple[Verb, str]
) -> Credentials:
    """What `meshq client add` does."""
    papers = DataDirectory(path).load()
    assert papers.authority is not None
    public, secret = (z85.decode(k) for k in zmq.curve_keypair())
    signed = issue(
        papers.authority, kind="client", name=name, curve_key=public, serial=new_serial(), now=time.time(),
        capabilities=capabilities,
    )  # fmt: skip
    await peers[0].ask("client.register", {"certificate": signed.encode()})
    rows = []
    for peer in peers:
        host, port = peer.addresses[0].split(":")
        papers_of = peer._running().papers.identity
        endpoints = [f"tcp://{host}:{int(port) + i}" for i in range(3)]
        rows.append(CredentialsPeer(papers_of.name, *endpoints, papers_of.curve_public))
    return Credentials(papers.genesis.authority_key, name, public, secret, tuple(rows))


@pytest.fixture
def plain() -> Iterator[Callable[..., zmq.Socket[bytes]]]:
    """Stock pyzmq sockets: plain(kind, endpoint, server_key, public, secret, **options)."""
    context = zmq.Context()
    made = []

    def open_socket(
        kind: int,
        endpoint: str,
        server_key: bytes | None,
        public: bytes = b"",
        secret: bytes = b"",
        **options: Any,
    ) -> zmq.Socket[bytes]:
        s = context.socket(kind)
        s.linger = 0
        if server_key is not None:
            s.curve_serverkey, s.curve_publickey, s.curve_secretkey = server_key, public, secret
        for name, value in options.items():
            setattr(s, name, value)
        s.connect(endpoint)
        made.append(s)
        return s

    yield open_socket
    for s in made:
        s.close()
    context.term()


def unpack(data: bytes) -> Any:
    return msgspec.msgpack.decode(data)
