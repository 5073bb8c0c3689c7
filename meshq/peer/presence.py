"""Presence: how this host's tools find the running peer. `run.json` says where it is, `admin.meshq` opens it.

`admin.meshq` is an ordinary credentials file with the peer's own key, which every peer of the mesh admits,
since a client goes to whichever peer has what it wants. So it is as secret as `identity.key` beside it; who
can read it (0600) is this host's administrator of the peer.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from meshq.errors import Unavailable, UsageError
from meshq.ids import show_id
from meshq.peer.endpoints import local_host, tcp
from meshq.peer.settings import FEED, INGEST, Settings
from meshq.security.credentials import Credentials, CredentialsPeer
from meshq.security.directory import DataDirectory, Loaded
from meshq.security.files import write_private
from meshq.transport.interfaces import format_address


class Presence:
    def __init__(self, directory: DataDirectory, papers: Loaded, settings: Settings) -> None:
        self._directory, self._papers, self._settings = directory, papers, settings
        self._told: tuple[str, ...] | None = None

    def update(self, addresses: tuple[str, ...]) -> None:
        """Tell where the peer is found now, if that has changed since it was told."""
        if addresses != self._told:
            self.announce(addresses)

    def announce(self, addresses: tuple[str, ...]) -> None:
        identity = self._papers.identity
        here = format_address(local_host(self._settings), self._settings.port)
        peer = CredentialsPeer(
            identity.name, tcp(here), tcp(here, FEED), tcp(here, INGEST), identity.curve_public
        )
        authority_key = self._papers.genesis.authority_key
        keys = identity.curve_public, identity.curve_secret
        Credentials(authority_key, identity.name, *keys, (peer,)).save(self._directory.admin)
        run = {
            "pid": os.getpid(),
            "name": identity.name,
            "peer": show_id(identity.peer_id),
            "mesh": show_id(self._papers.mesh_id),
            "requests": tcp(here),
            "port": self._settings.port,
            "addresses": list(addresses),
        }
        write_private(self._directory.run, json.dumps(run, indent=1).encode() + b"\n")
        self._told = addresses

    def withdraw(self) -> None:
        for path in (self._directory.run, self._directory.admin):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def read_run(directory: DataDirectory) -> dict[str, Any]:
    """What a running peer says of itself. Raises: UsageError without a peer here, Unavailable when none
    runs.
    """
    if not directory.exists():
        raise UsageError(
            f"there is no peer in {directory.path}: make one with `meshq init` or `meshq join TOKEN`"
        )
    try:
        run: dict[str, Any] = json.loads(directory.run.read_bytes())
        os.kill(int(run["pid"]), 0)
    except (FileNotFoundError, ProcessLookupError):
        raise Unavailable(
            f"no peer is running on {directory.path}: start it with `meshq up --data {directory.path}`"
        ) from None
    except PermissionError:
        pass  # it runs, under another user
    except (ValueError, KeyError, TypeError, OverflowError) as e:
        raise UsageError(f"{directory.run} is damaged ({e}): restart the peer") from None
    return run


def data_path(path: Path | str | None) -> Path:
    """The data directory: as given, else MESHQ_DATA, else ~/.meshq."""
    return Path(path or os.environ.get("MESHQ_DATA") or "~/.meshq").expanduser()
