"""Stories: one slot on a few hosts, where a file says what is delivered, what is synced and who crashes.

A file is blocks: lines that begin with `>` are commands, what follows up to the next empty line is what must
be seen. `#` begins a remark. `pytest --rewrite` writes down what is seen now.

    > members 1 2 3 learning 4     found the slot; the first command (or: members 1 2 3 witness 3)
    > campaign 1                   its timer goes off (a majority has to support it)
    > elect 1 2 3                  it campaigns, 2 and 3 support and hear it, until it leads; others wait
    > lose 2 1                     2 ceases to support 1, which hears of it
    > support 2 1
    > propose 1 3                  three records at 1
    > change 1 1 2 learning 3      new members, proposed at 1
    > transfer 1 2
    > recover 1 without 2 3        it goes on alone: somebody says that the others are gone for good
    > look 1                       receipts that wait at 1 are looked at
    > hear 2 1                     2 is told that 1 leads the slot
    > restarted 2 1                2 is told that 1 is another process by now, and leads nothing
    > read 1
    > sync 1 2                     their disks finish what waits
    > deliver [1 2]                what is on the way now [from 1 to 2] arrives
    > repeat [1 2]                 the same, and it stays on the way
    > drop [1 2]                   it is lost
    > run [1 2]                    sync and deliver [among these] until nothing is left
    > crash 1 [2]                  of what was not synced the first [2] writes are left
    > start 1
    > link 1 2                     a new connection
    > wait 0.5                     timers go off
    > letgo 3                      the witness forgets what it need not keep
    > damage 1 7, wipe 1, keep 1 (a copy of its directory), restore 1 (put back), trim 1 7, log 1 2, status
    > quiet, loud                  show nothing, show all (lasts)

Every invariant of the simulator is checked; one that does not hold ends the story with a line WRONG.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable

from meshq.entries import EntryKind
from meshq.errors import MeshqError
from meshq.ids import PeerId
from meshq.replication.generations import show_term
from meshq.replication.mirrors import PATIENCE_S
from meshq.replication.placement import LEVEL_COUNT
from meshq.replication.quorum import Config, Node, config_of
from meshq.replication.settings import Settings
from meshq.replication.support import Beat
from meshq.replication.words import (
    Event,
    GenerationSeen,
    Item,
    LeaderGone,
    Message,
    PeerLinked,
    Received,
    RequestVote,
    Role,
    SupportGiven,
    SupportGot,
    Ticked,
    VoteReply,
)
from tests.simulation.disk import NOBODY, Image, Trim, Wrong
from tests.simulation.host import Copy, Host, configs_at, number_of, peer_of
from tests.simulation.oracle import Oracle, record_body, show
from tests.simulation.telling import show_config, show_effect, show_event

SETTINGS = Settings(append_bytes=1, memory_bytes=0)  # one entry a message; what is decided is read from disk
Way = tuple[int, Node, Node, Message]  # (from host, from, to, what)


class Story:
    """The environment of its hosts: nothing happens by itself."""

    keep_entries = 1_000
    piece_bytes = 16
    mirrors = (PATIENCE_S, LEVEL_COUNT)

    def __init__(self) -> None:
        self.now = 0.0
        self.oracle = Oracle(1, self._has_it)
        self.hosts: dict[int, Host] = {}
        self.on_the_way: list[Way] = []
        self.lines: list[str] = []
        self._answers: list[tuple[Host, Copy, Event]] = []
        self._supports: set[tuple[int, int]] = set()
        self._kept: dict[int, tuple[int, dict[int, Image]]] = {}
        self._numbers = 0
        self._quiet = False

    def run(self, text: str) -> str:
        """The file with what is seen now in place of what was."""
        out: list[str] = []
        for block in text.strip("\n").split("\n\n"):
            lines = block.split("\n")
            out += [line for line in lines if line.startswith("#")]
            for line in lines:
                if line.startswith("> "):
                    out.append(line)
                    out += self._do(line[2:])
            out.append("")
            if out[-2].startswith("WRONG"):
                break
        return "\n".join(out)

    def _do(self, line: str) -> list[str]:
        self.lines = []
        verb, *words = line.split("  #")[0].split()
        try:
            getattr(self, f"do_{verb}")(*words)
            self._settle()
        except Wrong as e:
            return [*self.lines, f"WRONG: {e}"]
        except MeshqError as e:
            self.lines.append(f"{type(e).__name__}: {e}")
        return self.lines

    def _settle(self) -> None:
        while self._answers:
            host, copy, event = self._answers.pop(0)
            if copy.live:
                host.handle(copy, event)

    def _copy(self, number: object) -> tuple[Host, Copy]:
        host = self.hosts[int(str(number))]
        return host, host.copies[0]

    # ------------------------------------------------------------------------------------ the environment
    def tell(self, host: Host, slot: int, what: object) -> None:
        if slot >= 0 and not self._quiet:
            self.lines.append(f"n{host.number}: {show_effect(what)}")

    def send(self, host: Host, copy: Copy, to: Node, message: Message) -> None:
        self.on_the_way.append((host.number, copy.node, to, message))

    def send_beat(self, host: Host, peer: PeerId, beat: Beat) -> None: ...
    def want_sync(self, host: Host) -> None: ...
    def set_timer(self, host: Host, copy: Copy) -> None: ...
    def on_committed(self, host: Host, copy: Copy, items: tuple[Item, ...], news: int) -> None: ...

    def answer(self, host: Host, copy: Copy, event: Event) -> None:
        self._answers.append((host, copy, event))

    def deciding_configs(self, copy: Copy, index: int) -> list[Config]:
        leader = copy.replica.leader
        host = self.hosts[number_of(leader.peer)] if leader else None
        if host is None or not host.up or host.copies[0].replica.role is not Role.LEADER:
            return []
        there = host.copies[0].replica
        return configs_at(there, index) if there.term == copy.replica.term else []

    def _has_it(self, slot: int, node: Node, index: int, chain: bytes) -> bool:
        host = self.hosts[number_of(node.peer)]
        image = host.disk.images[slot]
        bad = host.node != node or host.rolled_back or image.damaged or image.hard.repair_until
        return bool(bad) or image.has(index, chain)

    # ------------------------------------------------------------------------------------------- commands
    def do_quiet(self) -> None:
        self._quiet = True

    def do_loud(self) -> None:
        self._quiet = False

    def do_members(self, *words: str) -> None:
        if "witness" in words:
            at = words.index("witness")
            self.oracle.witnesses = {peer_of(int(w)) for w in words[at + 1 :]}
            words = words[:at]
        voters, learners = _members(words)
        config = self._config(
            [Node(peer_of(n), b"\0") for n in voters], [Node(peer_of(n), b"\0") for n in learners]
        )
        for n in range(1, max(voters + learners) + 2):  # one more, who may become a member
            host = Host(self, n, random.Random(n), SETTINGS)
            mine = config if n in voters + learners else NOBODY
            host.disk.images[0] = Image((0, mine))
            self.hosts[n] = host
        self._supports = {(a, b) for a in self.hosts for b in self.hosts if a != b}
        for host in self.hosts.values():
            self._start(host)

    def _config(self, voters: Collection[Node], learners: Collection[Node]) -> Config:
        witnesses = [n for n in (*voters, *learners) if n.peer in self.oracle.witnesses]
        return config_of(voters, learners, witnesses)

    def _start(self, host: Host) -> None:
        host.start()
        for a, b in sorted(self._supports):
            if a == host.number:
                host.handle(host.copies[0], SupportGiven(peer_of(b), True))
            elif b == host.number:
                host.handle(host.copies[0], SupportGot(peer_of(a), True))

    def do_start(self, number: str) -> None:
        self._start(self.hosts[int(number)])

    def do_crash(self, number: str, keep: str = "0") -> None:
        host = self.hosts[int(number)]
        self.on_the_way = [w for w in self.on_the_way if number_of(w[2].peer) != host.number]
        host.crash(int(keep))

    def do_campaign(self, number: str) -> None:
        host, copy = self._copy(number)
        due = copy.replica.deadline()
        if due == float("inf"):
            raise ValueError(f"n{number} has no reason to campaign")
        self.now = max(self.now, due)
        host.handle(copy, Ticked())

    def do_elect(self, number: str, *others: str) -> None:
        among = {int(number), *map(int, others)}
        host, copy = self._copy(number)
        for other in sorted(among - {int(number)}):
            host.handle(copy, SupportGot(peer_of(other), True))  # nobody else campaigns
        for _ in range(3):
            self.do_campaign(number)
            while True:
                for n in sorted(among):
                    self._sync(self.hosts[n])
                votes = [
                    w
                    for w in self.on_the_way
                    if isinstance(w[3], RequestVote | VoteReply) and self._is_among(w, among)
                ]
                if not votes:
                    break
                self.on_the_way = [w for w in self.on_the_way if w not in votes]
                self._arrive(votes)
                if copy.replica.role is Role.LEADER:
                    return
        raise Wrong(f"n{number} is not elected")

    @staticmethod
    def _is_among(way: Way, among: set[int]) -> bool:
        return way[0] in among and number_of(way[2].peer) in among

    def do_wait(self, seconds: str) -> None:
        self.now += float(seconds)
        for host in self.hosts.values():
            if host.up and host.copies[0].replica.deadline() <= self.now:
                host.handle(host.copies[0], Ticked())

    def do_look(self, number: str) -> None:
        host, copy = self._copy(number)
        host.give_receipts(copy)
        waiting = f"receipts from {copy.receipts[0]} on wait" if copy.receipts else "no receipt waits"
        self.lines.append(f"n{number}: {waiting}")

    def do_lose(self, number: str, other: str) -> None:
        self._support(int(number), int(other), False)

    def do_support(self, number: str, other: str) -> None:
        self._support(int(number), int(other), True)

    def _support(self, number: int, other: int, given: bool) -> None:
        (self._supports.add if given else self._supports.discard)((number, other))
        for host, event in (
            (self.hosts[number], SupportGiven(peer_of(other), given)),
            (self.hosts[other], SupportGot(peer_of(number), given)),
        ):
            if host.up:
                host.handle(host.copies[0], event)

    def do_propose(self, number: str, count: str = "1") -> None:
        host, copy = self._copy(number)
        for _ in range(int(count)):
            self._numbers += 1
            payload = b"record %d" % self._numbers
            body = record_body(self._numbers, copy.next_offset, payload)
            copy.replica.propose(EntryKind.PUBLISH, body, payload, wall_ms=0)
            copy.next_offset += 1
        host.flush(copy)

    def do_change(self, number: str, *words: str) -> None:
        host, copy = self._copy(number)
        voters, learners = ([self.hosts[n].node for n in ns] for ns in _members(words))
        copy.replica.propose_config(self._config(voters, learners), wall_ms=0)
        host.flush(copy)

    def do_recover(self, number: str, *words: str) -> None:
        host, copy = self._copy(number)
        _, lost = _members(["learning" if w == "without" else w for w in words])
        kept = copy.replica.kept()
        self.lines.append(f"n{number}: keeps all up to {kept.index}/{show_term(kept.term)}")
        host.recover(copy, {h.node for n, h in self.hosts.items() if n not in lost}, draw=0)

    def do_hear(self, number: str, other: str) -> None:
        """What a leader tells everybody, members or not."""
        host, copy = self._copy(number)
        host.handle(copy, GenerationSeen(self._copy(other)[1].replica.term))

    def do_restarted(self, number: str, other: str) -> None:
        host, copy = self._copy(number)
        host.handle(copy, LeaderGone(peer_of(int(other)), copy.replica.term))

    def do_transfer(self, number: str, to: str) -> None:
        host, copy = self._copy(number)
        copy.replica.transfer(self.hosts[int(to)].node, now=self.now)
        host.flush(copy)

    def do_read(self, number: str) -> None:
        host, copy = self._copy(number)
        self._numbers += 1
        self.oracle.on_read(0, self._numbers, copy.replica.term)
        copy.replica.read(self._numbers)
        host.flush(copy)

    def do_sync(self, *numbers: str) -> None:
        for number in numbers:
            self._sync(self.hosts[int(number)])

    def _sync(self, host: Host) -> None:
        host.on_synced(host.disk.end_sync(self.now))
        self._settle()

    def _chosen(self, words: tuple[str, ...]) -> Callable[[Way], bool]:
        if not words:
            return lambda way: True
        a, b = map(int, words)
        return lambda way: way[0] == a and number_of(way[2].peer) == b

    def do_deliver(self, *words: str) -> None:
        chosen = self._chosen(words)
        arriving = [w for w in self.on_the_way if chosen(w)]
        self.on_the_way = [w for w in self.on_the_way if not chosen(w)]
        self._arrive(arriving)

    def do_repeat(self, *words: str) -> None:
        self._arrive([w for w in self.on_the_way if self._chosen(words)(w)])

    def do_drop(self, *words: str) -> None:
        chosen = self._chosen(words)
        self.on_the_way = [w for w in self.on_the_way if not chosen(w)]

    def _arrive(self, ways: Iterable[Way]) -> None:
        for _, frm, to, message in ways:
            host = self.hosts[number_of(to.peer)]
            if host.up and host.node == to:
                event = Received(frm, message)
                if not self._quiet:
                    self.lines.append(f"{show(to)} < {show_event(event)}")
                host.handle(host.copies[0], event)
                self._settle()

    def do_run(self, *words: str) -> None:
        among = {int(w) for w in words} or set(self.hosts)
        for _ in range(200):
            busy = [h for n, h in self.hosts.items() if n in among and h.up and h.disk.queue]
            for host in busy:
                self._sync(host)
            arriving = [w for w in self.on_the_way if self._is_among(w, among)]
            self.on_the_way = [w for w in self.on_the_way if w not in arriving]
            self._arrive(arriving)
            if not busy and not arriving:
                return
        raise Wrong("they are busy and come to no end")

    def do_link(self, a: str, b: str) -> None:
        for here, there in ((a, b), (b, a)):
            host, copy = self._copy(here)
            host.handle(copy, PeerLinked(self.hosts[int(there)].node))

    def do_damage(self, number: str, index: str) -> None:
        self.hosts[int(number)].disk.images[0].damaged.add(int(index))

    def do_wipe(self, number: str) -> None:
        self.hosts[int(number)].wipe()

    def do_keep(self, number: str) -> None:
        host = self.hosts[int(number)]
        self._kept[host.number] = (host.epoch, host.disk.copy_images())

    def do_restore(self, number: str) -> None:
        host = self.hosts[int(number)]
        host.epoch, host.disk.images = self._kept[host.number]
        host.rolled_back = True

    def do_letgo(self, number: str) -> None:
        """A witness forgets what it need not keep."""
        host, copy = self._copy(number)
        image = host.disk.images[0]
        host.let_go(copy, min(image.applied.position.index, copy.replica.everywhere))
        self._sync(host)

    def do_trim(self, number: str, index: str) -> None:
        host, copy = self._copy(number)
        host.write(copy.slot, Trim(host.disk.images[0].position(int(index))))
        self._sync(host)

    def do_log(self, *numbers: str) -> None:
        """What is on disk: the term of each entry."""
        for number in numbers:
            image = self.hosts[int(number)].disk.images[0]
            terms = " ".join(show_term(i.entry.term) for i in image.items)
            begin = f"from {image.start.index + 1}: " if image.start.index else ""
            decided = image.applied.position.index
            self.lines.append(f"n{number}: {begin}{terms or '-'}   applied {decided}")

    def do_status(self) -> None:
        for number, host in self.hosts.items():
            if host.up and host.copies[0].replica.config.voters:
                r = host.copies[0].replica
                text = f"{r.role.name.lower()} in term {show_term(r.term)}"
                text += f", log ends {r.last.index}/{show_term(r.last.term)}"
                text += f", decided {r.commit_index}, members {show_config(r.config)}"
                self.lines.append(f"n{number}: {text}" + ", frozen" * r.frozen)


def _members(words: Iterable[str]) -> tuple[list[int], list[int]]:
    text = " ".join(words).split("learning")
    return [int(w) for w in text[0].split()], [int(w) for w in " ".join(text[1:]).split()]
