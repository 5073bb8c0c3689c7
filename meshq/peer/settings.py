"""A peer's settings: `meshq.toml` in the data directory, then `MESHQ_*`, then what the caller says.

One struct is the list of all settings; the file, the environment and the flags are read into it by the same
names.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from meshq import limits
from meshq.errors import UsageError

PORT = 7700
# What each port above the base is for (TCP; gossip is UDP on the base port).
REQUESTS, FEED, INGEST, HTTP, DOOR, PEERS = range(6)
_LISTS = {"bind", "advertise", "seed"}


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set of a running peer.

    `bind`: addresses to listen on (empty: all); `advertise`: `HOST[:PORT]` to tell others instead of this
    host's own; `seed`: `HOST[:PORT]` of peers to try besides mDNS and those remembered; `mdns`: announce and
    look for peers; `auto_create`: publishing to an unknown topic makes it, with one partition.
    """

    bind: list[str] = []
    advertise: list[str] = []
    port: Annotated[int, Meta(ge=1, le=65_530)] = PORT
    seed: list[str] = []
    mdns: bool = True
    auto_create: bool = True
    record_bytes_max: Annotated[int, Meta(ge=1, le=limits.RECORD_BYTES_CEILING)] = limits.RECORD_BYTES_MAX
    store_bytes_max: Annotated[int, Meta(ge=16 * limits.MIB)] = limits.STORE_BYTES_MAX
    disk_reserve_bytes: Annotated[int, Meta(ge=0)] = limits.DISK_RESERVE_BYTES


def load_settings(
    file: Path, given: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Settings:
    """The settings that hold: later sources win. `given` holds only what the caller set.

    Raises: UsageError naming the source and the setting.
    """
    merged: dict[str, Any] = {}
    if file.exists():
        try:
            merged.update(tomllib.loads(file.read_text()))
        except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as e:
            raise UsageError(f"{file} cannot be read as settings: {e}") from None
    merged.update(_from_environment(os.environ if environment is None else environment))
    merged.update(given)
    try:
        return msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as e:
        raise UsageError(f"settings (from {file}, MESHQ_* or flags): {e}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in Settings.__struct_fields__:
        text = environment.get(f"MESHQ_{name.upper()}")
        if text is not None:
            found[name] = [x for x in text.replace(",", " ").split() if x] if name in _LISTS else text
    return found
