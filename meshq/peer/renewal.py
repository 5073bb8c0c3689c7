"""Certificates of peers are renewed by themselves, so that a mesh does not end after ninety days.

The peer that holds the authority issues a new certificate for every peer it can reach whose own runs out
within a month, and registers it; each peer keeps the newest one of its own that the registry has. A peer that
cannot be reached is not renewed: its certificate ends, and it has to join again. An authority that is kept
offline renews nobody; then every peer says in good time that its certificate runs out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from typing import cast

from meshq.errors import MeshqError
from meshq.ids import PeerId
from meshq.peer.core.core import PeerCore
from meshq.registry import commands
from meshq.registry.commands import RegisterPeer
from meshq.registry.state import Registry
from meshq.security.authority import Authority
from meshq.security.certificates import Certificate, SignedCertificate, issue, new_serial
from meshq.security.directory import DataDirectory, Loaded
from meshq.security.files import save_struct

log = logging.getLogger(__name__)
DAY_S = 86_400
RENEW_BEFORE_S = 30 * DAY_S
WARN_BEFORE_S = 14 * DAY_S
LOOK_S = 600.0


def due(registry: Registry, reachable: Collection[PeerId], now: float) -> list[Certificate]:
    """The reachable peers' certificates that are to be renewed."""
    found = [cast(Certificate, registry.peers[peer].facts) for peer in reachable if peer in registry.peers]
    return [c for c in found if c.not_after_s - now < RENEW_BEFORE_S]


def renewed(authority: Authority, old: Certificate, *, serial: bytes, now: float) -> SignedCertificate:
    """The same holder, keys and rights; a new serial and a new end."""
    return issue(
        authority,
        kind="peer",
        name=old.name,
        signing_key=old.signing_key,
        curve_key=old.curve_key,
        serial=serial,
        now=now,
        roles=old.roles,
        capabilities=old.capabilities,
        weight=old.weight,
        zone=old.zone,
    )


class Renewal:
    def __init__(
        self,
        directory: DataDirectory,
        papers: Loaded,
        core: PeerCore,
        propose: Callable[[bytes], Awaitable[int]],
    ) -> None:
        self._directory, self._papers, self._core, self._propose = directory, papers, core, propose
        self._kept_until_s = papers.certificate.not_after_s
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                await self.look(time.time())
            except MeshqError as e:
                log.warning("Certificates could not be renewed: %s", e, extra={"event": "RenewalFailed"})
            except Exception:  # a disk that is full now may have room in ten minutes
                log.exception("Certificates could not be renewed", extra={"event": "RenewalFailed"})
            await asyncio.sleep(LOOK_S)

    async def look(self, now: float) -> None:
        """Renew what is due, and keep our own newest certificate."""
        registry = self._core.ctx.registry
        if self._papers.authority is not None:
            for old in due(registry, self._core.links.reachable(), now):
                signed = renewed(self._papers.authority, old, serial=new_serial(), now=now)
                await self._propose(commands.encode(RegisterPeer(signed.encode())))
                log.info(
                    "Renewed the certificate of %s", old.name, extra={"event": "Renewed", "peer": old.name}
                )
        mine = registry.peers.get(self._papers.identity.peer_id)
        if mine is None:
            return
        if mine.facts.not_after_s > self._kept_until_s:
            signed = SignedCertificate.decode(mine.certificate)
            save_struct(self._directory.certificate, "certificate", signed)
            self._kept_until_s = mine.facts.not_after_s
        if self._kept_until_s - now < WARN_BEFORE_S:
            log.warning(
                "This peer's certificate ends in %d days and was not renewed: can the peer that holds the "
                "authority be reached? Otherwise join again with a new token",
                max(0, (self._kept_until_s - now) // DAY_S),
                extra={"event": "CertificateEnds"},
            )
