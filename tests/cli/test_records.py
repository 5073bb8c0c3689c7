"""`pub` and `sub`: what goes in comes out, byte for byte, and how both end."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from meshq.cli.app import run
from tests.peers import Peer, Running, one_peer, wait_until


def follow_ready(process: Running) -> None:
    wait_until(lambda: "reading" in process.err or process.process.poll() is not None, what="sub is ready")
    assert process.process.poll() is None, process.err


def read(peer: Peer, topic: str, count: int, *arguments: str) -> bytes:
    return peer.meshq("sub", topic, "--from", "earliest", "--count", count, *arguments).ok()


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("plain", b"a\nb\n", b"a\nb\n"),
        ("no-last-newline", b"a\nb", b"a\nb\n"),
        ("empty-lines", b"\na\n\n\nb\n", b"\na\n\n\nb\n"),
        ("only-newline-splits", b"a\rb\x0bc\x85d\xe2\x80\xa8e\nf\r\n", b"a\rb\x0bc\x85d\xe2\x80\xa8e\nf\r\n"),
        ("any-bytes", bytes(set(range(256)) - {10}), bytes(set(range(256)) - {10}) + b"\n"),
    ],
)
def test_lines_come_back_as_they_went_in(peer: Peer, name: str, given: bytes, expected: bytes) -> None:
    peer.meshq("pub", f"lines.{name}", stdin=given).ok()
    assert read(peer, f"lines.{name}", expected.count(b"\n")) == expected


def test_nothing_on_standard_input_publishes_nothing(peer: Peer) -> None:
    assert peer.meshq("pub", "none", stdin=b"").ok() == b""


def test_verbose_prints_a_receipt_a_line_in_order(peer: Peer) -> None:
    out = peer.meshq("pub", "receipts", "-v", stdin=b"a\n\nb").ok()
    assert out == b"receipts/0@0 copies=1\nreceipts/0@1 copies=1\nreceipts/0@2 copies=1\n"


def test_a_file_many_lines_long_keeps_its_order(peer: Peer, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"".join(b"line %d\n" % i for i in range(100_000)))
    assert peer.meshq("pub", "many", file, "--compression", "zstd").ok() == b""
    assert read(peer, "many", 100_000) == file.read_bytes()


def test_key_and_headers_are_kept(peer: Peer) -> None:
    arguments = ["--key", "k", "--header", "trace=a=b", "--header", "empty="]
    peer.meshq("pub", "rich", *arguments, stdin=b"value").ok()
    record = json.loads(read(peer, "rich", 1, "--json"))
    assert record.pop("timestamp_ms") > 1_600_000_000_000
    assert record == {
        "topic": "rich", "partition": 0, "offset": 0, "key": "k", "headers": {"trace": "a=b", "empty": ""},
        "value": "value", "encoding": "utf-8",
    }  # fmt: skip


def test_json_turns_to_base64_where_bytes_are_no_text(peer: Peer) -> None:
    peer.meshq("pub", "binary", "--key", "k", stdin=b"\xff\xfe").ok()
    record = json.loads(read(peer, "binary", 1, "--json"))
    assert record["encoding"] == "base64"
    assert (base64.b64decode(record["value"]), base64.b64decode(record["key"])) == (b"\xff\xfe", b"k")


def test_from_takes_an_offset_and_a_time(peer: Peer) -> None:
    peer.meshq("pub", "places", stdin=b"0\n1\n2\n").ok()
    assert peer.meshq("sub", "places", "--from", 2, "--count", 1).ok() == b"2\n"
    lines = read(peer, "places", 3, "--json").splitlines()
    when = datetime.fromtimestamp(json.loads(lines[0])["timestamp_ms"] / 1000, UTC)
    assert peer.meshq("sub", "places", "--from", when.isoformat(), "--count", 3).ok() == b"0\n1\n2\n"


def test_a_subscriber_gets_what_comes_after_it_across_topics(peer: Peer) -> None:
    with peer.follow("sub", "live.#", "--count", 2, "-v") as sub:
        follow_ready(sub)
        peer.meshq("pub", "live.one", stdin=b"first").ok()
        wait_until(lambda: sub.out == b"first\n", what="the first record, flushed")
        peer.meshq("pub", "live.two", stdin=b"second").ok()
        assert sub.wait() == 0
        assert sub.out == b"first\nsecond\n"


def test_count_zero_ends_at_once(peer: Peer) -> None:
    assert peer.meshq("sub", "zero", "--count", 0).ok() == b""


def test_interrupting_sub_exits_with_130(peer: Peer) -> None:
    with peer.follow("sub", "silence", "-v") as sub:
        follow_ready(sub)
        sub.signal(signal.SIGINT)
        assert sub.wait() == 130
        assert "Traceback" not in sub.err


def test_sub_ends_quietly_when_its_reader_leaves(peer: Peer) -> None:
    peer.meshq("pub", "long", stdin=b"x" * 99 + b"\n" + b"line\n" * 50_000).ok()
    command = [sys.executable, "-m", "meshq", "sub", "long", "--from", "earliest"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=peer.env())
    with process:
        assert process.stdout and process.stderr
        assert process.stdout.read(10) == b"x" * 10
        process.stdout.close()
        process.wait(20)
        assert process.stderr.read() == b""
        assert process.returncode == 0


def test_sub_ends_when_its_reader_leaves_though_nothing_comes(peer: Peer) -> None:
    peer.meshq("pub", "quiet", stdin=b"one\n").ok()
    command = [sys.executable, "-m", "meshq", "sub", "quiet", "--from", "earliest"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=peer.env()) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline() == b"one\n"
        process.stdout.close()  # as `head -1` does
        assert process.wait(20) == 0
        assert process.stderr.read() == b""


def test_sub_says_that_the_mesh_is_away_and_that_it_is_back(tmp_path: Path) -> None:
    with one_peer(tmp_path) as peer, peer.follow("sub", "t", "-v") as sub:
        follow_ready(sub)
        peer.stop()
        wait_until(lambda: "no peer can be reached" in sub.err, what="it says so")
        peer.start()
        wait_until(lambda: "connected again" in sub.err, what="it says so")


def test_pub_of_a_file_shows_progress_in_a_terminal(peer: Peer, tmp_path: Path) -> None:
    """Standard input is a terminal then, too; but nobody types."""
    source = tmp_path / "source"
    os.mkfifo(source)
    terminal, theirs = os.openpty()
    command = [sys.executable, "-m", "meshq", "pub", "progress", str(source)]
    env = {**peer.env(), "TERM": "xterm"}
    with subprocess.Popen(command, stdin=theirs, stderr=theirs, stdout=theirs, env=env) as pub:
        os.close(theirs)
        os.set_blocking(terminal, False)
        shown = b""

        def shows_progress() -> bool:
            nonlocal shown
            lines.write(b"line\n" * 10)
            lines.flush()
            with contextlib.suppress(BlockingIOError):
                shown += os.read(terminal, 65_536)
            return b"records/s" in shown

        with source.open("wb") as lines:
            wait_until(shows_progress, what="progress on the terminal")
        assert pub.wait(20) == 0
    os.close(terminal)


def test_pub_sends_what_a_slow_pipe_has_written_so_far(peer: Peer) -> None:
    command = [sys.executable, "-m", "meshq", "pub", "slow", "-v"]
    pub = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=peer.env())
    with pub:
        assert pub.stdin and pub.stdout
        pub.stdin.write(b"one\n")
        pub.stdin.flush()
        assert pub.stdout.readline() == b"slow/0@0 copies=1\n"
        pub.stdin.close()
        assert pub.wait(20) == 0


def test_a_record_over_the_limit_fails_with_counts(peer: Peer) -> None:
    given = b"small\n" + b"x" * 2_000_000
    peer.meshq("pub", "large", stdin=given).failed(
        1, "line 2: ", "over the limit", "Stored: 1; ", "1 of 2 lines"
    )
    assert read(peer, "large", 1) == b"small\n"


def test_an_unknown_topic_fails_where_none_are_made(tmp_path: Path) -> None:
    with one_peer(tmp_path, "--no-auto-create") as strict:
        strict.meshq("pub", "unknown", stdin=b"a\n").failed(1, "unknown")
        strict.meshq("topic", "create", "known").ok()
        strict.meshq("pub", "known", stdin=b"a\n").ok()


@pytest.mark.parametrize(
    "arguments",
    [
        ("pub", "no topic"),
        ("pub", "t", "--header", "nameless"),
        ("sub", "a.#.b"),
        ("sub", "t", "--from", "yesterday"),
        ("sub",),
        ("pub", "t", "--compression", "rar"),
        ("frobnicate",),
        ("sub", "t", "--timeout", "0"),
    ],
)
def test_wrong_usage_exits_with_2(peer: Peer, arguments: tuple[str, ...]) -> None:
    result = peer.meshq(*arguments)
    assert result.code == 2
    assert "Traceback" not in result.err


def test_a_group_goes_on_where_it_was(peer: Peer) -> None:
    peer.meshq("pub", "jobs", stdin=b"a\nb\nc\n").ok()
    assert peer.meshq("sub", "jobs", "--group", "g", "--count", 2).ok() == b"a\nb\n"
    assert peer.meshq("sub", "jobs", "--group", "g", "--mode", "queue", "--count", 1).ok() == b"c\n"
    assert peer.meshq("sub", "jobs", "--group", "other", "--count", 3).ok() == b"a\nb\nc\n"
    assert peer.meshq("sub", "jobs", "--mode", "queue").code == 2


Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Here:
    """A call of the command line in this process, for those that need no more: (code, out, err)."""

    def call(*words: object) -> tuple[int, str, str]:
        code = run([str(w) for w in words])
        return code, *capfd.readouterr()

    return call


def test_an_outbox_takes_lines_with_no_peer_to_be_found_and_shows_them(
    peer: Peer, tmp_path: Path, here: Here
) -> None:
    box, lines, nowhere = tmp_path / "box", tmp_path / "lines", ("--data", tmp_path / "none")
    lines.write_bytes(b"a\nb\n")
    code, out, err = here("pub", "kept", lines, "--outbox", box, "-v", *nowhere)
    assert (code, out) == (0, "kept queued\nkept queued\n")
    assert "2 records wait" in err and "meshq outbox send" in err
    shown = json.loads(here("outbox", "show", box, "--json", "--check")[1])
    assert (shown["queued"], shown["parked"], shown["damaged"], shown["topics"]) == (2, 0, 0, ["kept"])
    assert "queued" in here("outbox", "show", box)[1]
    for words, code, said in (
        (("outbox", "send", box, *nowhere), 3, "2 records wait"),
        (("outbox", "drop", box), 2, "--all"),
        (("outbox", "retry", box, 7), 2, "nothing is parked as 7"),
        (("outbox", "show", tmp_path / "other"), 1, "no outbox"),
        (("pub", "kept", "--outbox", box, "--acks", "leader"), 2, "quorum"),
    ):
        ended, _, err = here(*words)
        assert (ended, said in err) == (code, True), err
    lines.write_bytes(b"c\n")
    assert here("--data", peer.data, "pub", "kept", lines, "--outbox", box) == (0, "", "")
    assert read(peer, "kept", 3) == b"a\nb\nc\n"


def test_what_is_parked_is_listed_and_sent_again_when_it_is_told(
    peer: Peer, tmp_path: Path, here: Here
) -> None:
    box, lines, at = tmp_path / "box", tmp_path / "lines", ("--data", peer.data)
    lines.write_bytes(b"x" * 11 + b"\nok\n")
    here(*at, "topic", "create", "small", "--record-bytes-max", "10", "--partitions", "1")
    here("pub", "small", lines, "--outbox", box, "--data", tmp_path / "none")
    assert here(*at, "outbox", "send", box)[0] == 0
    (parked,) = json.loads(here("outbox", "show", box, "--json")[1])["parked_batches"]
    assert (parked["reason"], parked["records"], parked["maybe_stored"]) == ("TooLarge", 1, False)
    here(*at, "topic", "set", "small", "--record-bytes-max", "100")
    assert here("outbox", "retry", box, parked["id"])[0] == 0
    assert here(*at, "outbox", "send", box)[0] == 0
    assert read(peer, "small", 2) == b"ok\n" + b"x" * 11 + b"\n"
    assert json.loads(here("outbox", "show", box, "--json")[1])["parked"] == 0
