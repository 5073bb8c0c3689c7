"""Where the others were when this peer last ran, so that it finds them without multicast and without seeds.

`peers.json` is a hint and nothing more: a damaged, oversized or missing file is an empty one, and says so in
the log. It is replaced in one step, so a power cut leaves the old or the new one.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshq.errors import UsageError
from meshq.gossip.wire import ADDRESS_PATTERN
from meshq.ids import PeerId, parse_id, show_id
from meshq.limits import ADDRESSES_MAX, MIB, PEERS_MAX

_log = logging.getLogger(__name__)

_ADDRESS = re.compile(ADDRESS_PATTERN)
_FILE_BYTES_MAX = 4 * MIB  # more than PEERS_MAX peers with ADDRESSES_MAX of the longest addresses


def load(path: Path) -> dict[PeerId, tuple[str, ...]]:
    """The addresses by peer; what is not readable is left out."""
    try:
        with path.open("rb") as f:
            data = f.read(_FILE_BYTES_MAX + 1)
        if len(data) > _FILE_BYTES_MAX:
            raise ValueError(f"more than {_FILE_BYTES_MAX} bytes")
        found = json.loads(data)
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as e:
        _warn(path, f"cannot be read ({e}); starting without remembered addresses")
        return {}
    return _readable(path, found)


def save(path: Path, addresses: Mapping[PeerId, Sequence[str]]) -> None:
    """Replace the file. Raises: OSError."""
    kept = list(addresses.items())[:PEERS_MAX]
    data = json.dumps({show_id(peer): list(found)[:ADDRESSES_MAX] for peer, found in kept}, indent=1)
    temporary = path.with_name(path.name + ".new")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as f:
        f.write(data + "\n")
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def _readable(path: Path, found: dict[str, object]) -> dict[PeerId, tuple[str, ...]]:
    good: dict[PeerId, tuple[str, ...]] = {}
    for text, listed in list(found.items())[:PEERS_MAX]:
        try:
            peer = PeerId(parse_id(text))
        except UsageError:
            continue
        if isinstance(listed, list):
            addresses = [x for x in listed if isinstance(x, str) and len(x) <= 260 and _ADDRESS.search(x)]
            if addresses:
                good[peer] = tuple(addresses[:ADDRESSES_MAX])
    if len(good) < len(found):
        _warn(path, f"{len(found) - len(good)} of {len(found)} entries are not readable and left out")
    return good


def _warn(path: Path, text: str) -> None:
    _log.warning("remembered addresses: %s %s", path, text, extra={"event": "RememberedDamaged"})
