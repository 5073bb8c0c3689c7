"""Members of an ordered group, each a program on a lab's host, and what their words say about the group.

    python -m tests.lab.members --credentials app.meshq --topic numbers --group g --session-timeout 5

A member prints, with the wall time in front: `W partition lease offset` when it takes a record, `A partition
lease offset` when the acknowledgement of that record has returned, `L partition lease offset` when it came
too late, `P partition...` when other partitions are its own than before. SIGTERM lets it leave. `Crew` is the
other end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import meshq
from tests.lab.network import Host
from tests.peers import environment

LOOK_S = 0.01


def _say(*words: object) -> None:
    print(f"{time.time():.4f}", *words, flush=True)


async def _work(logs: meshq.OrderedSubscription) -> None:
    confirming: set[asyncio.Task[None]] = set()
    with contextlib.suppress(StopAsyncIteration):
        while True:
            records = [r for r in await logs.take(100) if isinstance(r, meshq.OrderedRecord)]
            for r in records:
                assert r.tenure is not None
                _say("W", r.partition, r.tenure.lease, r.offset)
            # It goes on meanwhile: what waits for a commit is one acknowledgement, not the work.
            task = asyncio.create_task(_confirm(records[-1]))
            confirming.add(task)
            task.add_done_callback(confirming.discard)
    await asyncio.gather(*confirming)


async def _confirm(last: meshq.OrderedRecord) -> None:
    assert last.tenure is not None
    try:
        await last.ack()
    except meshq.LeaseLost:
        _say("L", last.partition, last.tenure.lease, last.offset)
    except meshq.MeshqError:
        pass  # whether it counted is not known
    else:
        _say("A", last.partition, last.tenure.lease, last.offset)


async def _watch(logs: meshq.OrderedSubscription) -> None:
    had: list[tuple[str, int]] = []
    while True:
        has = logs.partitions()
        if has != had:
            _say("P", *(partition for _, partition in has))
            had = has
        await asyncio.sleep(LOOK_S)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--credentials", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--group", default="g")
    parser.add_argument("--session-timeout", type=float, required=True)
    options = parser.parse_args()
    async with meshq.connect(credentials=options.credentials) as mesh:
        logs = mesh.subscribe(
            options.topic, group=options.group, mode="ordered", session_timeout=options.session_timeout
        )

        async def leave() -> None:
            _say("leaving")
            await logs.close()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: asyncio.ensure_future(leave()))
        watching = asyncio.create_task(_watch(logs))
        await _work(logs)
        watching.cancel()


# ---------------------------------------------------------------------------------------- the other end
@dataclass(slots=True)
class Word:
    at: float
    member: str
    what: str
    partition: int
    lease: int
    offset: int


@dataclass
class Member:
    name: str
    host: Host
    process: subprocess.Popen[bytes]
    file: Path
    words: list[Word] = field(default_factory=list)
    has: tuple[int, ...] = ()
    told: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)  # what it has, from when on
    leaving_at: float = 0.0
    _read: int = 0

    def look(self) -> list[Word]:
        """What it has said, as far as it has come."""
        with self.file.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for line in whole.decode().splitlines():
            at, what, *rest = line.split()
            if what == "P":
                self.has = tuple(map(int, rest))
                self.told.append((float(at), self.has))
            elif what == "leaving":
                self.leaving_at = float(at)
            else:
                partition, lease, offset = map(int, rest)
                self.words.append(Word(float(at), self.name, what, partition, lease, offset))
        return self.words


@dataclass
class Crew:
    """The members of one group. `where`: the files of what they say."""

    credentials: Path
    where: Path
    topic: str
    session_timeout: float
    members: list[Member] = field(default_factory=list)  # also those that are gone

    def start(self, host: Host) -> Member:
        name = f"member{len(self.members) + 1}"
        file = self.where / name
        argv = (
            sys.executable, "-m", "tests.lab.members", "--credentials", self.credentials,
            "--topic", self.topic, "--session-timeout", str(self.session_timeout),
        )  # fmt: skip
        with file.open("wb") as out, file.with_suffix(".err").open("wb") as err:
            process = host.start(*argv, stdout=out, stderr=err, env=environment())
        self.members.append(Member(name, host, process, file))
        return self.members[-1]

    def running(self) -> list[Member]:
        return [m for m in self.members if m.process.poll() is None]

    def is_shared_out(self, partitions: int, among: Iterable[Member] | None = None) -> bool:
        """Each partition is with one of these (those that run), and their shares differ by one at most."""
        some = list(self.running() if among is None else among)
        for member in some:
            member.look()
        held = sorted(p for m in some for p in m.has)
        shares = [len(m.has) for m in some]
        return held == list(range(partitions)) and max(shares) - min(shares) <= 1

    def words(self) -> list[Word]:
        """Of all of them, in the order of time."""
        return sorted((w for m in self.members for w in m.look()), key=lambda w: w.at)

    def worked_since(self, at: float, by: Iterable[Member] | None = None) -> dict[int, float]:
        """By partition: when these (all) first worked on it after that moment."""
        names = {m.name for m in (self.members if by is None else by)}
        found: dict[int, float] = {}
        for w in self.words():
            if w.what == "W" and w.at > at and w.member in names:
                found.setdefault(w.partition, w.at)
        return found

    def held_since(self, at: float, by: Iterable[Member]) -> dict[int, float]:
        """By partition: when one of these was first told after that moment that it has it."""
        found: dict[int, float] = {}
        for member in by:
            member.look()
            for told_at, partitions in member.told:
                for partition in partitions if told_at > at else ():
                    found[partition] = min(told_at, found.get(partition, told_at))
        return found


def faults(words: list[Word], ends: dict[int, int]) -> list[str]:
    """What these say that must not be. `ends`: how many records each partition has."""
    wrong: list[str] = []
    by_lease: dict[int, dict[int, list[Word]]] = defaultdict(lambda: defaultdict(list))
    for w in words:
        by_lease[w.partition][w.lease].append(w)
    for partition, end in ends.items():
        seen: set[int] = set()
        done = 0  # acknowledged under the leases before
        for lease, said in sorted(by_lease[partition].items()):
            where = f"{partition}, lease {lease}"
            worked = [w.offset for w in said if w.what == "W"]
            if len({w.member for w in said}) > 1:
                wrong.append(f"{where}: two members had it")
            if worked != list(range(worked[0], worked[0] + len(worked))):
                wrong.append(f"{where}: not in order")
            if worked[0] < done:
                wrong.append(f"{where}: began at {worked[0]}, and {done} was done")
            if worked[0] > max(seen, default=-1) + 1:
                wrong.append(f"{where}: began at {worked[0]}, and nobody had what is before")
            seen.update(worked)
            done = max([done, *(w.offset + 1 for w in said if w.what == "A")])
        if missing := set(range(end)) - seen:
            wrong.append(f"{partition}: nobody had {len(missing)} records, the first is {min(missing)}")
    return wrong


if __name__ == "__main__":
    asyncio.run(main())
