"""Every story of tests/testdata is seen as it is written there; `pytest --rewrite` writes down what is seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulation.script import Story

STORIES = sorted((Path(__file__).parent.parent / "testdata").glob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_story(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text()
    seen = Story().run(text)
    if request.config.getoption("--rewrite"):
        path.write_text(seen)
    else:
        assert seen == text
    assert "WRONG" not in seen
