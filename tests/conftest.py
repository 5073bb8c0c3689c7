"""What all tests share: async tests with a deadline, and waiting for a condition instead of sleeping.

`async def test_...` runs under `asyncio.run`, ended after 30 s or what `@pytest.mark.deadline(seconds)` says.
Two fixtures wait for a condition, so that no test sleeps:

    async def test_a_peer_that_joins_is_seen(eventually):
        await eventually(lambda: len(mesh.peers) == 3)

    def test_the_process_listens(eventually_sync):
        eventually_sync(lambda: port_is_open(7700), deadline_s=5)

A condition holds when its value is true; it may raise AssertionError for "not yet". Its value is returned.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

import pytest
from hypothesis import HealthCheck, settings

# Every process that a test starts would compile the package anew: a third of what its start costs.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# How long one example takes says how busy the machine is, not whether the code is right.
settings.register_profile(
    "meshq", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("meshq")

T = TypeVar("T")

TEST_DEADLINE_S = 30.0
WAIT_DEADLINE_S = 10.0
POLL_S = 0.005


class Eventually(Protocol):
    """The type of the fixture `eventually`; its condition may be an async function."""

    def __call__(
        self, condition: Callable[[], T | Awaitable[T]], deadline_s: float = WAIT_DEADLINE_S
    ) -> Coroutine[Any, Any, T]: ...


class EventuallySync(Protocol):
    """The type of the fixture `eventually_sync`."""

    def __call__(self, condition: Callable[[], T], deadline_s: float = WAIT_DEADLINE_S) -> T: ...


@pytest.fixture
def eventually() -> Eventually:
    async def wait(condition: Callable[[], Any], deadline_s: float = WAIT_DEADLINE_S) -> Any:
        end = time.monotonic() + deadline_s
        while True:
            last = time.monotonic() >= end
            try:
                value = condition()
                if inspect.isawaitable(value):
                    value = await value
                if value:
                    return value
            except AssertionError:
                if last:
                    raise
            if last:
                pytest.fail(f"not so after {deadline_s:g} s: {_source_of(condition)}")
            await asyncio.sleep(POLL_S)

    return wait


@pytest.fixture
def eventually_sync() -> EventuallySync:
    def wait(condition: Callable[[], Any], deadline_s: float = WAIT_DEADLINE_S) -> Any:
        end = time.monotonic() + deadline_s
        while True:
            last = time.monotonic() >= end
            try:
                if value := condition():
                    return value
            except AssertionError:
                if last:
                    raise
            if last:
                pytest.fail(f"not so after {deadline_s:g} s: {_source_of(condition)}")
            time.sleep(POLL_S)

    return wait


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write down in tests/testdata what is seen now")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test to its end, in a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    marker = pyfuncitem.get_closest_marker("deadline")
    deadline_s = float(marker.args[0]) if marker else TEST_DEADLINE_S
    wanted = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: value for name, value in pyfuncitem.funcargs.items() if name in wanted}
    asyncio.run(_within(deadline_s, pyfuncitem.obj(**arguments)), debug=False)
    return True


async def _within(deadline_s: float, test: Awaitable[None]) -> None:
    late = asyncio.timeout(deadline_s)
    try:
        async with late:
            await test
    except TimeoutError:
        if not late.expired():
            raise  # the test's own
        pytest.fail(f"the test took longer than its deadline of {deadline_s:g} s")


def _source_of(condition: Callable[[], Any]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return repr(condition)
