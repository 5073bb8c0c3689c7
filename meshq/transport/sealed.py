"""Sealed datagrams: what makes a UDP packet worth reading.

Anyone can send a packet to an open port, again and again, with any source address. So a datagram is believed
only once it opens under a gossip key (XChaCha20-Poly1305), and then only if it is new: it carries its sender,
the sender's boot epoch (raised at every start) and a sequence number, and each sender has a sliding window of
sequence numbers seen (RFC 4303, 3.4.3). Nothing about a datagram is believed, remembered or moved before it
has opened.

    0       4         8        32                                    -16
    | magic | key id  | nonce  | sealed: sender, epoch, sequence, payload | tag |

The header names the key and nothing else; header and mesh id are associated data, so a datagram of another
mesh does not open even under an equal key. The window keeps out replays, not insiders: whoever holds the
gossip key can speak as any sender, which is why member records are signed besides.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
    crypto_aead_xchacha20poly1305_ietf_KEYBYTES,
)
from nacl.exceptions import CryptoError
from nacl.utils import random as random_bytes

from meshq.errors import RemoteProtocolError, UsageError
from meshq.ids import ID_BYTES, MeshId, PeerId
from meshq.limits import DATAGRAM_BYTES_MAX, PEERS_MAX, REPLAY_WINDOW

_MAGIC = b"MQG\x01"  # the last byte is the version of this format
_HEADER = struct.Struct(">4sI")  # magic, key id
_INNER = struct.Struct(f">{ID_BYTES}sQQ")  # sender, boot epoch, sequence
_NONCE_BYTES = 24
_TAG_BYTES = 16
_WINDOW_MASK = (1 << REPLAY_WINDOW) - 1

OVERHEAD_BYTES = _HEADER.size + _NONCE_BYTES + _INNER.size + _TAG_BYTES
PAYLOAD_BYTES_MAX = DATAGRAM_BYTES_MAX - OVERHEAD_BYTES  # `UsageError`


class Reason(StrEnum):
    """Why a datagram was dropped; the words of the `dropped` counters."""

    OVERSIZED = "oversized"
    SHORT = "short"
    FOREIGN = "foreign"  # not one of ours at all, or of a version this one does not read
    FOREIGN_KEY = "foreign_key"  # a key id that is not in the keyring (yet, or any more)
    FORGED = "forged"  # does not open: changed on the way, another mesh, or no key
    OWN = "own"  # our own, come back: a seed or multicast suggestion that is this peer
    OLD_BOOT = "old_boot"  # from before the sender's latest start
    REPLAYED = "replayed"
    TOO_OLD = "too_old"  # below the replay window, so nobody can tell whether it is a replay
    TOO_MANY_SENDERS = "too_many_senders"


class Dropped(RemoteProtocolError):
    """The datagram is not to be read any further, and why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"datagram dropped: {reason.value}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Opened:
    sender: PeerId
    boot_epoch: int
    sequence: int
    payload: bytes


class Sealer:
    """Seals this peer's datagrams under the active key. `nonce` makes random bytes (not in a simulator)."""

    def __init__(
        self,
        keys: Mapping[int, bytes],
        active: int,
        mesh_id: MeshId,
        sender: PeerId,
        boot_epoch: int,
        *,
        nonce: Callable[[int], bytes] = random_bytes,
    ) -> None:
        self._mesh_id = mesh_id
        self._sender = sender
        self._boot_epoch = boot_epoch
        self._nonce = nonce
        self._sequence = 0
        self.use(keys, active)

    def use(self, keys: Mapping[int, bytes], active: int) -> None:
        """Seal under this key from now on. Sequence numbers go on: they are the sender's, not the key's."""
        _check_keys(keys)
        if active not in keys:
            raise UsageError(f"gossip key {active} is not in the keyring {sorted(keys)}: install it first")
        self._header = _HEADER.pack(_MAGIC, active)
        self._key = keys[active]

    def seal(self, payload: bytes) -> bytes:
        """The datagram. Raises: UsageError above PAYLOAD_BYTES_MAX."""
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise UsageError(
                f"a payload of {len(payload)} bytes does not fit one datagram: at most {PAYLOAD_BYTES_MAX}"
            )
        self._sequence += 1
        inner = _INNER.pack(self._sender, self._boot_epoch, self._sequence) + payload
        nonce = self._nonce(_NONCE_BYTES)
        sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(
            inner, self._header + self._mesh_id, nonce, self._key
        )
        return self._header + nonce + sealed


