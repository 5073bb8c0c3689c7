"""Options that many verbs share, and how durations and sizes are written.

`--data`, `--credentials` and `--timeout` may stand before the verb or behind it; behind it wins, then before
it, then the environment.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from meshq.cli.reach import Where
from meshq.peer.presence import data_path

TIMEOUT_S: Final = 10.0
F = TypeVar("F", bound=Callable[..., Any])
_Decorated = Callable[..., Any]

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BYTES |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


class Quantity(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """A number with a unit, as an int in the smallest one."""

    def __init__(self, name: str, units: dict[str, int], example: str, *, none: bool = False) -> None:
        """`none`: the word is allowed too, and is 0."""
        self.name = name
        self._units, self._example, self._none = units, example, none

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if self._none and str(value).strip().lower() == "none":
            return 0
        found = _QUANTITY.fullmatch(str(value).strip())
        if not found or found[2].lower() not in self._units:
            self.fail(f"{value!r} is not a {self.name}: {self._example} are examples", param, ctx)
        amount = int(float(found[1]) * self._units[found[2].lower()])
        if self._none and not amount:
            self.fail(f"{value!r} is nothing: `none` is no limit", param, ctx)
        return amount


DURATION: Final = Quantity("duration", _SECONDS, "30s, 10m, 12h, 365d")
DURATION_OR_NONE: Final = Quantity("duration", _SECONDS, "30s, 12h, 7d or none", none=True)
SIZE_OR_NONE: Final = Quantity("size", _BYTES, "64KiB, 10GB or none", none=True)
COUNT_OR_NONE: Final = Quantity("number", {"": 1}, "100000 or none", none=True)
SIZE: Final = Quantity("size", _BYTES, "65536, 64KiB, 1MiB, 10GB")


def data_option(f: _Decorated) -> _Decorated:
    """`data: Path`: the data directory, for verbs that work on it directly."""

    @functools.wraps(f)
    def call(*args: Any, data: Path | None, **kwargs: Any) -> Any:
        root = click.get_current_context().find_root()
        return f(*args, data=data_path(data or root.params.get("data")), **kwargs)

    return _data(call)


def reaching(f: _Decorated) -> _Decorated:
    """`where: Where`: how the mesh is reached, for verbs that talk to it."""

    @functools.wraps(f)
    def call(
        *args: Any, data: Path | None, credentials: Path | None, timeout: float | None, **kw: Any
    ) -> Any:
        return f(*args, where=_where(data, credentials, timeout), **kw)

    timed = click.option("--timeout", type=float, metavar="SECONDS", help="How long to wait for the mesh.")
    file = click.option(
        "--credentials",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Reach the mesh by this file of `meshq client add`.",
    )
    return _data(file(timed(call)))


def place_options(f: F) -> F:
    """`weight` and `zone` of a peer."""
    zone = click.option("--zone", metavar="NAME", help="What fails as one with it: a rack, a room.")
    weight = click.option("--weight", type=float, help="Its share of the slots; an ordinary peer has 1.")
    return weight(zone(f))


def json_option(f: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(f)


def verbose_option(f: F) -> F:
    return click.option("-v", "--verbose", is_flag=True, help="Say more on standard error.")(f)


def _data(f: F) -> F:
    return click.option(
        "--data",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Data directory of this host's peer ($MESHQ_DATA, else ~/.meshq).",
    )(f)


def _where(data: Path | None, credentials: Path | None, timeout: float | None) -> Where:
    root = click.get_current_context().find_root()
    if data is not None and credentials is not None:
        raise click.UsageError("--data and --credentials are two ways to reach the mesh: give one of them")
    if data is None and credentials is None:
        data, credentials = root.params.get("data"), root.params.get("credentials")
        if credentials is not None and data is not None and _typed(root, "data"):
            credentials = credentials if _typed(root, "credentials") else None
    timeout = timeout if timeout is not None else root.params.get("timeout")
    if timeout is not None and not timeout > 0:
        raise click.UsageError("--timeout must be more than 0 seconds")
    return Where(data_path(data), credentials, TIMEOUT_S if timeout is None else timeout, timeout is not None)


def _typed(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
