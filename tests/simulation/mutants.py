"""Faults built in on purpose: each must be caught, or the simulator is not looking.

A mutant is an edit of a function's source: the line that does it right, and the wrong one in its place. The
line has to be there exactly once, so a mutant can't quietly become harmless when the code moves on.

`make mutants` searches for each of them by random schedules and prints how many it took;
`tests/simulation/test_mutants.py` has a schedule for each that is known to catch it.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from meshq.errors import MeshqError
from meshq.replication.elections import Elections
from meshq.replication.facts import Facts
from meshq.replication.feeding import Feeding
from meshq.replication.following import Following
from meshq.replication.leading import Leading
from meshq.replication.machine import Replica
from meshq.replication.mirrors import Mirrors
from meshq.replication.quorum import Config
from meshq.replication.reads import Reads
from meshq.replication.snapshots import Receiving, Sending
from meshq.replication.state import State
from meshq.replication.support import Support
from tests.simulation import faults
from tests.simulation.disk import Wrong
from tests.simulation.host import Host
from tests.simulation.world import World


@dataclass(frozen=True, slots=True)
class Edit:
    owner: type
    function: str
    right: str
    wrong: str

    def make(self) -> object:
        function = self.owner.__dict__[self.function]
        plain = function.fget if isinstance(function, property) else function
        source = textwrap.dedent(inspect.getsource(plain))
        right, wrong = (textwrap.dedent(t).strip("\n") for t in (self.right, self.wrong))
        if source.count(right) != 1:
            raise AssertionError(f"{self.owner.__name__}.{self.function} has not one {right!r}")
        module = sys.modules[self.owner.__module__]
        there: dict[str, object] = {}
        exec(compile(source.replace(right, wrong), "<mutant>", "exec"), vars(module), there)
        return there[self.function]


# Legal, and what others do: our leader begins and goes back just as far as it must, so that it never tells of
# decisions beyond what matches, and a follower that believes too much would not be seen.
BEGINS_FURTHER_BACK = Edit(
    Feeding,
    "add",
    "Progress(next=max(self._state.log.last.index, 1))",
    "Progress(next=max(self._state.log.last.index - 3, self._state.log.start.index + 1, 1))",
)
MUTANTS: dict[str, tuple[Edit, ...]] = {
    "ack before fsync": (
        Edit(
            State,
            "promise",
            "if token <= self.persisted:",
            "if token <= self.persisted or type(message) is AppendReply:",
        ),
    ),
    "vote not persisted": (
        Edit(
            State,
            "flush",
            "hard = self.hard if self._hard_dirty else None",
            "hard = self.hard._replace(vote=None) if self._hard_dirty else None",
        ),
    ),
    "no log check in vote": (
        Edit(
            Elections,
            "on_request",
            "level = (m.last_term, m.last_index) >= max((last.term, last.index), s.hard.lost)",
            "level = last is not None",
        ),
    ),
    "blind truncate": (
        Edit(
            Following,
            "_take",
            "if s.log.term_at(entry.index) == entry.term:",
            "if entry.index <= s.commit and s.log.term_at(entry.index) == entry.term:",
        ),
    ),
    "commit past matched": (
        Edit(
            Following,
            "on_append",
            "s.commit_to(min(m.commit, match))",
            "s.commit_to(min(m.commit, s.log.last.index))",
        ),
        BEGINS_FURTHER_BACK,
    ),
    "commit of an old term": (
        Edit(
            Leading,
            "_advance",
            "if index <= s.commit or s.log.term_at(index) != s.term:",
            "if index <= s.commit:",
        ),
    ),
    "pre-vote ignored": (
        Edit(Elections, "on_tick", "self.become_pre_candidate()", "self.become_candidate(transfer=False)"),
    ),
    "learner votes": (
        Edit(
            Config,
            "has_majority",
            "return _has_majority(self.voters, of) and",
            "return 2 * len(set(of) & self.nodes()) > len(self.voters) and",
        ),
    ),
    "config not rolled back": (Edit(State, "truncate", "self.configs.truncate(from_index)\n", "\n"),),
    "config not reset by snapshot": (
        Edit(State, "replace_log", "self.configs = Configs([(last.index, meta.config)])", "pass"),
    ),
    "applied index apart": (
        Edit(
            Host,
            "write_applied",
            "self.write(slot, Apply(applied, config))",
            "from tests.simulation.disk import ApplyIndexOnly; "
            "self.write(slot, ApplyIndexOnly(applied)); self.write(slot, Apply(applied, config))",
        ),
    ),
    "support by a stalled disk": (
        Edit(Support, "on_disk", "self._disk_stalled = stalled", "self._disk_stalled = False"),
    ),
    "wiped voter keeps its name": (
        Edit(
            Host,
            "wipe",
            "self.disk_number += 1\n    self.rolled_back = False\n    self.epoch = self.disk_number << 32",
            "self.rolled_back = False",
        ),
    ),
    "rolled back and votes": (Edit(Host, "_load", "frozen=self.rolled_back", "frozen=False"),),
    "rolled back and acknowledges": (
        Edit(State, "acknowledge", "if self.rolled_back:", "if self.rolled_back and round_ < 0:"),
    ),
    "one-way support": (
        Edit(
            Support,
            "on_beat",
            "sent_at = self._sent_at(p, beat.echo, now) if beat.echo_epoch == self._epoch else None",
            "sent_at = now",
        ),
    ),
    "joint left early": (
        Edit(
            Leading,
            "propose_config",
            'return self.propose(EntryKind.CONFIG, encode_config(config), b"")',
            'self.propose(EntryKind.CONFIG, encode_config(config), b""); '
            'return self.propose(EntryKind.CONFIG, encode_config(leave_joint(config)), b"")',
        ),
    ),
    "read without a round": (
        Edit(
            Reads,
            "confirm",
            "heard = {n for n, p in followers.items() if p.round_heard >= first} | {s.me}",
            "s.out.append(ReadReady(tuple(r for _, r in self._waiting), s.commit)); self._waiting = []; "
            "return",
        ),
    ),
    "read above commit": (
        Edit(Reads, "confirm", "ReadReady(ready, s.commit)", "ReadReady(ready, s.log.last.index)"),
    ),
    "truncate by high watermark": (
        Edit(
            Following,
            "on_append",
            "s = self.state\n",
            "s = self.state\n"
            "    if m.term > s.log.last.term and s.log.last.index > s.delivered:\n"
            "        s.truncate(s.delivered + 1)\n",
        ),
    ),
    "corrupt taken for absent": (
        Edit(
            Host,
            "_load",
            "repair_until, good = image.last_index, min(behind) - 1",
            "good = min(behind) - 1; image.damaged.clear(); del image.items[good - image.start.index :]",
        ),
    ),
    "repair forgotten": (
        Edit(
            State,
            "flush",
            "hard = self.hard if self._hard_dirty else None",
            "hard = self.hard._replace(repair_until=0) if self._hard_dirty else None",
        ),
    ),
    "repaired too early": (
        Edit(
            State,
            "thaw",
            "self.log.last.term > hard.repair_term",
            "self.log.last.term >= hard.repair_term",
        ),
    ),
    "damaged voter looks at what it has": (
        Edit(Elections, "on_request", "max((last.term, last.index), s.hard.lost)", "(last.term, last.index)"),
    ),
    "damage is of the newest term": (
        Edit(
            Replica,
            "__init__",
            "if repair_until:",
            "if hard.repair_until:\n"
            "        s.hard = hard._replace(repair_term=hard.term)\n"
            "    if repair_until:",
        ),
    ),
    "repaired and not told": (Edit(Leading, "_fill", "if p.lacks > last", "if 0 > last"),),
    "mirror does not stand in": (
        Edit(Elections, "may_campaign", "(is_voter or s.may_stand_in)", "is_voter"),
    ),
    "mirror stands in for good": (Edit(Leading, "_step_aside", "not self.only_lends", "not s.is_witness"),),
    "change before a decision": (
        Edit(
            Leading,
            "propose_config",
            "if not self.serves or s.configs.index > s.commit:",
            "if s.config.is_joint:",
        ),
    ),
    "applied while installing": (
        Edit(State, "deliver", "if upto <= self.delivered or self.installing:", "if upto <= self.delivered:"),
    ),
    "left out and silent": (
        Edit(
            Elections,
            "may_campaign",
            "(is_voter or s.may_stand_in)",
            "s.config.is_voter(s.me)",
        ),
    ),
    "news of decisions not asked for": (
        Edit(Leading, "_on_level", "and p.commit_heard >= min(p.commit_sent, p.match)", ""),
    ),
    "no snapshot for an empty log": (
        Edit(Feeding, "on_rejected", "if agreed >= log.start.index:", "if agreed >= 0:"),
    ),
    "pieces sent twice": (Edit(Sending, "on_reply", "and reply.of == p.position", ""),),
    "stale logs elect": (
        Edit(Elections, "may_campaign", "and not s.is_stale", ""),
        Edit(Elections, "on_request", "level = level and not self._is_of_old(m.last_term)", "level = level"),
    ),
    "decisions outlive their generation": (
        Edit(Elections, "become_follower", "if s.is_stale:", "if False:"),
    ),
    "divergence not looked for": (
        Edit(Following, "on_append", "if s.is_stale and self._has_diverged(m):", "if False:"),
    ),
    "snapshot over other decisions": (
        Edit(Receiving, "on_piece", "if s.is_stale and s.delivered and", "if False and"),
    ),
    "said to be kept up to the log's end": (
        Edit(Facts, "kept", "self._state.delivered", "self._state.log.last.index"),
    ),
    "goes on in the old generation": (
        Edit(Elections, "begin_generation", "next_generation(s.term, draw)", "s.term + 1"),
    ),
    "serves before it applied": (
        Edit(
            Leading,
            "_tell_serving",
            "if not self._told_serving and self.serves:",
            "if not self._told_serving and self._state.commit >= self._term_began:",
        ),
    ),
    "mirror not waited for": (
        Edit(Mirrors, "have", "match.get(node, 0) >= index", "match.get(node, 0) >= 0"),
    ),
    "mirror that lags is given up": (
        Edit(Mirrors, "look", "((self.nodes & there) | level) - stuck", "level - stuck"),
    ),
    "mirror waited for without support": (Edit(Mirrors, "look", "if n.peer in supports", "if n.peer"),),
    "mirror waited for although it is full": (
        Edit(Mirrors, "look", "((self.nodes & there) | level) - stuck", "(self.nodes & there) | level"),
    ),
}


# Searched for in schedules with a witness; the others in those without.
WITNESS: dict[str, tuple[Edit, ...]] = {
    "witness lets go too early": (
        Edit(Following, "on_append", "s.note_everywhere(min(m.everywhere, match)", "s.note_everywhere(match"),
    ),
    "witness lets go of what a learner lacks": (
        Edit(
            Feeding,
            "everywhere",
            "if node not in s.config.witnesses",
            "if node in s.config.voters and node not in s.config.witnesses",
        ),
    ),
    "keeper that lacks what was let go of votes": (
        Edit(Leading, "propose_config", "or progress.match < self._let_go_before()", ""),
    ),
    "payloads left out too early": (
        Edit(
            Feeding,
            "_send",
            "for_witness(message, self.everywhere())",
            "for_witness(message, max(s.commit, self.everywhere()))",
        ),
    ),
    "snapshot to a witness too early": (
        Edit(Sending, "on_read", "not may_lack(event.meta, event.to, everywhere, whole=whole)", "False"),
    ),
    "no snapshot to a witness that votes": (
        Edit(
            Sending,
            "on_read",
            "not may_lack(event.meta, event.to, everywhere, whole=whole)",
            "event.meta.last.index > everywhere",
        ),
    ),
    "snapshot to a witness that lost something": (
        Edit(Sending, "on_read", "whole = not p.lacks", "whole = True"),
    ),
    "witness serves": (Edit(Leading, "serves", "and not self.only_lends", "and not self._stands_in"),),
    "witness keeps the lead": (Edit(Leading, "_step_aside", "if level:", "if False:"),),
    "witness does not campaign": (
        Edit(Elections, "may_campaign", "and not s.is_stale", "and not s.is_stale and not s.is_witness"),
    ),
    "witness forgets that it is one": (Edit(State, "_on_config", "self.is_witness |=", "self.is_witness ="),),
    "witness counts as a copy": (Edit(Facts, "copies", "if node not in witnesses", ""),),
    "witness is handed the lead": (
        Edit(Leading, "transfer", "or to in s.config.witnesses", ""),
        Edit(World, "_transfer", "and n not in config.witnesses", ""),
    ),
    "witness sends what it has not": (Edit(Feeding, "_lacking", "return s.everywhere if", "return 0 if"),),
    "everywhere outlives what is cut off": (
        Edit(State, "truncate", "self.everywhere = min(self.everywhere, from_index - 1)", "pass"),
    ),
}
MUTANTS |= WITNESS

# No invariant of the simulator breaks by these, so the search leaves them to their stories.
HARMLESS = {
    "pieces sent twice": "costs traffic and nothing else",
    "serves before it applied": "what a node has is durable before it asks for votes: only a no-op lacks",
}


@contextmanager
def built_in(name: str | None) -> Iterator[None]:
    """The code with this fault in it."""
    before = []
    try:
        for edit in MUTANTS[name] if name else ():
            before.append((edit, edit.owner.__dict__[edit.function]))
            setattr(edit.owner, edit.function, edit.make())
        yield
    finally:
        for edit, function in reversed(before):
            setattr(edit.owner, edit.function, function)


def search(
    name: str, *, first: int = 0, most: int = 1_000, strict: bool = True, hosts: int | None = None
) -> tuple[int, str] | None:
    """How many schedules it took to catch it, and what was seen; None when it got away."""
    with built_in(name):
        for seed in range(first, first + most):
            try:
                faults.run(seed, hosts=hosts, witness=name in WITNESS, strict=strict)
            except (Wrong, MeshqError) as e:
                return seed - first + 1, f"{type(e).__name__}: {e}"
    return None
