"""What a key may publish and read, asked for every message.

ZeroMQ checks a key once, when it connects. So each message is judged again here, by the capabilities of the
key its connection was made with. A subscription on the feed is a prefix of bytes, not a pattern: it may be
approved only when every topic that could ever begin with those bytes is permitted. Topics that begin with `_`
are meshq's own and are reached only by spelling out their first word, also by an administrator.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import Final

from meshq.ids import PeerId, peer_id_of
from meshq.limits import TOPIC_BYTES_MAX
from meshq.security.certificates import Capability, Certificate, Kind, Verb
from meshq.topics import contains, contains_prefix, is_internal, matches

FRAMED: Final = (
    b"\x01"  # begins a feed subscription to topics with their metadata; the topic's end is b"\x00"
)
END: Final = b"\x00"
# What a topic that is not meshq's own can begin with: one subscription each stands for "everything".
FIRST_CHARACTERS: Final = (string.ascii_uppercase + string.ascii_lowercase + string.digits + "-").encode()
ALL_TOPICS: Final = "#"

_PREFIX = re.compile(rb"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_TOPIC = re.compile(rb"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is at the other end of a connection, known by the CURVE key it was made with (raw)."""

    name: str
    kind: Kind
    key: bytes
    capabilities: tuple[Capability, ...] = ()
    admin: bool = False
    peer_id: PeerId | None = None

    @classmethod
    def of(cls, certificate: Certificate) -> Principal:
        """The holder of a verified certificate. Peers act for others and may do everything, as may holders of
        `admin` on `#`."""
        peer = certificate.kind == "peer"
        return cls(
            certificate.name,
            certificate.kind,
            certificate.curve_key,
            certificate.capabilities,
            peer or Capability("admin", ALL_TOPICS) in certificate.capabilities,
            peer_id_of(certificate.signing_key) if peer else None,
        )

    def may_publish(self, topic: str) -> bool:
        return self.admin or any(matches(p, topic) for p in self._patterns("publish"))

    def may_read(self, topic: str) -> bool:
        return self.admin or any(matches(p, topic) for p in self._patterns("subscribe"))

    def may_consume(self, topic: str) -> bool:
        """Whether it may take part in groups there: who may read may, and `consume` says it alone."""
        return self.may_read(topic) or any(matches(p, topic) for p in self._patterns("consume"))

    def may_subscribe(self, pattern: str) -> bool:
        """Whether every topic this pattern means may be read."""
        return self.admin or any(contains(p, pattern) for p in self._patterns("subscribe"))

    def may_watch(self, pattern: str) -> bool:
        """Whether it may hear of every topic this pattern means."""
        return self.may_subscribe(pattern) or any(contains(p, pattern) for p in self._patterns("consume"))

    def feed_subscriptions(self, prefix: bytes) -> list[bytes]:
        """What to approve on the feed for this raw ZeroMQ subscription; nothing when it is not permitted.

        `b""` becomes one subscription for each permitted first character, so that it covers neither meshq's
        own topics nor a record's second form (which begins with `FRAMED`).
        """
        form = FRAMED if prefix.startswith(FRAMED) else b""
        rest = prefix.removeprefix(form)
        if len(rest) > TOPIC_BYTES_MAX + len(END):
            return []
        if form and rest.endswith(END):
            topic = rest.removesuffix(END)
            return [prefix] if _TOPIC.fullmatch(topic) and self.may_read(topic.decode()) else []
        if not rest:
            every = self._may_read_prefix("A")  # what contains a bare letter contains each: `#` and `*.#`
            return [form + bytes([c]) for c in FIRST_CHARACTERS] if every else []
        if not _PREFIX.fullmatch(rest) or not self._may_read_prefix(rest.decode()):
            return []
        return [prefix]

    def _may_read_prefix(self, prefix: str) -> bool:
        if self.admin:
            return not is_internal(prefix) or "." in prefix  # `_dea` does not spell out a word, `_dead.` does
        return any(contains_prefix(p, prefix) for p in self._patterns("subscribe"))

    def _patterns(self, verb: Verb) -> list[str]:
        return [c.pattern for c in self.capabilities if c.verb == verb]
