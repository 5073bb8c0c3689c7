"""`python -m tests.simulation --seeds 100`: schedules, their rate, and how to see a failure again."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from tests.simulation import faults, mutants
from tests.simulation.host import Copy, Host
from tests.simulation.telling import show_effect, show_event
from tests.simulation.world import World


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    p.add_argument("--seeds", type=int, default=100, help="how many schedules")
    p.add_argument("--first", type=int, default=0, help="the first seed")
    p.add_argument("--hosts", type=int, choices=(1, 2, 3, 5), help="all schedules with so many hosts")
    p.add_argument("--witness", action="store_true", help="two or three keepers and a witness")
    p.add_argument("--events", type=int, default=faults.EVENTS, help="events of a schedule's safety phase")
    p.add_argument("--seed", type=int, help="this one schedule, told event by event")
    p.add_argument("--hash", action="store_true", help="print only the hash of each trace")
    p.add_argument("--mutants", action="store_true", help="search for each mutant until it is caught")
    p.add_argument("--mutant", choices=sorted(mutants.MUTANTS), help="with this fault built in")
    p.add_argument(
        "--outcomes", action="store_true", help="without the checks that see a fault before its harm"
    )
    a = p.parse_args()
    a.witness |= a.mutant in mutants.WITNESS
    if a.mutants:
        return _search(a)
    with mutants.built_in(a.mutant):
        return _tell(a) if a.seed is not None else _many(a)


def _many(a: argparse.Namespace) -> int:
    began, events, acked, reads, failed = time.process_time(), 0, 0, 0, []
    slowest = (0.0, 0)
    for seed in range(a.first, a.first + a.seeds):
        try:
            world = faults.run(seed, events=a.events, hosts=a.hosts, witness=a.witness, strict=not a.outcomes)
        except Exception as e:
            failed.append(seed)
            print(f"seed {seed}: {type(e).__name__}: {e}")
            print(f"    see it: {_again(a, seed)}", flush=True)
            continue
        if a.hash:
            print(f"{seed} {world.trace & (1 << 64) - 1:016x}")
        slowest = max(slowest, (world.live_s, seed))
        events, acked, reads = events + world.events, acked + world.acked, reads + world.reads
    took = time.process_time() - began
    if not a.hash:
        print(
            f"seeds {a.first} to {a.first + a.seeds - 1}: {events:,} events, {acked:,} records acknowledged,"
            f" {reads:,} reads; {events / took:,.0f} events/s of processor time;"
            f" alive again after {slowest[0]:.1f} s at most (seed {slowest[1]}); {len(failed)} failed"
        )
    return bool(failed)


def _again(a: argparse.Namespace, seed: int) -> str:
    more = "".join(f" --{k} {v}" for k, v in (("hosts", a.hosts), ("mutant", a.mutant)) if v)
    more += f" --events {a.events}" * (a.events != faults.EVENTS) + " --outcomes" * a.outcomes
    more += " --witness" * a.witness
    return f"python -m tests.simulation --seed {seed}{more}"


def _tell(a: argparse.Namespace) -> int:
    def tell(world: World, host: Host, where: Copy | int, what: object) -> None:
        at = f"{world.now:10.4f}  n{host.number}"
        if isinstance(where, Copy):
            print(f"{at} slot {where.slot}  {show_event(what)}")
        else:
            print(f"{at} {f'slot {where}' if where >= 0 else 'host  '}      -> {show_effect(what)}")

    print(faults.draw(a.seed, events=a.events, hosts=a.hosts, witness=a.witness))
    try:
        faults.run(
            a.seed, events=a.events, hosts=a.hosts, witness=a.witness, strict=not a.outcomes, tell=tell
        )
    except Exception:
        sys.stdout.flush()
        traceback.print_exc()
        return 1
    return 0


def _search(a: argparse.Namespace) -> int:
    escaped = 0
    for name in sorted(mutants.MUTANTS) if a.mutant is None else [a.mutant]:
        if name in mutants.HARMLESS and a.mutant is None:
            print(f"{name:32} not searched for: {mutants.HARMLESS[name]}", flush=True)
            continue
        found = mutants.search(name, first=a.first, most=a.seeds, strict=not a.outcomes, hosts=a.hosts)
        escaped += found is None
        if found is None:
            print(f"{name:32} not caught in {a.seeds} schedules", flush=True)
        else:
            print(f"{name:32} {found[0]:6} schedules  {found[1][:110]}", flush=True)
    return bool(escaped)


if __name__ == "__main__":
    sys.exit(main())
