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
SLOW = {"hold": "datagrams held 2 s", "pause": "stopped 2 s", "freeze": "stopped 2 s and deaf"}
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
    {3: 60, 10: 60, 50: 30, 200: 8, 1_000: 3},
    {3: 3_600.0, 10: 1_200.0, 50: 240.0, 200: 60.0, 1_000: 10.0},
    {12: 300.0, 50: 120.0},
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
    yield "| members | loss | a third of them | what is on | false suspicions an hour | false deaths an hour | datagrams/s | bytes/s |"  # noqa: E501
    yield "|---|---|---|---|---|---|---|---|"
    for size, seconds in plan.slow_s.items():
        for loss in (x for x in plan.losses if x <= 0.05):
            for how, text in SLOW.items():
                for name, used in SLOWNESS.items():
                    world = World(size, seed=seed, loss=loss, settings=used(s))
                    q = scenarios.quiet(world, seconds, slow=how)
                    found.slow[size, loss, how, name] = q
                    yield (
                        f"| {size} | {loss:.0%} | {text} | {name} "
                        f"| {q.false_suspicions * 3_600 / q.seconds:,.0f} | {q.deaths_hourly:,.0f} "
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


@dataclass(frozen=True)
class Goal:
    text: str
    found: str
    reached: bool


def goals(found: Results) -> list[Goal]:
    """What is asked of `lan`, and what the tables say to it; only of what was measured."""
    made = []
    for text, sizes, most, of in (
        ("suspected within 1 s at p99, any size and loss", range(1_001), 1.0, lambda f: f.suspected),
        ("everyone knows within 3 s at p99, to 200 members", range(201), 3.0, lambda f: f.dead),
        ("everyone knows within 6 s at p99, 1,000 members", (1_000,), 6.0, lambda f: f.dead),
    ):
        chosen = {k: f for k, f in found.detection.items() if k[0] in sizes}
        made += [_goal_of_times(text, chosen, most, of)] if chosen else []
    quiet = [q for (_, loss), q in found.quiet.items() if loss <= 0.05]
    if quiet:
        deaths = sum(q.false_deaths for q in quiet)
        made.append(Goal("no false death at up to 5 % loss", str(deaths), deaths == 0))
    made += _goal_of_slowness(found) + _goal_of_traffic(found)
    healed = [r.after_s for x in found.faults.values() for r in x]
    if healed:
        worst = max(healed)
        made.append(Goal("lists are true again after every fault", f"in {worst:.1f} s", worst < float("inf")))
    return made


def _goal_of_times(
    text: str, found: dict[tuple[int, float, bool], Found], most: float, of: Callable[[Found], list[float]]
) -> Goal:
    worst = max((percentile(of(f), 0.99) for f in found.values()), default=0.0)
    return Goal(text, f"{worst:.2f} s", worst <= most)


def _goal_of_slowness(found: Results) -> list[Goal]:
    """With none at all counted as one."""
    ratios = []
    for (size, loss, how, name), plain in found.slow.items():
        if how == "hold" and name == "Lifeguard off":
            ours = found.slow[size, loss, how, "all of it"]
            ratios.append(plain.false_deaths / max(ours.false_deaths, 1))
    if not ratios:
        return []
    text = "slow members kill 20 times fewer than with Lifeguard off"
    return [Goal(text, f"{min(ratios):.0f} times", min(ratios) >= 20)]


def _goal_of_traffic(found: Results) -> list[Goal]:
    made = []
    for loss in (0.0, 0.05):
        if {(50, loss), (1_000, loss)} <= found.quiet.keys():
            small, large = found.quiet[50, loss], found.quiet[1_000, loss]
            by = max(abs(large.datagrams / small.datagrams - 1), abs(large.bytes / small.bytes - 1))
            text = f"traffic of a member the same at 50 and 1,000, within 20 %, loss {loss:.0%}"
            made.append(Goal(text, f"{by:.0%} apart", by <= 0.2))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", action="store_true", help="all sizes; takes about half an hour")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--sizes", type=int, nargs="+", help="of those only these")
    parser.add_argument("--loss", type=float, nargs="+", help="of those only these")
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
    if a.loss is not None:
        plan = replace(
            plan,
            losses=[x for x in plan.losses if x in a.loss],
            fault_losses=[x for x in plan.fault_losses if x in a.loss],
        )
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    found = measure(plan, PROFILES[a.profile], seed=a.seed, tables=a.tables, say=say)
    reached = goals(found)
    if a.profile == "lan":
        say("| goal | found | reached |")
        say("|---|---|---|")
        for goal in reached:
            say(f"| {goal.text} | {goal.found} | {'yes' if goal.reached else 'no'} |")
        say("")
    if a.write:
        page = PAGE.read_text()
        begin, end = page.index(BEGIN) + len(BEGIN), page.index(END)
        PAGE.write_text(page[:begin] + "\n" + "\n".join(lines) + page[end:])
    if a.profile == "lan" and not all(goal.reached for goal in reached):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
