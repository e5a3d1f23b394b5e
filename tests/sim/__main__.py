"""python -m tests.sim --seeds N [--first M] [--jobs J], or --replay SEED. Exit code 1 if something fails."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from multiprocessing import Pool

from tests.sim.world import SOMETIMES, simulate

Outcome = tuple[int, Counter[str], str]
"""Seed, what happened, and how it failed ("" if it did not)."""


def attempt(seed: int) -> Outcome:
    """One simulation."""
    try:
        return seed, simulate(seed), ""
    except Exception:
        return seed, Counter(), traceback.format_exc()


def main() -> int:
    """Run many seeds, or one again."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--seeds", type=int, default=10_000, help="how many [default: 10000]")
    parser.add_argument("--first", type=int, default=0, help="the first one [default: 0]")
    parser.add_argument("--jobs", type=int, default=1, help="processes [default: 1]")
    parser.add_argument("--replay", type=int, metavar="SEED", help="this one alone, and what happened in it")
    options = parser.parse_args()
    if options.replay is not None:
        for what, count in sorted(simulate(options.replay).items()):
            if count:
                print(f"{count:6} {what}")
        return 0
    seeds = range(options.first, options.first + options.seeds)
    seen: Counter[str] = Counter()
    failed: list[int] = []
    started = time.monotonic()
    with Pool(options.jobs) as pool:
        for seed, happened, failure in pool.imap(attempt, seeds, chunksize=16):
            seen.update(happened)
            if failure:
                failed.append(seed)
                print(f"seed {seed} fails; again with --replay {seed}\n{failure}", file=sys.stderr)
    seconds = time.monotonic() - started
    for what in SOMETIMES:
        print(f"{seen[what]:8} {what}")
    never = [what for what in SOMETIMES if not seen[what]]
    print(
        f"{len(seeds)} seeds in {seconds:.0f} s, {len(seeds) / seconds:.0f} a second: {len(failed)} failed"
        + (f"; never happened: {', '.join(never)}" if never else "")
    )
    return int(bool(failed or never))


if __name__ == "__main__":
    sys.exit(main())
