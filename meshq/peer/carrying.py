"""Carrying out what the core orders: for each kind of effect, who does it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meshq import messages
from meshq.batch import Buffer
from meshq.gossip.words import LinkCarried
from meshq.peer.core.events import (
    LOCAL,
    ClockTold,
    CloseLink,
    DeletePayloads,
    FetchBatches,
    HintMembership,
    Mended,
    OpenLink,
    PeerLeft,
    PeersRegistered,
    Persist,
    ReadPayloads,
    ReadRows,
    ReadSlotLog,
    ResumeWrites,
    SeekTime,
    SendPeer,
    SendSession,
    Settle,
    StopPeer,
    SurveyBatches,
    TellMembership,
    TellRolledBack,
)
from meshq.peer.disk import log_mended

if TYPE_CHECKING:
    from meshq.peer.shell import PeerShell

log = logging.getLogger(__name__)
Carriers = dict[type, Callable[[Any], object]]


def carriers(shell: PeerShell) -> Carriers:
    """Of a shell whose parts are all there."""
    disk, links, neighbours = shell.disk, shell.links, shell.neighbours
    return {
        SendSession: lambda e: _send(shell, e),
        Persist: lambda e: shell.store.write(e.write),
        FetchBatches: disk.read,
        SeekTime: disk.read,
        SendPeer: lambda e: links.send(e.peer, e.message, e.payloads),
        ReadSlotLog: disk.read_log,
        ReadRows: disk.read_rows,
        ReadPayloads: disk.read_payloads,
        SurveyBatches: disk.survey,
        DeletePayloads: lambda e: disk.delete(e.slot, e.partition, e.below),
        OpenLink: links.open,
        CloseLink: lambda e: links.close_link(e.peer),
        PeersRegistered: lambda e: neighbours.on_registered(e.peers),
        HintMembership: lambda e: neighbours.on_hint(e.peer, e.what),
        TellMembership: lambda e: neighbours.handle(LinkCarried(e.payload, e.peer)),
        ResumeWrites: lambda _: shell.store.resume(),
        Mended: log_mended,
        TellRolledBack: lambda e: _log_rolled_back(shell, e),
        ClockTold: _log_clock,
        PeerLeft: lambda _: shell.on_left(),
        StopPeer: lambda e: shell.fail(e.error),
        Settle: shell.proposals.settle,
    }


def _send(shell: PeerShell, effect: SendSession) -> None:
    if effect.session[0] == LOCAL:
        frames: list[Buffer] = [messages.VERB, messages.encode(effect.message), *effect.payloads]
        shell.local_links.deliver(effect.session[1], frames)
    else:
        shell.sockets.send(effect)


def _log_clock(told: ClockTold) -> None:
    log.log(logging.WARNING if told.wrong else logging.INFO, "%s", told.text, extra={"event": told.event})


def _log_rolled_back(shell: PeerShell, told: TellRolledBack) -> None:
    log.critical(
        "Peer %s has seen a later start of this disk: %s was copied, put back, or runs twice. This peer "
        "takes part in no decision any more: stop it, remove that directory and start it again, empty",
        shell.name_of(told.peer), shell.directory.store, extra={"event": "DiskRolledBack"},
    )  # fmt: skip
