"""The examples do what they say, as programs, against a real peer."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshq import sync
from tests.peers import Peer, Running, free_base_port, meshq, one_peer, running, wait_until

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with one_peer(tmp_path_factory.mktemp("peer")) as started:
        yield started


@pytest.fixture(scope="module")
def credentials(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("client") / "app.meshq"
    peer.meshq("client", "add", "app", "--publish", "orders.#", "--subscribe", "orders.#", "--out", file).ok()
    return file


def says(process: Running, text: bytes) -> None:
    wait_until(lambda: text in process.out or process.process.poll() is not None, what=f"it says {text!r}")
    assert text in process.out, process.err


def test_collect_log_follows_a_log_through_its_rotation(peer: Peer, tmp_path: Path) -> None:
    log, old = tmp_path / "app.log", tmp_path / "app.log.1"
    log.write_bytes(b"one\ntwo\n")
    arguments = [EXAMPLES / "collect_log.py", log, "logs.app", "--data", peer.data, "--from-start"]
    with running(tmp_path, *arguments, program=()) as follower:
        says(follower, b"following")
        read = ("sub", "logs.app", "--from", "earliest", "--count")
        assert peer.meshq(*read, 2).ok() == b"one\ntwo\n"
        log.rename(old)
        with old.open("ab") as f:
            f.write(b"late\n")
        log.write_bytes(b"new\n")
        assert peer.meshq(*read, 4).ok() == b"one\ntwo\nlate\nnew\n"
        log.write_bytes(b"")  # cut short in place, as copytruncate does
        with log.open("ab") as f:
            wait_until(lambda: log.stat().st_size == 0)
            f.write(b"x\n")
        assert peer.meshq(*read, 5).ok().endswith(b"new\nx\n")


def test_collect_log_reads_what_was_written_between_its_last_look_and_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("collect_log", EXAMPLES / "collect_log.py")
    assert spec is not None and spec.loader is not None
    collect_log = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(collect_log)
    log = tmp_path / "app.log"
    log.write_bytes(b"one\n")
    rotated = collect_log.Follower._rotated

    def rotate_first(self: Any, fd: int) -> bool:
        if not (tmp_path / "app.log.1").exists():
            with log.open("ab") as f:
                f.write(b"late\nno newline")
            log.rename(tmp_path / "app.log.1")
            log.write_bytes(b"new\n")
        return bool(rotated(self, fd))

    monkeypatch.setattr(collect_log.Follower, "_rotated", rotate_first)
    lines = list(collect_log.Follower(log, from_start=True).new_lines())
    assert lines == [b"one", b"late", b"no newline", b"new"]


def test_sensor_peer_publishes_this_hosts_load_through_a_peer_of_its_own(tmp_path: Path) -> None:
    meshq("init", "--data", tmp_path / "sensor").ok()
    port = free_base_port()
    arguments = [EXAMPLES / "sensor_peer.py", "--data", tmp_path / "sensor", "--port", port, "--every", "0.1"]
    with running(tmp_path, *arguments, program=()) as sensor:
        says(sensor, b".load/0@0")
        seen = meshq(
            "sub", "sensors.*.load", "--from", "earliest", "--count", 2, "--data", tmp_path / "sensor"
        )
        values = [json.loads(line) for line in seen.ok().splitlines()]
        assert all({"load1", "load5", "load15", "tasks", "at"} <= v.keys() for v in values)
        sensor.signal(2)
        assert sensor.wait() == 0


def test_orders_are_charged_once_and_what_makes_no_sense_is_a_dead_letter(peer: Peer, tmp_path: Path) -> None:
    program, ledger = EXAMPLES / "orders.py", tmp_path / "ledger.db"
    with running(tmp_path, program, "place", 6, "--data", peer.data, program=()) as placing:
        assert placing.wait() == 0, placing.err
    about = ["--ledger", ledger, "--failing", 2, "--data", peer.data]
    with running(tmp_path, program, "work", *about, program=()) as one, running(
        tmp_path, program, "work", *about, program=()
    ) as two:  # fmt: skip
        wait_until(lambda: (one.out + two.out).count(b": charged") >= 5, what="all are charged")
        wait_until(lambda: b"nobody can be charged -1" in one.out + two.out, what="it is rejected")
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        assert db.execute("SELECT count(*), count(DISTINCT customer) FROM charges").fetchone() == (5, 5)

    def read() -> bytes:
        with running(tmp_path, program, "letters", "--data", peer.data, program=()) as reading:
            assert reading.wait() == 0, reading.err
            return bytes(reading.out)

    wait_until(lambda: b"1 dead letters" in read(), what="the letter is there")
    assert b"shop.orders/0@5 nobody can be charged -1 cents" in read()
    assert b"payment away, attempt 2" in one.out + two.out


def test_worker_pool_does_calls_again_until_they_can_be_done(peer: Peer, tmp_path: Path) -> None:
    program, late = EXAMPLES / "worker_pool.py", tmp_path / "late"
    here = tmp_path / "here"
    here.write_bytes(b"one two three")
    with running(tmp_path, program, "work", "--data", peer.data, program=()) as worker:
        says(worker, b"working")
        arguments = ["call", "sha256", here, late, "--wait", "--data", peer.data]
        with running(tmp_path, program, *arguments, program=()) as caller:
            says(caller, hashlib.sha256(b"one two three").hexdigest().encode())
            says(worker, b"attempt 1: ")
            late.write_bytes(b"x")
            says(caller, hashlib.sha256(b"x").hexdigest().encode())
            assert caller.wait() == 0, caller.err
        with running(tmp_path, program, "call", "sha256", "no/path", "--data", peer.data, program=()):
            says(worker, b"rejected: no/path is not an absolute path")
    letter = peer.meshq("sub", "_dead.workers.pool.calls", "--from", "earliest", "--count", 1, "--json")
    assert json.loads(letter.ok())["headers"]["meshq-reason"].startswith("Reject: no/path is not")


def test_plain_req_publishes_with_a_receipt(credentials: Path, tmp_path: Path) -> None:
    arguments = [EXAMPLES / "plain_req.py", credentials, "orders.req", "first", "second"]
    with running(tmp_path, *arguments, "--key", "k", "--header", "a=b", program=()) as req:
        assert req.wait() == 0, req.err
        assert req.out == b"orders.req/0@0 copies=1\norders.req/0@1 copies=1\n"
    again = meshq("sub", "orders.req", "--from", 1, "--count", 1, "--json", "--credentials", credentials).ok()
    record = json.loads(again)
    assert (record["value"], record["key"], record["headers"]) == ("second", "k", {"a": "b"})


def test_plain_req_hears_why_it_is_refused(credentials: Path, tmp_path: Path) -> None:
    with running(tmp_path, EXAMPLES / "plain_req.py", credentials, "secret", "x", program=()) as req:
        assert req.wait() == 1
        assert "403 Forbidden" in req.err


@pytest.mark.parametrize("framed", [False, True])
def test_plain_sub_reads_both_forms_of_the_feed(credentials: Path, tmp_path: Path, framed: bool) -> None:
    topic = f"orders.feed{framed:d}"
    extra = ["--framed"] if framed else []
    arguments = [EXAMPLES / "plain_sub.py", credentials, topic, *extra, "--count", 1]
    with running(tmp_path, *arguments, program=()) as sub:
        says(sub, b"subscribed")

        # The feed is from now on, and a subscription takes a moment: publish until it is heard.
        def heard() -> bool:
            meshq("pub", topic, "--key", "k", "--credentials", credentials, stdin=b"value").ok()
            return sub.process.poll() is not None

        wait_until(heard, 20.0, "a record on the feed")
        assert sub.wait() == 0, sub.err
        line = sub.out.splitlines()[1].decode()
        if framed:
            assert line.startswith(f"{topic}/0@") and line.endswith("b'k' {} b'value'")
        else:
            assert line == f"{topic} b'value'"


def test_log_pipeline_is_taken_over_by_the_others_in_order(peer: Peer, tmp_path: Path) -> None:
    arguments = [EXAMPLES / "log_pipeline.py", "logs.raw", "logs.parsed", "--data", peer.data]
    hosts = [b"host%d" % n for n in range(8)]
    with sync.connect(data=peer.data) as mesh:
        mesh.ask("topic.create", {"topic": "logs.raw", "partitions": 4})

        def publish(first: int, end: int) -> None:
            with mesh.producer("logs.raw") as out:
                for n, host in itertools.product(range(first, end), hosts):
                    out.send(b"%d ERROR in %s" % (n, host), key=host)

        with running(tmp_path, *arguments, "--session-timeout", 0.5, program=()) as one:
            with running(tmp_path, *arguments, "--session-timeout", 0.5, program=()) as two:
                says(one, b"parsing")
                says(two, b"parsing")
                numbers = itertools.count()

                def both_have_some() -> bool:
                    publish(n := next(numbers), n + 1)
                    return b"logs.raw/" in one.out and b"logs.raw/" in two.out

                wait_until(both_have_some, 15.0)
                two.signal(9)
                two.wait()
            end = next(numbers) + 10
            publish(end - 10, end)
            seen: dict[bytes, list[int]] = {host: [] for host in hosts}
            with mesh.subscribe("logs.parsed", start="earliest") as parsed:
                while not all(end - 1 in of_host for of_host in seen.values()):
                    line = json.loads(next(parsed).value)
                    assert line["level"] == "ERROR"
                    seen[line["host"].encode()].append(int(line["text"].split()[0]))
            for of_host in seen.values():
                first_time = list(dict.fromkeys(of_host))
                assert first_time == list(range(end)), "in order, but for what is done again"
            one.signal(15)
            assert one.wait() == 0, one.err


def test_windowed_count_survives_its_own_restart(peer: Peer, tmp_path: Path) -> None:
    options = ("--window", 0.5, "--session-timeout", 0.5, "--data", peer.data)
    arguments = [EXAMPLES / "windowed_count.py", "shop.sales", "shop.counts", *options]
    with sync.connect(data=peer.data) as mesh:
        sold = 0

        def closes_a_window_behind(counting: Running, newest: int) -> bool:
            """It is told of more and more; `newest` in ms."""
            nonlocal sold
            mesh.publish("shop.sales", b"1", key=(b"tea", b"milk")[sold % 3 == 0])
            sold += 1
            lines = counting.out.decode().rpartition("\n")[0].splitlines()
            return any(int(line.rpartition(" ")[2]) > newest for line in lines if " in window " in line)

        with running(tmp_path, *arguments, program=()) as first:
            wait_until(lambda: closes_a_window_behind(first, 0), 20.0)
            for _ in range(5):
                closes_a_window_behind(first, 0)
            first.signal(9)  # in the middle of a window
            first.wait()
        stopped = int(time.time() * 1000)
        with running(tmp_path, *arguments, program=()) as second:
            wait_until(lambda: closes_a_window_behind(second, stopped), 20.0)
            second.signal(15)
            assert second.wait() == 0, second.err
        true: Counter[str] = Counter()
        with mesh.subscribe("shop.sales", start="earliest") as sales:
            for record in itertools.islice(sales, sold):
                assert record.key is not None
                true[f"{record.key.decode()}/0/{record.timestamp // 500 * 500}"] += 1
        said: dict[str, int] = {}
        end = mesh.ask("topic.show", {"topic": "shop.counts"})["partition"][0]["end"]
        with mesh.subscribe("shop.counts", start="earliest") as counts:
            for record in itertools.islice(counts, end):
                assert record.key is not None
                said[record.key.decode()] = json.loads(record.value)["count"]
    closed = max(int(key.rpartition("/")[2]) for key in said)
    assert closed > stopped - 500
    assert said == {key: n for key, n in true.items() if int(key.rpartition("/")[2]) <= closed}


def test_edge_service_loses_and_doubles_nothing_with_the_mesh_away_and_itself_killed(tmp_path: Path) -> None:
    with one_peer(tmp_path) as peer:
        file, box = tmp_path / "edge.meshq", tmp_path / "box"
        peer.meshq(
            "client", "add", "edge", "--publish", "edge.#", "--subscribe", "edge.#", "--out", file
        ).ok()
        program = [EXAMPLES / "edge_service.py", file, "edge.readings", "--outbox", box, "--every", "0.002"]
        queued: list[bytes] = []

        def run(until: int, number: int) -> None:
            """Until it said so often that a reading is safe; then this signal."""
            with running(tmp_path, *program, program=()) as service:
                wait_until(
                    lambda: service.out.count(b"queued ") >= until or service.process.poll() is not None,
                    what=f"{until} readings",
                )
                service.signal(number)
                service.wait()
                queued.extend(
                    line.split()[1] for line in service.out.splitlines() if line.startswith(b"queued")
                )

        run(30, 9)  # in mid-stream, with the mesh there
        peer.stop()
        run(50, 9)  # and away
        run(50, 2)
        shown = json.loads(meshq("outbox", "show", box, "--json", "--check").ok())
        assert shown["queued"] + shown["sent"] >= 100
        assert shown["damaged"] == 0
        peer.start()
        meshq("outbox", "send", box, "--credentials", file).ok()
        shown = json.loads(meshq("outbox", "show", box, "--json").ok())
        assert (shown["queued"], shown["sent"], shown["parked"]) == (0, 0, 0)
        end = peer.meshq("pub", "edge.readings", "-v", stdin=b'{"id": "end"}').ok()
        count = int(end.partition(b"@")[2].split()[0])
        found = peer.meshq("sub", "edge.readings", "--from", "earliest", "--json", "--count", count).ok()
        ids = [json.loads(json.loads(line)["value"])["id"].encode() for line in found.splitlines()]
        assert len(set(ids)) == len(ids), "none twice"
        promised = set(queued)  # one more may be there, for each kill, whose line was not printed any more
        assert [i for i in ids if i in promised] == queued, "all of them, in order"
        assert len(ids) <= len(queued) + 3
