"""What is logged reads as one line, also when it comes from a library."""

from __future__ import annotations

import logging

import pytest

from meshq.cli.logs import set_up


@pytest.mark.parametrize("form", ["text", "json"])
def test_multicast_without_a_route_leaves_no_traceback(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        set_up(form, "info")  # type: ignore[arg-type]
        try:
            raise OSError(101, "Network is unreachable")
        except OSError:
            logging.getLogger("zeroconf").warning("Error with socket %d", 9, exc_info=True)
    finally:
        root.handlers[:], root.level = handlers, level
        logging.captureWarnings(False)
        logging.getLogger("zeroconf").filters.clear()
    said = capsys.readouterr().err
    assert "Error with socket 9: " in said and "unreachable" in said
    assert "raceback" not in said and said.count("\n") == 1
