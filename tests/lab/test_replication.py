"""Peers under load lose, double and mix up nothing, whatever happens to one of them, or to all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.conftest import Report
from tests.lab.network import why_not
from tests.lab.trial import Round, Trial, trial

KILL_GAP_S = 1.2
KILL_GAP_S_P50 = 0.4
CUT_GAP_S = 3.0

pytestmark = [pytest.mark.lab, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


@contextlib.contextmanager
def _tried(what: str, where: Path, count: int, report: Report, **options: object) -> Iterator[Trial]:
    """Judged and reported in the end."""
    with trial(where, count, name=what.replace(" ", "-"), **options) as t:  # type: ignore[arg-type]
        yield t
        _report(what, t, report)
        t.judge()


def _report(what: str, t: Trial, report: Report) -> None:
    gaps = sorted(r.gap for r in t.rounds)
    report.row(
        "under load | peers | rounds | longest without a receipt p50 | max | after it max | back in",
        what, len(t.peers), len(gaps), f"{gaps[len(gaps) // 2]:.2f} s", f"{gaps[-1]:.2f} s",
        f"{max(r.after for r in t.rounds):.2f} s", f"{max(r.back_s for r in t.rounds):.2f} s",
    )  # fmt: skip


def _kill(t: Trial, n: int) -> Round:
    return t.suffer(t.peers[n].kill, lambda: t.restart(t.peers[n]), hold_s=2.5)


@pytest.mark.long
def test_kills(tmp_path: Path, report: Report) -> None:
    """Twenty kills of three peers in turn: p50 at most 0.4 s, none above 1.2 s."""
    with _tried("kill -9", tmp_path, 3, report) as t:
        for i in range(20):
            r = _kill(t, i % 3)
            print(f"{r.gap:.2f} after {r.after:.2f} back {r.back_s:.2f}", flush=True)


def test_kill_smoke(tmp_path: Path, report: Report) -> None:
    began = time.monotonic()
    with _tried("kill -9", tmp_path, 3, report) as t:
        _kill(t, 1)
    print(time.monotonic() - began)
