"""Each fault built in on purpose is seen: by a story, a schedule, or the unit test that is named."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.simulation import mutants
from tests.simulation.script import Story
from tests.simulation.test_stories import STORIES

# What no story shows: a seed whose schedule catches it, or the test that does.
BY_SEED = {"applied while installing": 14}
BY_TEST = {
    "commit past matched": "tests/replication/test_following.py",
    "everywhere outlives what is cut off": "tests/replication/test_witnesses.py",
    "snapshot to a witness that lost something": "tests/replication/test_witnesses.py",
    "repaired too early": "tests/replication/test_following.py",
    "one-way support": "tests/replication/test_support.py",
    "support by a stalled disk": "tests/replication/test_support.py",
}


@pytest.mark.parametrize("name", sorted(set(mutants.MUTANTS) - set(BY_SEED) - set(BY_TEST)))
def test_a_story_tells_of_it(name: str) -> None:
    with mutants.built_in(name):
        assert any(is_another(path.read_text()) for path in STORIES)


def is_another(text: str) -> bool:
    try:
        return Story().run(text) != text
    except (IndexError, ValueError):  # a command can't be done: the story took another turn
        return True


@pytest.mark.parametrize("name", sorted(BY_SEED))
def test_a_schedule_catches_it(name: str) -> None:
    assert mutants.search(name, first=BY_SEED[name], most=1) is not None


@pytest.mark.parametrize("name", sorted(BY_TEST))
def test_a_unit_test_catches_it(name: str) -> None:
    """In a process of its own, since the test has to fail."""
    code = (
        "import sys, pytest; from tests.simulation import mutants\n"
        f"with mutants.built_in({name!r}): sys.exit(pytest.main(['-q', {BY_TEST[name]!r}]))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 1
