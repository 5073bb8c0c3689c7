"""What the parts around the core count, as one flat table for `status`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from meshq.peer.sockets import PeerSockets
from meshq.store.store import Store


def tally(sockets: PeerSockets, store: Store, parts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """`PART_NAME` -> how often; `parts` are counted by name besides the sockets and the store."""
    found = {f"store_{k}": int(v) for k, v in dataclasses.asdict(store.counters).items()}
    servers = {**sockets._servers, "feed": sockets._feed, "ingest": sockets._ingest}
    found |= {f"sessions_{k}": v for k, v in sockets.counters.items()}
    counted = [(name, server.counters) for name, server in servers.items() if server is not None]
    for name, counters in [*counted, *parts.items()]:  # `feed` is in both
        found |= {f"{name}_{k}": v for k, v in counters.items()}
    for (domain, reason), count in sockets._zap.refused.items():
        found[f"refused_{domain or 'unknown'}_{reason}"] = count
    return found
