"""`meshq status`: what people see of slots that are not as they should be, and what a monitor gets."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshq.cli.app import cli
from meshq.cli.reach import Failed

module = importlib.import_module("meshq.cli.status")

WELL: dict[str, Any] = {
    "name": "p0", "peer": "id", "mesh": "m", "mesh_level": 2, "weight": 2.0, "zone": "attic", "level": 2,
    "registry": {"holder": "p0", "version": 7, "reachable": True, "voters": ["p0", "p1"]},
    "witness": False, "outbox": None,
    "peers": 3, "peers_reachable": 3, "topics": 1, "sessions": 0, "readers": 0, "counters": {},
    "clock": {"trusted": True, "why": None, "offset_ms": 12, "compared_with": 2, "records_ahead_ms": 0},
    "disk": {"room_bytes": 1 << 30, "pending_bytes": 0},
    "slots": {
        "total": 8, "led": 3, "replicas": 8, "under_replicated": 0, "moving": 0, "leaderless": 0,
        "led_out_of_reach": 0, "written": 1,
    },
    "health": {"under_replicated": [], "moving": [], "leaderless": [], "led_out_of_reach": []},
}  # fmt: skip
LEADERLESS = {"slot": 3, "since_ms": 1_700_000_000_000, "voters": ["p0", "p1", "p2"], "away": ["p1", "p2"]}
LACKS = {
    "slot": 4, "leader": "p0", "copies": 1, "wanted": 3,
    "missing": [
        {"peer": "p1", "why": "behind", "entries_behind": 1234},
        {"peer": "p2", "why": "away", "entries_behind": 9},
    ],
}  # fmt: skip
MOVES = {
    "slot": 5, "leader": "p0", "from": ["p2"], "changing": False, "waits_for": ["p2"],
    "to": [{"peer": "p3", "entries": 10, "entries_total": 40, "bytes": 1 << 20, "bytes_total": 4 << 20}],
}  # fmt: skip


def status(monkeypatch: pytest.MonkeyPatch, *arguments: str, **health: list[Any]) -> Result:
    slots = WELL["slots"] | {k: len(v) for k, v in health.items()}
    found = WELL | {"slots": slots, "health": WELL["health"] | health}
    monkeypatch.setattr(module, "ask", lambda *_: found)
    return CliRunner().invoke(cli, ["status", *arguments])


def test_what_is_wrong_is_told_in_a_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    done = status(
        monkeypatch,
        leaderless=[LEADERLESS | {"slot": s} for s in range(9)],
        under_replicated=[LACKS],
        moving=[MOVES],
        led_out_of_reach=[6],
    )
    assert done.exit_code == 0
    assert "slots without a leader: 9\n" in done.stdout
    assert "  and 4 more (--json has all)\n" in done.stdout
    assert "p1, p2 away, of voters p0, p1, p2" in done.stdout
    assert "  4: 1 of 3 copies, led by p0; p1 behind by 1,234 entries, p2 away\n" in done.stdout
    assert "  5: to p3 (1.0 MiB of 4.0 MiB, entry 10 of 40) from p2 waiting for p2\n" in done.stdout
    assert "cannot be reached from here: 1\n  6\n" in done.stdout
    assert "place            weight 2, zone attic\n" in done.stdout


def test_nothing_is_said_of_what_is_as_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    said = status(monkeypatch, "--check", "leaders", "--check", "copies")
    assert said.exit_code == 0
    assert "leader:" not in said.stdout and "moving" not in said.stdout


@pytest.mark.parametrize(
    ("check", "health", "text"),
    [
        ("leaders", {"leaderless": [LEADERLESS]}, "1 slots have no leader"),
        ("leaders", {"led_out_of_reach": [6]}, "1 slots are led out of reach"),
        ("copies", {"under_replicated": [LACKS]}, "1 slots lack a copy"),
    ],
)
def test_a_check_fails_and_says_why(
    monkeypatch: pytest.MonkeyPatch, check: str, health: dict[str, list[Any]], text: str
) -> None:
    failed = status(monkeypatch, "--check", check, **health)
    assert isinstance(failed.exception, Failed) and str(failed.exception) == text  # exit code 1
    assert status(monkeypatch, **health).exit_code == 0
    assert json.loads(status(monkeypatch, "--json", "--check", check, **health).stdout)["health"] | health


def test_other_checks_do_not_fail_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status(monkeypatch, "--check", "leaders", under_replicated=[LACKS]).exit_code == 0
    assert status(monkeypatch, "--check", "copies", leaderless=[LEADERLESS]).exit_code == 0
