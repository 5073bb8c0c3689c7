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
from meshq.transport.interfaces import parse_address
from meshq.transport.udp import bindable

PORT = 7700
# What each port above the base is for (TCP; gossip is UDP on the base port).
REQUESTS, FEED, INGEST, HTTP, DOOR, PEERS = range(6)
EVERYWHERE = ("*", "::")  # both families; 0.0.0.0 is every IPv4 address
ZONE = r"^[A-Za-z0-9_.-]*$"
_LISTS = {"bind", "advertise", "seed"}


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set of a running peer.

    `bind`: addresses to listen on (empty, `*` or `::`: all, `0.0.0.0`: all of IPv4); `advertise`:
    `HOST[:PORT]` to tell others instead of this host's own; `seed`: `HOST[:PORT]` of peers to try besides
    mDNS and those remembered; `mdns`: announce and look for peers; `auto_create`: publishing to an unknown
    topic makes it, with one partition; `begin_empty`: start though the store is lost, its records too;
    `evacuate_after_s`: a peer that this one has missed for so long is replaced in the slots led here;
    `move_bytes_s`: how much it sends of slots that move to others, a second;
    `weight`: this peer's share of the slots, beside 1 of an ordinary one (0: none); `zone`: what fails as one
    with it (a rack, a room, a power line), none of its own when empty; `witness_bytes_max`: most that a
    witness stores, instead of `store_bytes_max`.
    """

    bind: list[str] = []
    advertise: list[str] = []
    port: Annotated[int, Meta(ge=1, le=65_530)] = PORT
    seed: list[str] = []
    mdns: bool = True
    auto_create: bool = True
    record_bytes_max: Annotated[int, Meta(ge=1, le=limits.RECORD_BYTES_CEILING)] = limits.RECORD_BYTES_MAX
    store_bytes_max: Annotated[int, Meta(ge=16 * limits.MIB)] = limits.STORE_BYTES_MAX
    witness_bytes_max: Annotated[int, Meta(ge=16 * limits.MIB)] = limits.WITNESS_BYTES_MAX
    disk_reserve_bytes: Annotated[int, Meta(ge=0)] = limits.DISK_RESERVE_BYTES
    begin_empty: bool = False
    evacuate_after_s: Annotated[int, Meta(ge=1)] = 300
    move_bytes_s: Annotated[int, Meta(ge=64 * limits.KIB)] = limits.MOVE_BYTES_S
    weight: Annotated[float, Meta(ge=0, le=1_000)] = 1.0
    zone: Annotated[str, Meta(max_length=63, pattern=ZONE)] = ""


def load_settings(
    file: Path, given: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Settings:
    """The settings that hold: later sources win. `given` holds only what the caller set.

    Raises: UsageError naming the source and the setting.
    """
    merged: dict[str, Any] = {}
    sources = (
        (str(file), _from_file(file)),
        ("the environment", _from_environment(os.environ if environment is None else environment)),
        ("flags or arguments", given),
    )
    for source, found in sources:
        check_settings(source, found)  # one by one, so that the error names the place to mend
        merged.update(found)
    settings = msgspec.convert(merged, Settings, strict=False)
    # One way to say everything, for whoever listens; IPv6 hosts without brackets.
    bind = [_bare(host) for host in settings.bind]
    return msgspec.structs.replace(settings, bind=[] if set(bind) & set(EVERYWHERE) else bind)


def _from_file(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        return tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as e:
        raise UsageError(f"{file} cannot be read as settings: {e}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in Settings.__struct_fields__:
        text = environment.get(f"MESHQ_{name.upper()}")
        if text is not None:
            found[name] = [x for x in text.replace(",", " ").split() if x] if name in _LISTS else text
    return found


def check_settings(source: str, found: Mapping[str, Any]) -> None:
    """Raises: UsageError for the first setting of this source that cannot be."""
    for name, value in found.items():
        if name not in Settings.__struct_fields__:
            known = ", ".join(Settings.__struct_fields__)
            raise UsageError(f"{name!r} (from {source}) is not a setting: these are {known}")
        try:
            one = msgspec.convert({name: value}, Settings, strict=False)
            _check_addresses(name, one)
        except (msgspec.ValidationError, UsageError) as e:
            why = str(e).partition(" - at `$.")[0]
            raise UsageError(f"{_spelled(name, source)} cannot be {value!r} (from {source}): {why}") from None


def _check_addresses(name: str, settings: Settings) -> None:
    match name:
        case "bind":
            for host in settings.bind:
                if host not in EVERYWHERE:
                    bindable(host)
        case "advertise" | "seed":
            for address in getattr(settings, name):
                parse_address(address, PORT)


def _spelled(name: str, source: str) -> str:
    return f"MESHQ_{name.upper()}" if source == "the environment" else name


def _bare(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host
