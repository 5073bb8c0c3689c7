"""A peer fails, and with it the leaders of a third of all slots: that costs a handful, however many slots."""

from __future__ import annotations

from collections import Counter

import pytest

from meshq.messages import Replicate
from meshq.peer.core import events as e
from tests.peer.world import Host, World

SLOTS = 256
MESSAGES_MOST = 40  # of both survivors, beats too
SYNCS_MOST = 8  # of each: elections of both halves, and what they append


class Watched:
    """Counts what two survivors send each other and sync, from now until every slot is led by one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: Counter[str] = Counter()  # messages between peers, by type
        self.inner = 0  # replicas' messages inside them
        self.syncs: Counter[str] = Counter()
        do, sync = Host._do, Host._sync

        def counting_do(host: Host, effects: list[e.Effect]) -> None:
            for effect in effects:
                if isinstance(effect, e.SendPeer) and effect.peer in host.links:
                    self.sent[type(effect.message).__name__] += 1
                    if isinstance(effect.message, Replicate):
                        self.inner += len(effect.message.messages)
            do(host, effects)

        def counting_sync(host: Host, run: int) -> None:
            if host.up and run == host.run and host.disk.waiting:
                self.syncs[host.identity.name] += 1
            sync(host, run)

        monkeypatch.setattr(Host, "_do", counting_do)
        monkeypatch.setattr(Host, "_sync", counting_sync)


def all_led(world: World) -> bool:
    """Every slot is led by somebody who is up, and all who are up know by whom."""
    up = [h for h in world.hosts if h.up]
    led = sum(1 for h in up for _ in h.core.slots.led())
    if led < world.slots + 1:
        return False
    alive = {h.identity.peer_id for h in up}
    return all(h.core.whereabouts.leader_of(s) in alive for h in up for s in h.core.slots.hosts)


@pytest.mark.parametrize("seed", range(3))
def test_slots_failing_over_together_cost_a_handful(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An election is a vote, a grant and an entry to sync, whichever way the halves of the slots go: a few
    turns with one message and one sync each, for 256 slots as for one.
    """
    world = World(seed, peers=3, slots=SLOTS)
    world.run(lambda: all_led(world))
    world.run_for(3.0)
    victim = world.hosts[1]
    led = sum(1 for _ in victim.core.slots.led())
    assert led > SLOTS // 5
    watched = Watched(monkeypatch)
    victim.crash()
    start = world.now
    world.run(lambda: all_led(world), most_s=1.2)
    told = (
        f"{led} slots led again after {world.now - start:.2f} s: {dict(watched.sent)}, in them "
        f"{watched.inner} of replicas; syncs {dict(watched.syncs)}"
    )
    print(told)
    assert watched.sent.total() <= MESSAGES_MOST, told
    assert max(watched.syncs.values()) <= SYNCS_MOST, told
