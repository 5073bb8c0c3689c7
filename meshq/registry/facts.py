"""What the registry knows of a peer or client, and what a command changed, for whoever acts on that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from meshq.ids import PeerId
from meshq.messages import TopicInfo


class CertificateFacts(Protocol):
    """What the registry reads in a certificate (security.certificates.Certificate fits)."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def signing_key(self) -> bytes: ...
    @property
    def curve_key(self) -> bytes: ...
    @property
    def capabilities(self) -> Sequence[tuple[str, str]]: ...
    @property
    def not_after_s(self) -> int: ...
    @property
    def weight(self) -> float: ...
    @property
    def zone(self) -> str: ...
    @property
    def witness(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Registered:
    """A peer or client with a certificate; `version`: when it was registered."""

    facts: CertificateFacts
    certificate: bytes
    version: int


# What a command changed, for whoever acts on it.
@dataclass(frozen=True, slots=True)
class PeersChanged:
    peer: PeerId


@dataclass(frozen=True, slots=True)
class ClientsChanged:
    key: bytes


@dataclass(frozen=True, slots=True)
class TopicChanged:
    info: TopicInfo


@dataclass(frozen=True, slots=True)
class TopicRemoved:
    info: TopicInfo


@dataclass(frozen=True, slots=True)
class LevelRaised:
    level: int


Change = PeersChanged | ClientsChanged | TopicChanged | TopicRemoved | LevelRaised
