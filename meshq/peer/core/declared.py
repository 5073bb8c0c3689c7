"""What peers declare of themselves in their signed records, and what the mesh makes of it.

*Weight and zone.* Placement has to be the same for everybody and the same after a restart, whoever is away
then; so it goes by the registry, not by gossip. The registry's leader compares the two and commits what
peers that are there have said since.

*Feature level.* What a peer's software understands is its own to know; what the mesh may use is one number in
the registry. An administrator raises it, once every member is known to understand it. Software that does not
stops its peer when it hears of it: what it would not understand it must not acknowledge or vote on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from meshq.errors import MeshqError, Refused, UsageError
from meshq.ids import PeerId, Session
from meshq.levels import FEATURES, LEVELS, PLACES, check_understood
from meshq.messages import Answer, Ask
from meshq.peer.core.context import Context
from meshq.peer.core.events import StopPeer
from meshq.peer.core.links import Links
from meshq.peer.core.registrar import Registrar
from meshq.registry.commands import PlacePeer, SetLevel

LOOK_S = 1.0


@dataclass
class Declared:
    ctx: Context
    links: Links
    registrar: Registrar
    _look_at: float = 0.0
    _proposed: set[PeerId] = field(default_factory=set)  # on their way into the registry

    # ------------------------------------------------------------------------------- weight and zone
    def tick(self) -> None:
        if self.ctx.now < self._look_at or not self.registrar.leads() or self.ctx.registry.level < PLACES:
            return
        self._look_at = self.ctx.now + LOOK_S
        for peer in self.ctx.registry.peers:
            said = self.place(peer)
            if said is not None and said != self.ctx.registry.place(peer) and peer not in self._proposed:
                self._note(PlacePeer(peer, *said))

    def _note(self, command: PlacePeer) -> None:
        peer = PeerId(command.peer)
        self._proposed.add(peer)
        self.registrar.propose(command, lambda _: self._proposed.discard(peer))

    def place(self, peer: PeerId) -> tuple[float, str] | None:
        """What the peer wants, as far as it is there and has said."""
        settings, link = self.ctx.settings, self.links.states.get(peer)
        if peer == self.ctx.me.peer:
            return (settings.weight, settings.zone) if settings.weight is not None else None
        if link is None or link.seen is None or not link.seen.alive or link.seen.weight is None:
            return None
        return link.seen.weight, link.seen.zone

    # ---------------------------------------------------------------------------------- feature level
    def level(self, peer: PeerId) -> int | None:
        """The highest one that its software knows; None: it was not heard of since this peer started."""
        link = self.links.states.get(peer)
        if peer == self.ctx.me.peer:
            return self.ctx.settings.level
        return link.seen.level if link is not None and link.seen is not None else None

    def on_level(self) -> None:
        """The registry's is another one now."""
        try:
            check_understood(self.ctx.registry.level, self.ctx.settings.level)
        except UsageError as e:
            self.ctx.out.append(StopPeer(e))

    def on_ask(self, session: Session, message: Ask) -> None:
        """Raise the level: `to` (what this peer knows), `dry_run`. Raises: UsageError, Refused naming every
        member that is in the way.
        """
        registry, highest = self.ctx.registry, self.ctx.settings.level
        to, dry_run = message.args.get("to", highest), message.args.get("dry_run", False)
        if not isinstance(to, int) or isinstance(to, bool) or not 1 <= to < LEVELS:
            raise UsageError("`to` must be the number of a feature level, or left out")
        if to > highest:
            raise UsageError(f"{self.ctx.me.name!r} knows features up to level {highest}, not {to}")
        value: dict[str, Any] = {
            "level": registry.level,
            "to": max(to, registry.level),
            "gains": {str(x): FEATURES.get(x, "") for x in range(registry.level + 1, to + 1)},
            "in_the_way": self._in_the_way(to),
            "raised": False,
        }
        if dry_run or to <= registry.level:
            self.ctx.send(session, Answer(message.request, value))
            return
        if value["in_the_way"]:
            raise Refused(
                f"not every member knows the features of level {to}: "
                + "; ".join(f"{x['name']} {x['why']}" for x in value["in_the_way"])
            )

        def done(result: int | MeshqError) -> None:
            if isinstance(result, MeshqError):
                self.ctx.fail(session, message.request, result)
            else:
                self.ctx.send(session, Answer(message.request, {**value, "level": to, "raised": True}))

        self.registrar.propose(SetLevel(to), done)

    def _in_the_way(self, to: int) -> list[dict[str, Any]]:
        """Members that do not know this level, or of which nobody knows whether they do."""
        found = []
        for peer, registered in self.ctx.registry.peers.items():
            level = self.level(peer)
            if level is None:
                why = "was not heard of since this peer started: start it, or let it go with `meshq leave`"
            elif level < to:
                why = f"knows those up to {level}: install a newer meshq there, and restart it"
            else:
                continue
            found.append({"name": registered.facts.name, "level": level, "why": why})
        return sorted(found, key=lambda x: x["name"])
