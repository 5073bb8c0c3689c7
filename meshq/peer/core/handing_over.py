"""Handing over: before a clean stop every slot led here goes to another voter, so that nobody has to notice
that this peer is gone.

Whoever is level can take over at once; one with room for records comes first, if there is one.
"""

from __future__ import annotations

from meshq.peer.core.slots import Slots
from meshq.replication.words import Role

LEVEL_COUNT = 256  # entries behind that are caught up in a moment


def hand_over(slots: Slots) -> int:
    """Begin with those that can go; how many there still are to give. None is led anew from now on."""
    left = 0
    for host in list(slots.hosts.values()):
        replica = host.replica
        replica.set_may_lead(False)
        if replica.role is not Role.LEADER:
            continue
        match, config = replica.match(), replica.config
        there = slots.supported_by - slots.barred
        voters = [n for n in config.voters if n not in config.witnesses]
        others = [n for n in voters if n != slots.me and n.peer in there]
        others = [n for n in others if n.peer not in slots.full] or others
        if others:
            left += 1
            best = max(others, key=lambda n: match.get(n, 0))
            if not replica.is_handing_over and match.get(best, 0) + LEVEL_COUNT >= replica.last.index:
                slots.transfer(host.slot, best)
    return left
