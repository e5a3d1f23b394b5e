"""The proof ladder: every rung run, and one table of what came out. `make prove` calls this.

    python -m tests.prove [rung ...]

Exit code 1 if a rung fails. What each rung printed is kept in build/prove/.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "build" / "prove"
ALL = ("-m", "prove or not prove")
"""Long tests too."""


class Rung(NamedTuple):
    """name; what it proves; the arguments of Python that prove it, those of pytest without `-m pytest`."""

    name: str
    proves: str
    arguments: tuple[str, ...]

    @property
    def runs_pytest(self) -> bool:
        return self.arguments[0].startswith("tests/")


RUNGS = (
    Rung(
        "enumeration",
        "every rule, all drafts and coins: the target's law",
        ("tests/lossless/test_enumeration.py",),
    ),
    Rung("laws", "the engine's answers follow the table's law", ("tests/lossless/test_law.py", *ALL)),
    Rung("identity", "match: plain decoding's tokens", ("tests/lossless/test_token_identity.py", *ALL)),
    Rung(
        "model",
        "match on the real model, its kernels and cache",
        ("tests/native", "tests/lossless/test_real_model.py", *ALL),
    ),
    Rung("sequential", "the sequential test: false alarms and power", ("tests/audit", *ALL)),
    Rung("server", "256 streams lose nothing, and after a soak everything is back", ("tests/serve", *ALL)),
    Rung("bugs", "planted bugs are found by the tests", ("-m", "tests.mutation", "bugs")),
    Rung("audit", "planted bugs are found by paceline audit", ("-m", "tests.mutation", "audit")),
    Rung(
        "mutants",
        "small changes of rules, warp and stop logic are found",
        ("-m", "tests.mutation", "mutants"),
    ),
)


class Outcome(NamedTuple):
    """What came of a rung. figures: its last line, or tests passed and what they recorded."""

    held: bool
    figures: str
    seconds: float


def cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def settle(free: SimpleQueue[int]) -> None:
    """Keep this thread, and so the programs that it starts, on a core of its own. Passes whose threads wait
    for each other on cores that others use as well take many times as long."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {free.get()})


def climb(rung: Rung) -> Outcome:
    """Run one rung."""
    log, report = LOGS / f"{rung.name}.log", LOGS / f"{rung.name}.xml"
    command = [sys.executable, *rung.arguments]
    if rung.runs_pytest:
        command = [sys.executable, "-m", "pytest", "--require-model", f"--junitxml={report}", *rung.arguments]
    print(f"{rung.name}: {rung.proves} ...", file=sys.stderr, flush=True)
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        code = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT).returncode
    text = log.read_text(encoding="utf-8")
    figures = from_report(report) if rung.runs_pytest and code in (0, 1) else text.splitlines()[-1]
    if code:
        print(text[-4000:])
    return Outcome(code == 0, figures, time.monotonic() - start)


def from_report(report: Path) -> str:
    """Tests passed, and the sums of what they recorded with `record_property`; of "worst ..." the largest."""
    suite = ElementTree.parse(report).getroot()
    cases = list(suite.iter("testcase"))
    passed = sum(not any(part.tag in ("failure", "error", "skipped") for part in case) for case in cases)
    sums: dict[str, float] = {}
    for recorded in suite.iter("property"):
        if recorded.attrib["name"].startswith("hypothesis-"):  # its own, in words
            continue
        name, value = recorded.attrib["name"], float(recorded.attrib["value"])
        sums[name] = max(sums.get(name, 0), value) if name.startswith("worst") else sums.get(name, 0) + value
    figures = [f"{passed} of {len(cases)} tests passed"]
    figures += [
        f"{name} {value:,.0f}" if value.is_integer() else f"{name} {value:.1e}"
        for name, value in sums.items()
    ]
    return "; ".join(figures)


def main(names: Sequence[str]) -> int:
    """Run the rungs with these names, or all."""
    known = [rung.name for rung in RUNGS]
    if unknown := set(names) - set(known):
        sys.exit(f"there is no rung {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    LOGS.mkdir(parents=True, exist_ok=True)
    table = Table("rung", "what it proves", "outcome", "figures", "seconds", title="The proof ladder")
    held = True
    rungs = [rung for rung in RUNGS if not names or rung.name in names]
    free: SimpleQueue[int] = SimpleQueue()
    for core in cores():
        free.put(core)
    with ThreadPoolExecutor(free.qsize(), initializer=settle, initargs=(free,)) as pool:
        outcomes = pool.map(climb, rungs)
    for rung, outcome in zip(rungs, outcomes, strict=True):
        held &= outcome.held
        verdict = "[green]holds[/]" if outcome.held else "[red]FAILS[/]"
        table.add_row(rung.name, rung.proves, verdict, outcome.figures, f"{outcome.seconds:.0f}")
    Console().print(table)
    return int(not held)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
