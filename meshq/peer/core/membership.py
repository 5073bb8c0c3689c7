"""What gossip tells the core: kept with the links, and in the journal for those who follow it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import assert_never

from meshq.peer.core.context import Context
from meshq.peer.core.events import MemberSeen, MembershipNoticed, RoundTripsMeasured, UdpSeen
from meshq.peer.core.journal import Journal
from meshq.peer.core.links import Links
from meshq.peer.core.liveness import Liveness

News = MemberSeen | UdpSeen | RoundTripsMeasured | MembershipNoticed


@dataclass
class MembershipView:
    ctx: Context
    links: Links
    liveness: Liveness
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        self.journal = Journal(self.ctx)

    def on_news(self, news: News) -> bool:
        """Whether clients have to hear of it."""
        match news:
            case MemberSeen():
                link = self.links.states.get(news.peer)
                self.liveness.on_member(news)
                self.journal.on_member(link.seen if link else None, news)
                return self.links.on_member(news)
            case UdpSeen():
                self.links.on_udp(news)
                self.journal.on_udp(news)
            case RoundTripsMeasured():
                self.links.on_round_trips(news.rtt_ms)
            case MembershipNoticed():
                self.journal.on_noticed(news)
            case _:
                assert_never(news)
        return False

    def on_own_record(self, addresses: tuple[str, ...], incarnation: tuple[int, int]) -> bool:
        """Where this peer can be found now. Whether clients have to hear of it."""
        self.ctx.my_incarnation = incarnation
        before, self.ctx.my_addresses = self.ctx.my_addresses, addresses
        if addresses != before and before:
            facts = {"addresses": list(addresses), "was": {"addresses": list(before)}}
            self.journal.on_noticed(MembershipNoticed("OwnAddressesChanged", facts))
            self.links.on_moved()
        return addresses != before
