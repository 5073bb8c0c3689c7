"""The end of a log that can't be read after a restart, where a slot has one voter and a mirror."""

from __future__ import annotations

from math import inf

import pytest

from meshq.entries import EntryKind
from meshq.ids import SYSTEM_SLOT
from meshq.peer.core.events import Ticked
from meshq.peer.core.hosts import Host as Copy
from tests.peer.test_draining import Writing, is_settled, seen
from tests.peer.test_recovering import publish, recover
from tests.peer.world import Host, World


class Two:
    """Two peers, and a slot of records that the first one decides alone."""

    def __init__(self, seed: int) -> None:
        self.world = world = World(seed, peers=2, slots=4)
        self.writing = Writing(world)
        world.run(lambda: is_settled(world))
        world.run_for(2.0)
        self.writing._on = False
        world.run(lambda: all(t in self.writing.client.results for t in self.writing.sent))
        self.voter, self.mirror = world.hosts
        self.slot = next(x.slot for x in self.voter.core.slots.led() if self.holds_records(x))
        self.voter.core.slots.saving._checkpoint_at = inf  # what follows is in the log alone
        self.append(3)

    @staticmethod
    def holds_records(copy: Copy) -> bool:
        return copy.slot != SYSTEM_SLOT and bool(copy.stream.partitions)

    def copy(self, host: Host) -> Copy:
        return host.core.slots.hosts[self.slot]

    def append(self, count: int) -> None:
        for _ in range(count):
            last = self.voter.core.slots.append(self.slot, EntryKind.NOOP, b"").index
        self.voter.tell(Ticked())
        self.world.run(lambda: self.copy(self.voter).replica.commit_index == last)

    def damage(self, back: int) -> None:
        """Its log, at the last entry but so many; it starts again."""
        at = self.copy(self.voter).replica.last.index - back
        self.voter.crash()
        self.voter.disk.damaged.add((self.slot, at))
        self.voter.start()
        for a, b in ((self.voter, self.mirror), (self.mirror, self.voter)):
            a.tell(seen(b))

    def go_on(self) -> None:
        self.world.run(lambda: self.copy(self.voter).leads, most_s=10.0)
        publish(self.writing, 4)
        both = [self.copy(self.voter).replica, self.copy(self.mirror).replica]
        self.world.run(lambda: both[0].last == both[1].last)
        assert not both[0].frozen


@pytest.mark.parametrize("back", [0, 2])
def test_the_mirror_leads_until_the_voter_has_again_what_it_lost(back: int) -> None:
    two = Two(6 + back)
    last = two.copy(two.voter).replica.last
    two.world.run(lambda: two.copy(two.mirror).replica.last == last)
    two.damage(back)
    assert two.copy(two.voter).replica.frozen
    two.go_on()
    assert two.voter.core.slots.damaged == 1
    assert two.copy(two.voter).replica.log.term_at(last.index) == last.term, "what stood there, not another"


def test_a_mirror_that_may_lack_some_of_it_does_not_unless_somebody_says_so() -> None:
    two = Two(5)
    two.mirror.crash()
    two.world.run_for(3.0)
    two.append(3)
    two.mirror.start()
    two.damage(1)
    two.world.run_for(10.0)
    assert two.copy(two.voter).replica.frozen and not two.copy(two.voter).leads
    (step,) = recover(two.world, 0)["slots"]
    assert (step["slot"], step["peer"]) == (str(int(two.slot)), "p0")
    two.go_on()
