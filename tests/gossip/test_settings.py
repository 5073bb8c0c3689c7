"""The settings: what the document says of them is what they are, and what the formulas promise follows."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from pathlib import Path

import pytest

from meshq.gossip.settings import LAN, PROFILES, WAN, Settings

PAGE = (Path(__file__).parents[2] / "docs" / "membership.md").read_text()
ROW = re.compile(r"^\| `(\w+)`( \*)? \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", re.MULTILINE)


def test_the_document_has_every_setting_with_its_values() -> None:
    shown = {name: (lan.strip(), wan.strip()) for name, _, lan, wan in ROW.findall(PAGE)}
    assert shown.keys() == {f.name for f in fields(Settings)}
    for name, cells in shown.items():
        assert tuple(map(_read, cells)) == (getattr(LAN, name), getattr(WAN, name)), name


def _read(cell: str) -> float | bool:
    return cell == "yes" if cell in ("yes", "no") else float(cell.replace(",", ""))


@pytest.mark.parametrize("s", PROFILES.values(), ids=PROFILES.keys())
def test_a_profile_is_consistent(s: Settings) -> None:
    assert s.ping_s < s.fail_s  # helpers have time to ask
    assert 2 * s.ping_s < s.fail_s  # and to say that they got no answer
    assert s.fail_s < s.suspect_s  # one more probe and its answer fit the shortest suspicion
    assert s.probe_s <= s.stall_s  # an ordinary tick is no stall


def test_the_first_suspicion_is_promised_within_a_second() -> None:
    """A silent member is asked at rate 1 / probe_s, whatever the size: the 99th percentile of that wait is
    ln 100 periods (SWIM, section 3.1).
    """
    assert math.log(100) * LAN.probe_s + LAN.fail_s < 1.0
    assert LAN.fail_s < 0.5  # after a broken connection
    assert LAN.fail_s + LAN.suspicion_s(50)[0] < 2.0
