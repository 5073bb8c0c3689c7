"""Schedules drawn at random keep every invariant, and come to life again when faults end."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation import faults

IN_MAKE_TEST = 500
WITH_WITNESS = 75
A_PART = 25


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, IN_MAKE_TEST, A_PART))
def test_schedules(first: int) -> None:
    run_all(first, A_PART)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, WITH_WITNESS, A_PART))
def test_schedules_with_a_witness(first: int) -> None:
    run_all(first, A_PART, witness=True)


@pytest.mark.long
@pytest.mark.parametrize("first", range(1_000, 21_000, 1_000))
def test_many_schedules(first: int) -> None:
    run_all(first, 1_000)


@pytest.mark.long
@pytest.mark.parametrize("first", range(1_000, 6_000, 1_000))
def test_many_schedules_with_a_witness(first: int) -> None:
    run_all(first, 1_000, witness=True)


def run_all(first: int, count: int, *, witness: bool = False) -> None:
    for seed in range(first, first + count):
        try:
            faults.run(seed, witness=witness)
        except Exception as e:
            e.add_note(f"see it: python -m tests.simulation --seed {seed}" + " --witness" * witness)
            raise


def test_the_same_seed_gives_the_same_trace_in_another_process() -> None:
    """Under another hash seed: nothing may hang on the order of a set."""
    command = [sys.executable, "-m", "tests.simulation", "--seeds", "12", "--events", "800", "--hash"]
    seen = {
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
    assert len(set(seen.pop().split()[1::2])) == 12