class Opener:
    """Opens datagrams and drops what is not new or not ours; `dropped` counts by reason."""

    def __init__(self, keys: Mapping[int, bytes], mesh_id: MeshId, me: PeerId) -> None:
        self._mesh_id = mesh_id
        self._me = me
        self._senders: dict[PeerId, _Window] = {}  # at most PEERS_MAX
        self.dropped: Counter[Reason] = Counter()
        self.use(keys)

    def use(self, keys: Mapping[int, bytes]) -> None:
        """Open under these keys from now on; what was seen of each sender stays."""
        _check_keys(keys)
        self._keys = dict(keys)

    def open(self, datagram: bytes) -> Opened:
        """Raises: Dropped, with the reason, and counts it."""
        try:
            opened = self._unseal(datagram)
            self._admit(opened)
        except Dropped as e:
            self.dropped[e.reason] += 1
            raise
        return opened

    def _unseal(self, datagram: bytes) -> Opened:
        if len(datagram) > DATAGRAM_BYTES_MAX:
            raise Dropped(Reason.OVERSIZED)
        if len(datagram) < OVERHEAD_BYTES:
            raise Dropped(Reason.SHORT)
        magic, key_id = _HEADER.unpack_from(datagram)
        if magic != _MAGIC:
            raise Dropped(Reason.FOREIGN)
        key = self._keys.get(key_id)
        if key is None:
            raise Dropped(Reason.FOREIGN_KEY)
        header, body = datagram[: _HEADER.size], datagram[_HEADER.size :]
        try:
            inner = crypto_aead_xchacha20poly1305_ietf_decrypt(
                body[_NONCE_BYTES:], header + self._mesh_id, body[:_NONCE_BYTES], key
            )
        except CryptoError:
            raise Dropped(Reason.FORGED) from None
        sender, boot_epoch, sequence = _INNER.unpack_from(inner)
        return Opened(PeerId(sender), boot_epoch, sequence, inner[_INNER.size :])

    def _admit(self, opened: Opened) -> None:
        if opened.sender == self._me:
            raise Dropped(Reason.OWN)
        window = self._senders.get(opened.sender)
        if window is None:
            if len(self._senders) >= PEERS_MAX:
                raise Dropped(Reason.TOO_MANY_SENDERS)
            window = self._senders[opened.sender] = _Window()
        window.admit(opened.boot_epoch, opened.sequence)


class _Window:
    """What has been seen of one sender: boot epoch, highest sequence, and a bit for each one below."""

    __slots__ = ("_boot_epoch", "_highest", "_seen")

    def __init__(self) -> None:
        self._boot_epoch = -1
        self._highest = 0
        self._seen = 0  # bit n: highest - n was seen; at most REPLAY_WINDOW bits

    def admit(self, boot_epoch: int, sequence: int) -> None:
        if boot_epoch < self._boot_epoch:
            raise Dropped(Reason.OLD_BOOT)
        if boot_epoch > self._boot_epoch:
            self._boot_epoch, self._highest, self._seen = boot_epoch, sequence, 1
            return
        behind = self._highest - sequence
        if behind >= REPLAY_WINDOW:
            raise Dropped(Reason.TOO_OLD)
        if behind >= 0:
            if self._seen >> behind & 1:
                raise Dropped(Reason.REPLAYED)
            self._seen |= 1 << behind
            return
        # A jump beyond the window empties it; shifting by the jump itself could ask for 2**64 bits.
        self._seen = self._seen << -behind & _WINDOW_MASK if -behind < REPLAY_WINDOW else 0
        self._seen |= 1
        self._highest = sequence


def _check_keys(keys: Mapping[int, bytes]) -> None:
    for key_id, key in keys.items():
        if not 0 <= key_id < 1 << 32:
            raise UsageError(f"gossip key id {key_id} is not a 32-bit number")
        if len(key) != crypto_aead_xchacha20poly1305_ietf_KEYBYTES:
            raise UsageError(f"gossip key {key_id} has {len(key)} bytes instead of 32")
