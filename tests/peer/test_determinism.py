"""The same seed is the same run, in another process too: what a seed found can be looked at again."""

from __future__ import annotations

import os
import subprocess
import sys

PLAY = """
from tests.peer.test_disks import wiped
from tests.peer.test_snapshots import squeeze
squeeze(setattr)
for seed in (2, 5):
    print(wiped(seed).trace)
"""


def test_the_same_seed_sends_the_same_messages_under_another_hash_seed() -> None:
    """Nothing that is sent, or when, may hang on the order of a set."""
    seen = {
        subprocess.run(
            [sys.executable, "-c", PLAY],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
    assert len(set(seen.pop().split())) == 2, "and another one others"
