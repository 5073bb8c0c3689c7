"""mDNS: other peers of this mesh on the same link, without anybody having configured them.

A peer announces a service `_meshq._tcp.local.` under an instance id that is random for each start. Beside it
stands a tag that only those with the mesh's key can make of that id; so peers of one mesh know each other,
and anyone else learns that there is some meshq here, and neither the mesh's name nor the peer's.

mDNS is not authenticated and a tag can be replayed with other addresses: all it does is to suggest addresses.
Where multicast does not work (many Wi-Fi access points and container networks drop it) this says so once and
stays quiet: seeds and remembered addresses have to be enough.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Callable, Sequence

from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

_log = logging.getLogger(__name__)

SERVICE = "_meshq._tcp.local."
_VERSION = b"1"
_TAG_BYTES = 16
_INSTANCE_BYTES_MAX = 24  # in hex a DNS label has at most 63 characters
_SEEN_MAX = 1_000  # services remembered; zeroconf bounds its own cache at 10,000 records
_LOOKUPS_MAX = 64  # services asked for details at a time
_LOOKUP_MS = 2_000
_ADDRESSES_PER_SERVICE_MAX = 16


class Discovery:
    """Announces this peer and reports others with `on_address("HOST:PORT")`, in the running loop.

    `instance`: random bytes of this start. `addresses`: this host's, IPv6 link-local with scope; they are
    announced, and only their interfaces are listened on. `counts`: found, wrong_tag, unanswered, capped,
    busy.
    """

    def __init__(
        self,
        instance: bytes,
        port: int,
        addresses: Sequence[str],
        tag: Callable[[bytes], bytes],
        on_address: Callable[[str], None],
    ) -> None:
        self._instance = instance
        self._port = port
        self._addresses = list(addresses)
        self._tag = tag
        self._on_address = on_address
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._seen: set[str] = set()  # at most _SEEN_MAX
        self._lookups: dict[str, asyncio.Task[None]] = {}  # at most _LOOKUPS_MAX
        self.counts: Counter[str] = Counter()

    @property
    def running(self) -> bool:
        return self._zeroconf is not None

    async def start(self) -> None:
        """Announce and listen; where that is not possible, log why and go on without."""
        usable = [x for x in self._addresses if _is_here(x)]
        if not usable:
            self._warn("none of these is an address of this host now")
            return
        try:
            await self._open(usable)
        except (OSError, RuntimeError, ValueError, TimeoutError, ZeroconfError) as e:
            self._warn(f"{type(e).__name__}: {e}")
            await self.stop()

    async def update(self, addresses: Sequence[str]) -> None:
        """This host's addresses are these now."""
        if list(addresses) != self._addresses or not self.running:
            await self.stop()
            self._addresses = list(addresses)
            await self.start()

    async def stop(self) -> None:
        """Say goodbye and close. May be called at any time, more than once."""
        lookups = list(self._lookups.values())
        for task in lookups:
            task.cancel()
        await asyncio.gather(*lookups, return_exceptions=True)
        self._seen.clear()
        browser, self._browser = self._browser, None
        zeroconf, self._zeroconf = self._zeroconf, None
        try:
            if browser is not None:
                await browser.async_cancel()
            if zeroconf is not None:
                await zeroconf.async_close()
        except (OSError, RuntimeError, TimeoutError, ZeroconfError) as e:
            self._warn(f"closing: {type(e).__name__}: {e}")

    async def _open(self, addresses: list[str]) -> None:
        interfaces: list[str | int] = [_interface(x) for x in addresses]
        self._zeroconf = AsyncZeroconf(interfaces=list(dict.fromkeys(interfaces)))
        await self._zeroconf.zeroconf.async_wait_for_start()
        await self._zeroconf.async_register_service(self._announcement(addresses))
        self._browser = AsyncServiceBrowser(self._zeroconf.zeroconf, SERVICE, handlers=[self._on_service])

    def _announcement(self, addresses: list[str]) -> AsyncServiceInfo:
        label = self._instance.hex()
        return AsyncServiceInfo(
            SERVICE,
            f"{label}.{SERVICE}",
            port=self._port,
            addresses=[ipaddress.ip_address(x.partition("%")[0]).packed for x in addresses],
            properties={b"t": self._tag(self._instance), b"v": _VERSION},
            server=f"{label}.local.",  # never the host's name
        )

    def _on_service(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Removed:
            self._seen.discard(name)
            return
        if name not in self._seen and len(self._seen) >= _SEEN_MAX:
            self.counts["capped"] += 1
            return
        instance = _instance_of(name)
        if instance is None or instance == self._instance:
            return
        if name in self._lookups or len(self._lookups) >= _LOOKUPS_MAX:
            self.counts["busy"] += 1
            return
        self._seen.add(name)
        self._lookups[name] = asyncio.get_running_loop().create_task(self._look_up(zeroconf, name, instance))

    async def _look_up(self, zeroconf: Zeroconf, name: str, instance: bytes) -> None:
        try:
            info = AsyncServiceInfo(SERVICE, name)
            if not await info.async_request(zeroconf, _LOOKUP_MS):
                self.counts["unanswered"] += 1
                self._seen.discard(name)
                return
        except (OSError, RuntimeError, ValueError, ZeroconfError):
            self.counts["unanswered"] += 1
            return
        finally:
            self._lookups.pop(name, None)
        tag = info.properties.get(b"t") or b""
        if len(tag) != _TAG_BYTES or not hmac.compare_digest(tag, self._tag(instance)):
            self.counts["wrong_tag"] += 1
            return
        self.counts["found"] += 1
        for host in info.parsed_scoped_addresses(IPVersion.All)[:_ADDRESSES_PER_SERVICE_MAX]:
            if info.port:
                self._on_address(_host_port(host, info.port))

    def _warn(self, why: str) -> None:
        _log.warning(
            "mDNS is not available on %s (%s): peers are found by seeds and remembered addresses only",
            ", ".join(self._addresses) or "this host",
            why,
            extra={"event": "DiscoveryUnavailable"},
        )


def _instance_of(name: str) -> bytes | None:
    label = name.removesuffix("." + SERVICE)
    try:
        instance = bytes.fromhex(label)
    except ValueError:
        return None
    return instance if 0 < len(instance) <= _INSTANCE_BYTES_MAX else None


def _is_here(address: str) -> bool:
    """Whether it can be bound: one that has just gone must not keep the others from being announced."""
    try:
        (family, kind, _, _, target), *_ = socket.getaddrinfo(
            address, 0, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
        )
        with socket.socket(family, kind) as s:
            s.bind(target)
    except OSError:
        return False
    return True


def _interface(address: str) -> str | int:
    """zeroconf joins IPv4 groups by address and IPv6 ones by interface index."""
    bare, _, scope = address.partition("%")
    if not scope:
        return bare
    return int(scope) if scope.isdigit() else socket.if_nametoindex(scope)


def _host_port(host: str, port: int) -> str:
    """With the scope by name: zeroconf gives its index, which nobody recognizes in a log."""
    bare, percent, scope = host.partition("%")
    if percent and scope.isdigit():
        try:
            scope = socket.if_indextoname(int(scope))
        except OSError:
            percent = scope = ""
    return f"[{bare}{percent}{scope}]:{port}" if ":" in bare else f"{bare}:{port}"
