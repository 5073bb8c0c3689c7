"""From a data directory's papers to the registry they found."""

from __future__ import annotations

from collections.abc import Callable

from meshq.ids import MeshId, PeerId
from meshq.registry.state import Registry
from meshq.security.certificates import Certificate, SignedCertificate, verify_signature
from meshq.security.directory import Loaded


def verifier(authority_key: bytes) -> Callable[[bytes], Certificate]:
    """Checks who signed, not the time: the registry must read the same whenever it is read."""
    return lambda data: verify_signature(SignedCertificate.decode(data), authority_key)


def found_registry(papers: Loaded) -> Registry:
    """The registry as genesis has it, before any entry of the system slot."""
    genesis = papers.genesis
    return Registry(
        MeshId(genesis.mesh_id),
        slots=genesis.slots,
        replicas=genesis.replicas,
        founders=[c.encode() for c in genesis.founders],
        verify=verifier(genesis.authority_key),
        level=genesis.level,
    )


def registry_peer(papers: Loaded) -> PeerId:
    return PeerId(papers.genesis.registry_peer)
