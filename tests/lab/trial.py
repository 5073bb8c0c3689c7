"""A trial: peers on hosts of their own, a publisher and a reader on another, a fault, and the judgement.

    with trial(tmp_path, 3) as t:
        t.suffer(t.peers[1].kill, lambda: t.restart(t.peers[1]), hold_s=2.5)
        t.judge()

`judge` lets all that was sent be answered, reads everything back, stops the peers and reads their disks; it
fails unless every count of `tests.history` is nought, and then leaves the files where they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb

from meshq import batch
from meshq.ids import PartitionKey, TopicId
from meshq.store.layout import parse_payload_key
from tests.history import History, Verdict, View, check
from tests.lab.load import RATE, Load, number_of
from tests.lab.mesh import LabMesh, LabPeer, lab_mesh, now_ms
from tests.lab.network import Host, Network

TOPIC = "numbers"
PARTITIONS = 8
SETTLED_S = 60.0
KEPT = Path(os.environ.get("MESHQ_LAB_KEEP", "/tmp/meshq-lab-histories"))


@dataclass(slots=True)
class Round:
    """The longest time without a receipt: `none` in the whole topic and `gap` in some partition while the
    fault was there, `after` in some partition from its end until all was well again."""

    none: float
    gap: float
    after: float


@dataclass
class Trial:
    mesh: LabMesh
    load: Load
    where: Path
    spare: list[Host]  # hosts on which nothing runs yet
    rounds: list[Round] = field(default_factory=list)

    @property
    def peers(self) -> list[LabPeer]:
        return self.mesh.peers

    @property
    def history(self) -> History:
        return self.load.look()

    # ------------------------------------------------------------------------------------------- faults
    def suffer(self, fault: Callable[[], Any], heal: Callable[[], Any], *, hold_s: float) -> Round:
        """The fault for so long under load, then its end, until the mesh is whole again."""
        self.flows(time.time())
        at = time.time()
        fault()
        self._wait_until(at + hold_s)
        healed = time.time()
        heal()
        self.flows(healed)
        self.settled()
        whole = time.time()
        self.flows(whole)
        h = self.history
        found = Round(h.gap(at, healed), h.gap_of_any(at, healed), h.gap_of_any(healed, whole))
        self.rounds.append(found)
        self.note(f"at {at:.3f}: {found}")
        return found

    def note(self, text: str) -> None:
        """Into the diary that is kept with the histories."""
        with (self.where / "diary").open("a") as diary:
            diary.write(f"{time.time():.3f} {text}\n")

    def _wait_until(self, moment: float) -> None:
        self.mesh.wait("time has passed", lambda: time.time() >= moment, moment - time.time() + 5)

    def flows(self, since: float, deadline_s: float = 40.0) -> None:
        """Until every partition had a receipt since then."""

        def every() -> bool:
            times = self.history.times
            return len(times) == PARTITIONS and all(t[-1] > since for t in times.values())

        try:
            self.mesh.wait("every partition is published to", every, deadline_s)
        except AssertionError:
            last = {p: round(t[-1] - since, 2) for p, t in sorted(self.history.times.items())}
            raise AssertionError(
                f"not every partition is published to after {deadline_s} s: {last}"
            ) from None

    def settled(self, deadline_s: float = SETTLED_S) -> None:
        """Until every peer reaches every other one and every slot is led and has all its copies."""
        found: list[Any] = []

        def whole() -> bool:
            found[:] = [self.status(p) for p in self.peers]
            slots = [s["slots"] for s in found if s]
            return len(slots) == len(self.peers) and all(
                s["peers_reachable"] == s["peers"] == len(self.peers)
                and not any(s["slots"][k] for k in ("leaderless", "under_replicated", "moving"))
                for s in found
            )

        try:
            self.mesh.wait("the mesh is whole", whole, deadline_s)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{json.dumps(found)}") from None

    def status(self, peer: LabPeer) -> Any:
        done = peer.host.run(
            sys.executable, "-m", "meshq", "status", "--json", "--data", peer.data, check=False
        )
        return json.loads(done.stdout) if done.returncode == 0 else None

    def restart(self, *peers: LabPeer, arguments: Sequence[str] = ()) -> None:
        for peer in peers:
            peer.start(*arguments)
        for peer in peers:
            peer.ready()

    def wipe(self, peer: LabPeer) -> None:
        """A new disk: what was stored is gone, its identity is not."""
        peer.kill()
        shutil.rmtree(peer.data / "store")

    def join(self) -> LabPeer:
        """One more peer, on a spare host, up and known."""
        host = self.spare.pop()
        name = f"peer{len(self.peers) + 1}"
        peer = LabPeer(name, host, self.where / name)
        token = self.peers[0].meshq("invite").decode().strip()
        host.run(sys.executable, "-m", "meshq", "join", token, "--data", peer.data, "--name", name)
        peer.start()
        peer.ready()
        peer.follow()
        self.peers.append(peer)
        return peer

    # -------------------------------------------------------------------------------------- the judgement
    def judge(self, copies: int = 2) -> Verdict:
        self.load.end(self.mesh.wait)
        self.settled()
        history = self.history
        count = self.stored()
        readers = {"late reader": self.load.read_all("late-reader", self.mesh.wait, count)}
        readers["reader"] = self.load.followed(self.mesh.wait, count)
        for peer in self.peers:
            peer.end()
        disks = {peer.name: disk_view(peer.data / "store") for peer in self.peers}
        verdict = check(history, readers, disks=disks, copies=copies)
        if not verdict.is_clean():
            raise AssertionError("\n".join([str(verdict), *verdict.examples]))
        return verdict

    def stored(self) -> int:
        """How many records the topic has."""
        shown = json.loads(self.peers[0].meshq("topic", "show", TOPIC, "--json"))
        return sum(row["end"] for row in shown["partition"])

    def keep(self, name: str) -> Path:
        """Everything there is of it, for whoever looks for the cause."""
        kept = KEPT / f"{name}-{now_ms()}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.where, kept, symlinks=True, ignore_dangling_symlinks=True)
        return kept


@contextlib.contextmanager
def trial(
    where: Path,
    count: int,
    *,
    spare: int = 0,
    rate: int = RATE,
    name: str = "trial",
    prepare: Callable[[LabPeer], None] = lambda _: None,
) -> Iterator[Trial]:
    """So many peers, whole and published to. What fails in it leaves its files in KEPT."""
    with (
        Network(count + 1 + spare) as net,
        lab_mesh(where, count, network=net, prepare=prepare) as mesh,
    ):
        credentials = where / "app.meshq"
        first = mesh.peers[0]
        can = ("--publish", "#", "--subscribe", "#")
        first.meshq("client", "add", "app", *can, "--out", str(credentials))
        load = Load(net.hosts[count], credentials, where)
        t = Trial(mesh, load, where, net.hosts[count + 1 :])
        try:
            t.settled()
            first.meshq("topic", "create", TOPIC, "--partitions", str(PARTITIONS))
            load.start(rate=rate)
            t.flows(time.time())
            yield t
        except BaseException as e:
            e.add_note(f"kept: {t.keep(name)}")
            raise


def disk_view(store: Path) -> View:
    """The records on a stopped peer's disk, whatever its log says of them."""
    view: dict[int, dict[int, int]] = {}
    env = lmdb.open(str(store), readonly=True, lock=False, max_dbs=8)
    try:
        payloads = env.open_db(b"payloads", create=False)
        with env.begin(buffers=True) as txn, txn.cursor(payloads) as cursor:
            for key, data in cursor:
                topic, number = bytes(key[:16]), int.from_bytes(key[16:20], "big")
                found = parse_payload_key(PartitionKey(TopicId(topic), number), key)
                assert found is not None
                log = view.setdefault(number, {})
                for i, record in enumerate(batch.read_records(bytes(data))):
                    offset = found.base_offset + i
                    assert offset not in log, f"{store}: two batches hold {number}@{offset}"
                    log[offset] = number_of(bytes(record.value))
    finally:
        env.close()
    return view
