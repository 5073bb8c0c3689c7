"""How names, keys, times and addresses are written where people see them.

Secrets that are copied by hand or read aloud use Crockford's base32: no letter that looks like another one
(`i l o u` are not written; `i`, `l` and `o` are read as the digits they are mistaken for), any case. CURVE
keys are Z85, because that is what every ZeroMQ binding takes.
"""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from typing import Final

from zmq.utils import z85

from meshq.errors import UsageError

KEY_BYTES: Final = 32
TIME_MAX_S: Final = 253_402_300_799  # the last second of the year 9999

_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}", re.ASCII)
_ADDRESS = re.compile(
    r"(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,15})?\]):(?P<port>\d{1,5})",
    re.ASCII,
)
_STANDARD = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_WRITE = str.maketrans(_STANDARD, _CROCKFORD)
_READ = str.maketrans(_CROCKFORD + "oil", _STANDARD + "ABB")
_READABLE = frozenset(_CROCKFORD + "oil")


def check_name(name: str, what: str = "a name") -> str:
    """Return the name of a mesh, peer or client; raise UsageError when it is not one."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name[:100]!r} is not {what}: 1 to 63 letters, digits, _ and -")
    return name


def show_key(raw: bytes) -> str:
    """A 32-byte key in Z85 (40 characters)."""
    return z85.encode(raw).decode()


def parse_key(text: str, what: str = "a key") -> bytes:
    """The 32 bytes of a Z85 key. Raises: UsageError naming `what`, never the text, which may be a secret."""
    try:
        raw = z85.decode(text)
        good = len(raw) == KEY_BYTES and z85.encode(raw).decode() == text
    except Exception:  # the decoder raises what it comes across: KeyError, struct.error, ValueError
        good, raw = False, b""
    if not good:
        raise UsageError(f"{what} is not a key: 40 characters of Z85 are expected (copied incompletely?)")
    return raw


def show_time(unix_s: float) -> str:
    return datetime.fromtimestamp(min(max(unix_s, 0), TIME_MAX_S), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def split_address(address: str) -> tuple[str, int]:
    """Host (IPv6 without its brackets) and port of `HOST:PORT`. Raises: UsageError."""
    found = _ADDRESS.fullmatch(address)
    if not found or not 0 < int(found["port"]) < 1 << 16:
        raise UsageError(
            f"{address[:300]!r} is not an address: HOST:PORT is expected, IPv6 as [ADDRESS]:PORT"
        )
    return found["host"].strip("[]"), int(found["port"])


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def encode_base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").translate(_WRITE)


def decode_base32(text: str) -> bytes:
    """The bytes that `encode_base32` wrote, in any case, look-alikes forgiven. Raises: ValueError."""
    text = text.lower()
    if not _READABLE.issuperset(text):
        raise ValueError("it has characters that are never written")
    body = text.translate(_READ)
    raw = base64.b32decode(body + "=" * (-len(body) % 8))
    if encode_base32(raw) != body.translate(_WRITE):
        raise ValueError("its last character is wrong")
    return raw
