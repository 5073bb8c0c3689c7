"""Opening: what a peer begins with: the store on its disk, a core with its papers, the client inside it."""

from __future__ import annotations

import os
import random

from meshq.client.core import ClientCore
from meshq.client.driver import ClientDriver
from meshq.client.facts import Seed
from meshq.client.mesh import Mesh
from meshq.peer.core.context import CoreSettings, Me
from meshq.peer.core.core import PeerCore
from meshq.peer.disk import refuse_lost_store
from meshq.peer.endpoints import tcp
from meshq.peer.gateway import GatewayLinks
from meshq.peer.papers import found_registry, registry_peer
from meshq.peer.settings import Settings
from meshq.registry.state import GENESIS_DISK
from meshq.security.directory import DataDirectory, Loaded
from meshq.store.store import Store


def open_store(directory: DataDirectory, settings: Settings, papers: Loaded) -> Store:
    """Raises: StoreError, WrongMesh, StoreCorrupt, DiskFull."""
    refuse_lost_store(directory, papers, begin_empty=settings.begin_empty)
    witness = papers.certificate.witness
    return Store.open(
        directory.store,
        mesh_id=papers.mesh_id,
        bytes_max=settings.witness_bytes_max if witness else settings.store_bytes_max,
        reserve_bytes=settings.disk_reserve_bytes,
        disk_id=None if directory.was_started() else GENESIS_DISK,
    )


def make_core(directory: DataDirectory, settings: Settings, papers: Loaded, store: Store) -> PeerCore:
    """The boot epoch has been raised on disk on return."""
    s, identity = settings, papers.identity
    me = Me(
        identity.peer_id,
        identity.name,
        identity.curve_public,
        os.urandom(16),
        registry_peer(papers),
        store.disk_id,
        store.boot_epoch,
        directory.raise_boot_epoch(),
    )
    core_settings = CoreSettings(
        s.auto_create,
        s.record_bytes_max,
        evacuate_after_s=s.evacuate_after_s,
        move_bytes_s=s.move_bytes_s,
        weight=s.weight,
        zone=s.zone,
    )
    return PeerCore(
        me,
        found_registry(papers),
        settings=core_settings,
        random_id=lambda: os.urandom(16),
        rng=random.Random(os.urandom(16)),
    )


def make_gateway(settings: Settings, papers: Loaded, links: GatewayLinks) -> Mesh:
    """The ordinary client, whose link to its own peer is a function call."""
    identity = papers.identity
    seed = Seed(identity.curve_public, (tcp(f"127.0.0.1:{settings.port}"),), identity.name)
    rng = random.Random(os.urandom(16))
    core = ClientCore([seed], mesh_id=papers.mesh_id, name=f"{identity.name} (gateway)", rng=rng)
    return Mesh(ClientDriver(core, links), owner=(papers.mesh_id, identity.curve_public))
