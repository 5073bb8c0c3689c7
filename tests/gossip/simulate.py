"""The tables of docs/membership.md: detection, quiet meshes, slow members, faults and healing, by simulation.

`make simulate-membership` runs the small sizes, `make simulate-membership ARGS="--whole --write"` all of them
and puts what was found into the document. The same seed gives the same tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from meshq.gossip.settings import PROFILES, Settings
from tests.gossip import scenarios
from tests.gossip.scenarios import Found, Quiet, Recovery, percentile
from tests.gossip.simulation import World

PAGE = Path(__file__).parents[2] / "docs" / "membership.md"
BEGIN, END = "<!-- simulated -->\n", "<!-- end of simulated -->\n"
TABLES = ("detection", "quiet", "slow", "faults")
LOSSES = (0.0, 0.05, 0.2, 0.3)
LARGE = 200  # from here on the killed are not restarted: learning the whole list again takes the time

FAULTS: dict[str, Callable[[World], Recovery]] = {
    "one-way cut": scenarios.one_way_cut,
    "split and heal": scenarios.split,
    "mass restart": scenarios.mass_restart,
    "churn": scenarios.churn,
}
SLOWNESS: dict[str, Callable[[Settings], Settings]] = {
    "all of it": lambda s: s,
    "stalls not noticed": scenarios.without_discarding,
    "Lifeguard off": scenarios.without_lifeguard,
    "plain SWIM: both off": lambda s: scenarios.without_discarding(scenarios.without_lifeguard(s)),
}


@dataclass(frozen=True)
class Plan:
    sizes: Sequence[int]
    losses: Sequence[float]
    trials: dict[int, int]
    quiet_s: dict[int, float]
    slow_s: dict[int, float]  # by size
    fault_times: dict[int, int]  # by size
    fault_losses: Sequence[float]


SMALL = Plan(
    (3, 10, 50),
    (0.0, 0.05),
    {3: 12, 10: 8, 50: 4},
    {3: 60.0, 10: 30.0, 50: 4.0},
    {12: 30.0},
    {3: 3, 10: 2},
    (0.05,),
)
WHOLE = Plan(
    (3, 10, 50, 200, 1_000),
    LOSSES,
    {3: 60, 10: 60, 50: 40, 200: 12, 1_000: 5},
    {3: 3_600.0, 10: 1_200.0, 50: 240.0, 200: 60.0, 1_000: 10.0},
    {12: 600.0, 50: 120.0},
    {3: 20, 10: 20, 50: 5, 200: 2, 1_000: 1},
    (0.05, 0.2),
)


@dataclass(frozen=True)
class Results:
    """What the tables hold, by what they were made with; tests hold it to the goals."""

    detection: dict[tuple[int, float, bool], Found]
    quiet: dict[tuple[int, float], Quiet]
    slow: dict[tuple[int, float, str, str], Quiet]
    faults: dict[tuple[int, float, str], list[Recovery]]


def measure(
    plan: Plan, s: Settings, *, seed: int, tables: Sequence[str] = TABLES, say: Callable[[str], None] = print
) -> Results:
    found = Results({}, {}, {}, {})
    steps = {"detection": _detection, "quiet": _quiet, "slow": _slow, "faults": _faults}
    for name in tables:
        for line in steps[name](plan, s, seed, found):
            say(line)
        say("")
    return found


def _detection(plan: Plan, s: Settings, seed: int, found: Results) -> Iterator[str]:
    yield "| members | loss | how | trials | suspected p50 | p99 | max | everyone knows p50 | p99 | max |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for size in plan.sizes:
        for loss in plan.losses:
            for linked in (False, True):
                world = World(size, seed=seed, loss=loss, settings=s)
                trials = plan.trials[size]
                f = scenarios.detection(world, trials, linked=linked, restarted=size < LARGE)
                found.detection[size, loss, linked] = f
                cells = [f"{percentile(v, q):.2f}" for v in (f.suspected, f.dead) for q in (0.5, 0.99, 1)]
                how = "killed" if linked else "cut off"
                yield f"| {size:,} | {loss:.0%} | {how} | {trials} | {' | '.join(cells)} |"


def _quiet(plan: Plan, s: Settings, seed: int, found: Results) -> Iterator[str]:
    yield "| members | loss | simulated s | false suspicions of a member an hour | false deaths an hour | datagrams/s | bytes/s |"  # noqa: E501
    yield "|---|---|---|---|---|---|---|"
    for size in plan.sizes:
        for loss in plan.losses:
            q = scenarios.quiet(World(size, seed=seed, loss=loss, settings=s), plan.quiet_s[size])
            found.quiet[size, loss] = q
            hourly = q.false_suspicions / size / max(size - 1, 1) * 3_600 / q.seconds
            yield (
                f"| {size:,} | {loss:.0%} | {q.seconds:g} | {hourly:.2g} | {q.deaths_hourly:g} "
                f"| {q.datagrams:.1f} | {q.bytes:,.0f} |"
            )


def _slow(plan: Plan, s: Settings, seed: int, found: Results) -> Iterator[str]:
    yield "| members | loss | a third of them | switched on | false deaths an hour | datagrams/s | bytes/s |"
    yield "|---|---|---|---|---|---|---|"
    for size, seconds in plan.slow_s.items():
        for loss in (0.0, 0.05):
            for how, text in (("hold", "datagrams held 2 s"), ("pause", "stopped 2 s")):
                for name, used in SLOWNESS.items():
                    world = World(size, seed=seed, loss=loss, settings=used(s))
                    q = scenarios.quiet(world, seconds, slow=how)
                    found.slow[size, loss, how, name] = q
                    yield (
                        f"| {size} | {loss:.0%} | {text} | {name} | {q.deaths_hourly:g} "
                        f"| {q.datagrams:.1f} | {q.bytes:,.0f} |"
                    )


def _faults(plan: Plan, s: Settings, seed: int, found: Results) -> Iterator[str]:
    yield "| members | loss | what | times | all lists true again after p50 (s) | max | false deaths |"
    yield "|---|---|---|---|---|---|---|"
    for size, times in plan.fault_times.items():
        for loss in plan.fault_losses:
            for name, do in FAULTS.items():
                worlds = (World(size, seed=seed + x, loss=loss, settings=s) for x in range(times))
                r = [do(world) for world in worlds]
                found.faults[size, loss, name] = r
                after = [x.after_s for x in r]
                deaths = sum(x.false_deaths for x in r)
                yield (
                    f"| {size:,} | {loss:.0%} | {name} | {times} | {percentile(after, 0.5):.1f} "
                    f"| {max(after):.1f} | {deaths} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", action="store_true", help="all sizes; takes about half an hour")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--sizes", type=int, nargs="+", help="of those only these")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="lan")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/membership.md")
    a = parser.parse_args()
    plan = WHOLE if a.whole else SMALL
    if a.sizes:
        plan = replace(
            plan,
            sizes=[x for x in plan.sizes if x in a.sizes],
            slow_s={x: s for x, s in plan.slow_s.items() if x in a.sizes},
            fault_times={x: n for x, n in plan.fault_times.items() if x in a.sizes},
        )
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    measure(plan, PROFILES[a.profile], seed=a.seed, tables=a.tables, say=say)
    if a.write:
        page = PAGE.read_text()
        begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
        PAGE.write_text(page[:begin] + "\n" + "\n".join(lines) + page[end:])


if __name__ == "__main__":
    main()
