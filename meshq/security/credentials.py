"""The credentials file: all an application needs to reach a mesh, in one private TOML file.

`meshq client add` writes it; meshq's own clients and anybody's plain ZeroMQ program read it. So it is plain
TOML, the keys are in ZeroMQ's Z85 and the addresses are endpoints to connect to as they stand:

    [mesh]
    id = "..."           as `meshq status` shows it
    authority = "..."    the mesh's public key: peers' certificates are checked against it
    [client]
    name = "..."
    public_key = "..."
    secret_key = "..."
    [[peers]]
    name = "..."
    requests = "tcp://HOST:7700"
    feed = "tcp://HOST:7701"
    ingest = "tcp://HOST:7702"
    server_key = "..."   the peer's CURVE key
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import tomli_w
from nacl.bindings import crypto_scalarmult_base

from meshq.errors import UsageError
from meshq.ids import MeshId, mesh_id_of, parse_id, show_id
from meshq.limits import PEERS_MAX
from meshq.security.files import read_private, write_private
from meshq.security.text import check_name, parse_key, show_key, split_address

TCP: Final = "tcp://"


@dataclass(frozen=True, slots=True)
class CredentialsPeer:
    """One peer to connect to: ZeroMQ endpoints (`tcp://HOST:PORT`) and its raw CURVE key."""

    name: str
    requests: str
    feed: str
    ingest: str
    server_key: bytes


@dataclass(frozen=True, slots=True)
class Credentials:
    """A client's keys and where its mesh is. Keys are raw 32 bytes."""

    authority_key: bytes
    name: str
    public_key: bytes
    secret_key: bytes = field(repr=False)
    peers: tuple[CredentialsPeer, ...]

    @property
    def mesh_id(self) -> MeshId:
        return mesh_id_of(self.authority_key)

    def save(self, path: Path) -> None:
        """Write the file, readable by this user only. Raises: StoreError."""
        write_private(path, self.to_toml().encode())

    def to_toml(self) -> str:
        peers = [
            {
                "name": p.name,
                "requests": p.requests,
                "feed": p.feed,
                "ingest": p.ingest,
                "server_key": show_key(p.server_key),
            }
            for p in self.peers
        ]
        client = {
            "name": self.name,
            "public_key": show_key(self.public_key),
            "secret_key": show_key(self.secret_key),
        }
        mesh = {"id": show_id(self.mesh_id), "authority": show_key(self.authority_key)}
        return tomli_w.dumps({"mesh": mesh, "client": client, "peers": peers})

    @classmethod
    def load(cls, path: Path) -> Credentials:
        """Raises: UsageError naming the file and the field, SecurityError when others can read it,
        StoreError."""
        if not path.exists():
            raise UsageError(f"there is no credentials file {path}: make one with `meshq client add NAME`")
        data = read_private(path)
        try:
            return cls.from_toml(data.decode())
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
            raise UsageError(f"credentials file {path} is not TOML: {e}") from None
        except UsageError as e:
            raise UsageError(
                f"credentials file {path}: {e}. Make a new one with `meshq client add NAME`"
            ) from None

    @classmethod
    def from_toml(cls, text: str) -> Credentials:
        """Raises: UsageError naming the field, tomllib.TOMLDecodeError."""
        document = tomllib.loads(text)
        mesh, client = _table(document, "mesh"), _table(document, "client")
        rows = document.get("peers")
        if not isinstance(rows, list) or not 0 < len(rows) <= PEERS_MAX:
            raise UsageError(f"[[peers]] must be there once a peer, 1 to {PEERS_MAX} times")
        read = cls(
            authority_key=_key(mesh, "[mesh] authority"),
            name=check_name(_text(client, "[client] name"), "a client's name"),
            public_key=_key(client, "[client] public_key"),
            secret_key=_key(client, "[client] secret_key"),
            peers=tuple(_peer(row, f"[[peers]] {i + 1}") for i, row in enumerate(rows)),
        )
        if _mesh_id(mesh) != read.mesh_id:
            raise UsageError("[mesh] id is not the id of [mesh] authority")
        if crypto_scalarmult_base(read.secret_key) != read.public_key:
            raise UsageError("[client] public_key does not belong to [client] secret_key")
        return read


def _peer(row: object, where: str) -> CredentialsPeer:
    if not isinstance(row, dict):
        raise UsageError(f"{where} is not a table")
    return CredentialsPeer(
        name=_text(row, f"{where} name"),
        requests=_endpoint(row, f"{where} requests"),
        feed=_endpoint(row, f"{where} feed"),
        ingest=_endpoint(row, f"{where} ingest"),
        server_key=_key(row, f"{where} server_key"),
    )


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name)
    if not isinstance(table, dict):
        raise UsageError(f"[{name}] is missing")
    return table


def _text(table: dict[str, Any], where: str) -> str:
    """The field that `where` ends with."""
    value = table.get(where.rpartition(" ")[2])
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where} {'is missing' if value is None else 'is not text'}")
    return value


def _key(table: dict[str, Any], where: str) -> bytes:
    return parse_key(_text(table, where), where)


def _endpoint(table: dict[str, Any], where: str) -> str:
    value = _text(table, where)
    try:
        split_address(value.removeprefix(TCP))
    except UsageError:
        value = ""
    if not value.startswith(TCP):
        raise UsageError(
            f"{where} is not an endpoint: tcp://HOST:PORT is expected, IPv6 as tcp://[ADDRESS]:PORT"
        )
    return value


def _mesh_id(mesh: dict[str, Any]) -> bytes:
    try:
        return parse_id(_text(mesh, "[mesh] id"))
    except UsageError as e:
        raise UsageError(f"[mesh] id: {e}") from None
