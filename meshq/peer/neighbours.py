"""Neighbours: the shell around membership. UDP, mDNS, seeds and remembered addresses in; who is where and
alive out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from meshq.gossip import remembered
from meshq.gossip.discovery import Discovery
from meshq.gossip.machine import Membership
from meshq.gossip.words import (
    AddressesChanged,
    AddressSuggested,
    DatagramReceived,
    Effect,
    Event,
    LeaveRequested,
    LinkAnswered,
    LinkBroken,
    LinkUp,
    MemberChanged,
    OwnRecordOutdated,
    ProbeLink,
    ReachChanged,
    Registered,
    SendDatagram,
    Slept,
    Tick,
    UdpBlocked,
    UdpUnblocked,
    Verdict,
    VerdictsDiscarded,
)
from meshq.ids import PeerId
from meshq.levels import LEVEL_KNOWN
from meshq.peer.endpoints import advertised, hosts, with_default_port
from meshq.peer.settings import Settings
from meshq.security.directory import Loaded
from meshq.security.signing import is_signed_by
from meshq.transport.sealed import Dropped, Opener, Sealer
from meshq.transport.udp import Udp
from meshq.transport.watch import AddressWatch

log = logging.getLogger(__name__)
LOOK_S = 5.0  # how often this host's addresses are looked at, also when nothing told that they changed
SETTLE_S = 0.05  # after a change; an interface that comes up gets its addresses one after the other
REMEMBER_S = 30.0
SLEPT_S = 0.5  # the loop's clock stops while the host is suspended; more than this apart is a suspension
_RECORD = b"member"
_WAYS = {"direct": "directly", "indirect": "by way of others", "link": "only over the link", "": "in no way"}
News = Verdict | UdpBlocked | UdpUnblocked | OwnRecordOutdated | VerdictsDiscarded


class Neighbours:
    """Runs membership; `on_news` hears every change in it, `probe_link` asks a peer over its connection
    and tells it the payload.
    """

    def __init__(
        self,
        papers: Loaded,
        settings: Settings,
        peers_file: Path,
        *,
        boot_epoch: int,
        boot_id: bytes,
        signing_key_of: Callable[[PeerId], bytes | None],
        on_news: Callable[[News], None],
        on_fatal: Callable[[BaseException], None],
        probe_link: Callable[[PeerId, bytes], None],
    ) -> None:
        self._settings = settings
        self._file = peers_file
        self._signing_key_of = signing_key_of
        self._on_news, self._on_fatal = on_news, on_fatal
        self._probe_link = probe_link
        self._loop = asyncio.get_running_loop()
        self._tasks: list[asyncio.Task[None]] = []
        identity, ring = papers.identity, papers.keyring
        self._sealer = Sealer(ring.keys, ring.active, papers.mesh_id, identity.peer_id, boot_epoch)
        self._opener = Opener(ring.keys, papers.mesh_id, identity.peer_id)
        self.members = Membership(
            identity.peer_id,
            name=identity.name,
            addresses=advertised(settings),
            boot_epoch=boot_epoch,
            boot_id=boot_id,
            sign=lambda data: identity.sign(_RECORD, data),
            verify=self._verify,
            rng=random.Random(os.urandom(16)),
            now=self._loop.time(),
            links_carry=True,
            level=LEVEL_KNOWN,
            weight=settings.weight,
            zone=settings.zone,
        )
        instance = os.urandom(16)
        self._discovery = Discovery(
            instance, settings.port, self._interfaces(), papers.keyring.mdns_tag, self._on_suggested
        )
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self._slept_s = _suspended_s(self._loop)
        # Last, so that nothing stays open when one of the others fails; a watch does not.
        self._udp = Udp.open(settings.port, bind=settings.bind, on_datagram=self._on_datagram)
        self._watch = AddressWatch(self._changed.set)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(self.members.own.addresses)

    def start(self) -> None:
        self._tick()
        for seed in with_default_port(self._settings.seed):
            self.handle(AddressSuggested(seed, keep=True))
        for addresses in remembered.load(self._file).values():
            for address in addresses:
                self.handle(AddressSuggested(address))
        if self._settings.mdns:
            self._tasks.append(self._loop.create_task(self._discovery.start()))
        self._tasks.append(self._loop.create_task(self._watch_addresses()))
        self._tasks.append(self._loop.create_task(self._remember()))

    async def stop(self) -> None:
        try:
            if not self._stopping:
                self.handle(LeaveRequested())
            self._stopping = True
            if self._timer is not None:
                self._timer.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._discovery.stop()
            self._save()
        finally:
            self._stopping = True
            self._watch.close()
            self._udp.close()

    def on_registered(self, peers: Iterable[PeerId]) -> None:
        self.handle(Registered(tuple(peers)))

    def on_hint(self, peer: PeerId, what: str) -> None:
        """What a link to this peer told: it came up, broke, or answered when it was asked."""
        match what:
            case "up":
                self.handle(LinkUp(peer))
            case "broken":
                self.handle(LinkBroken(peer))
            case "answered":
                self.handle(LinkAnswered(peer))

    def handle(self, event: Event) -> None:
        if self._stopping:
            return
        for effect in self.members.handle(event, now=self._loop.time()):
            self._execute(effect)
        self._arm()

    def _arm(self) -> None:
        """Wake when the machine wants to, which any event may have changed."""
        due = self.members.deadline()
        if self._stopping or (self._timer is not None and self._timer.when() == due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._tick)

    def _execute(self, effect: Effect) -> None:
        match effect:
            case SendDatagram(address, payload):
                self._udp.send(self._sealer.seal(payload), address)
            case ProbeLink(peer, payload):
                self._probe_link(peer, payload)
            case VerdictsDiscarded(seconds):
                log.warning(
                    "This host stood still for %.2f s: what it alone said against others is taken back",
                    seconds,
                    extra={"event": "VerdictsDiscarded"},
                )
                self._on_news(effect)
            case OwnRecordOutdated():
                log.error(
                    "Another start of this peer signed records at boot epoch %d: this directory was copied, "
                    "restored, or runs twice. Others do not listen to this one",
                    effect.boot_epoch,
                    extra={"event": "OwnRecordOutdated"},
                )
                self._on_news(effect)
            case UdpBlocked(m) | UdpUnblocked(m):
                name = type(effect).__name__
                log.warning("%s: %s", name, m.name or m.peer.hex(), extra={"event": name})
                self._on_news(effect)
            case _:
                m, name = effect.member, type(effect).__name__
                log.info("%s %s", m.name or m.peer.hex(), _said(effect), extra={"event": name})
                self._on_news(effect)

    def _on_datagram(self, data: bytes, address: str) -> None:
        try:
            opened = self._opener.open(data)
        except Dropped:
            return  # counted by reason
        self._handle_guarded(DatagramReceived(opened.payload, opened.sender, address))

    def _on_suggested(self, address: str) -> None:
        self._handle_guarded(AddressSuggested(address))

    def _handle_guarded(self, event: Event) -> None:
        """Of what the loop calls: what is raised there reaches nobody else, and a machine that broke in the
        middle of an event is not to go on.
        """
        try:
            self.handle(event)
        except Exception as e:
            self._on_fatal(e)

    def _verify(self, peer: PeerId, data: bytes, signature: bytes) -> bool:
        key = self._signing_key_of(peer)
        return key is not None and is_signed_by(key, _RECORD, data, signature)

    def _tick(self) -> None:
        if self._timer is not None:
            self._timer.cancel()  # else it rings on beside the next one, for ever
            self._timer = None
        try:
            slept_s = _suspended_s(self._loop)
            if slept_s - self._slept_s > SLEPT_S:
                self.handle(Slept(slept_s - self._slept_s))
            self._slept_s = slept_s
            self.handle(Tick())
        except Exception as e:
            self._on_fatal(e)

    def _interfaces(self) -> list[str]:
        return hosts(self._settings)

    async def _watch_addresses(self) -> None:
        """Interfaces come and go; what this peer says of itself follows."""
        before = self._interfaces()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), LOOK_S)
                await asyncio.sleep(SETTLE_S)
            self._changed.clear()
            try:
                found = self._interfaces()
                if found == before:
                    continue
                before = found
                log.info("Addresses are now %s", found, extra={"event": "AddressesChanged"})
                self.handle(AddressesChanged(advertised(self._settings)))
                if self._settings.mdns:
                    await self._discovery.update(found)
            except Exception:
                log.exception("This host's addresses could not be told", extra={"event": "AddressesFailed"})

    async def _remember(self) -> None:
        while True:
            await asyncio.sleep(REMEMBER_S)
            self._save()

    def _save(self) -> None:
        known = {m.peer: m.addresses for m in self.members.members() if m.addresses}
        if known:
            with contextlib.suppress(OSError):
                remembered.save(self._file, {**remembered.load(self._file), **known})

    def round_trips_ms(self) -> dict[PeerId, float]:
        """Of the members that have answered a datagram."""
        return {m.peer: round(m.rtt_s * 1000, 3) for m in self.members.members() if m.rtt_s is not None}

    def counters(self) -> dict[str, int]:
        found = {f"udp_{k}": v for k, v in self._udp.counts.items()}
        found |= {f"gossip_{k}": v for k, v in self.members.counts.items()}
        return found | {f"datagram_{k}": v for k, v in self._opener.dropped.items()}


def _said(effect: Verdict) -> str:
    """What has changed about a member."""
    m = effect.member
    match effect:
        case MemberChanged(restarted=True):
            return f"has started again, at {', '.join(m.addresses)}"
        case MemberChanged():
            return f"says something new of itself: at {', '.join(m.addresses)}"
        case ReachChanged(before=before):
            return f"is reached {_WAYS.get(m.reach, m.reach)} now, {_WAYS.get(before, before)} before"
        case _:
            return f"is {m.state.value}"


def _suspended_s(loop: asyncio.AbstractEventLoop) -> float:
    """How far the clock that runs on in suspend is ahead of the loop's; only its changes mean anything."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - loop.time()
