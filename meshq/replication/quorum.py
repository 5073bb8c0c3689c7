"""Who belongs to a slot, and what a majority of them is.

A configuration is a set of voters and a set of learners. While it changes it is *joint*: the new voters and
the outgoing ones are two sets, and whatever needs a majority needs one of each, so that at no moment two
disjoint majorities can decide (Ongaro, "Consensus: Bridging Theory and Practice", 2014, section 4.3). A set
with no voters at all has no majority, so nothing can be decided by nobody.

Some members are *witnesses*: they have the log and vote, and keep a payload only until every other member has
it. The others are the *keepers*.

All of it is arithmetic over at most a dozen members; `tests/replication/test_quorum.py` holds it against a
twin that tries every subset.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

import msgspec

from meshq.errors import StoreCorrupt, UsageError
from meshq.ids import PeerId

VOTERS_MAX: Final = 7  # of a slot; more: `UsageError`
LEARNERS_MAX: Final = 1_000  # of a slot, since every peer copies the system slot; more: `UsageError`


class Node(NamedTuple):
    """Who votes: a peer with the disk it has now. A wiped disk is another node, and has promised nothing."""

    peer: PeerId
    disk: bytes


class Config(msgspec.Struct, frozen=True, array_like=True):
    """`voters` decide, with the `outgoing` ones while there are any; `learners` only copy. All are sorted.

    An outgoing voter may be a learner too: that is what it becomes. `witnesses` are some of all these.
    """

    voters: tuple[Node, ...]
    outgoing: tuple[Node, ...] = ()
    learners: tuple[Node, ...] = ()
    witnesses: tuple[Node, ...] = ()

    @property
    def is_joint(self) -> bool:
        return bool(self.outgoing)

    def nodes(self) -> set[Node]:
        return {*self.voters, *self.outgoing, *self.learners}

    def keepers(self) -> set[Node]:
        """Who keeps payloads for good."""
        return self.nodes() - set(self.witnesses)

    def is_casting(self, node: Node) -> bool:
        """Whether what is decided without this node is on the disks of all others that vote beside it."""
        return any(node in voters and len(voters) <= 3 for voters in (self.voters, self.outgoing))

    def is_voter(self, node: Node) -> bool:
        return node in self.voters or node in self.outgoing

    def has_majority(self, of: Collection[Node]) -> bool:
        """Whether these are enough to decide."""
        return _has_majority(self.voters, of) and (not self.outgoing or _has_majority(self.outgoing, of))

    def has_lost(self, against: Collection[Node]) -> bool:
        """Whether a majority has become impossible with these against it."""
        rest = self.nodes() - set(against)
        return not self.has_majority(rest)

    def committed(self, match: Mapping[Node, int]) -> int:
        """The highest index that a majority has on disk, by what each one has."""
        index = _committed(self.voters, match)
        return min(index, _committed(self.outgoing, match)) if self.outgoing else index


def config_of(
    voters: Collection[Node], learners: Collection[Node] = (), witnesses: Collection[Node] = ()
) -> Config:
    """A configuration that is not joint; of `witnesses` those that are in it. Raises: UsageError."""
    both = set(voters) & set(learners)
    if not 1 <= len(set(voters)) <= VOTERS_MAX or len(set(learners)) > LEARNERS_MAX or both:
        raise UsageError(
            f"{len(voters)} voters and {len(learners)} learners, {len(both)} of them both: "
            f"a slot has 1 to {VOTERS_MAX} voters and up to {LEARNERS_MAX} learners, each one once"
        )
    if not set(voters) - set(witnesses):
        raise UsageError("a slot needs a voter that keeps payloads: witnesses alone have none to give")
    config = Config(tuple(sorted(set(voters))), (), tuple(sorted(set(learners))))
    return _with_witnesses(config, witnesses)


def _with_witnesses(config: Config, witnesses: Collection[Node]) -> Config:
    return msgspec.structs.replace(config, witnesses=tuple(sorted(config.nodes() & set(witnesses))))


def step_toward(current: Config, target: Config) -> Config:
    """The configuration to append when `target` is wanted: joint when voters change, else the target itself.

    Raises: UsageError when one change is under way already, or when a member would turn into a witness, or
    a witness into a keeper of what it has not: it leaves first, and comes again with nothing.
    """
    if current.is_joint or target.is_joint:
        raise UsageError("a change of the configuration is under way: one at a time")
    if any((n in current.witnesses) != (n in target.witnesses) for n in current.nodes() & target.nodes()):
        raise UsageError("a node is a witness or keeps payloads for as long as it is a member")
    if current.voters == target.voters:
        return target
    joint = Config(target.voters, current.voters, target.learners)
    return _with_witnesses(joint, {*current.witnesses, *target.witnesses})


def leave_joint(joint: Config) -> Config:
    """What follows a committed joint configuration: the new voters alone."""
    return _with_witnesses(Config(joint.voters, (), joint.learners), joint.witnesses)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Config)


def encode_config(config: Config) -> bytes:
    return _encoder.encode(config)


def decode_config(body: bytes) -> Config:
    """Raises: StoreCorrupt."""
    try:
        return _decoder.decode(body)
    except msgspec.MsgspecError as e:
        raise StoreCorrupt(f"a slot's configuration cannot be read: {e}") from None


def _has_majority(voters: tuple[Node, ...], of: Collection[Node]) -> bool:
    return 2 * sum(v in of for v in voters) > len(voters)


def _committed(voters: tuple[Node, ...], match: Mapping[Node, int]) -> int:
    if not voters:
        return 0
    have = sorted([match.get(v, 0) for v in voters], reverse=True)
    return have[len(voters) // 2]
