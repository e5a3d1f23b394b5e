"""What speculation could bring on this machine, worked out before anything is run with a drafter.

The passes of the target are timed, over 1 to 33 tokens per request; the rest is arithmetic
(`bench.theory`): how often drafted tokens must be accepted for a budget to pay, and which budget is best at
which acceptance. It holds for drafts of one path whose tokens are accepted alike; real drafters do better
where they know when they are sure, and draft nothing elsewhere. `bench sweep` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paceline.bench import theory
from paceline.bench.machine import machine, provenance, versions
from paceline.bench.setup import Note
from paceline.errors import ConfigError

BUDGETS = (1, 2, 4, 8, 16, 32)
MOST = BUDGETS[-1]
REPEATS = 9


def run(
    *,
    model: str,
    acceptance: Sequence[float],
    draft_cost: float,
    batch: int,
    context: int,
    threads: int | None,
    note: Note,
) -> dict[str, Any]:
    """Time the passes, work it out, and return the report that `paceline advise --json` prints.

    acceptance: probabilities, 0 to 1, that a drafted token is accepted if all before it were; draft_cost: of
    one drafted token, in plain passes; batch: requests that share a pass; context: tokens in the cache.

    Raises ConfigError, ModelFileError.
    """
    from paceline.bench.step import Passes
    from paceline.models.registry import resolve
    from paceline.targets.native import NativeTarget

    note(f"loading {model}")
    target = NativeTarget.load(resolve(model), threads=threads)
    rows = sorted({batch * (drafted + 1) for drafted in (0, *BUDGETS)})
    if context + rows[-1] > target.info.max_positions:
        raise ConfigError(
            f"context {context} and passes of up to {rows[-1]} tokens are more than the "
            f"{target.info.max_positions} that {target.info.name} takes"
        )
    note(f"timing passes over {', '.join(map(str, rows))} tokens after {context}")
    seconds = Passes(target, context).medians(rows, REPEATS)
    return {
        "model": model,
        "title": target.info.name,
        "context": context,
        **advise(seconds, acceptance, draft_cost, batch),
        **provenance(model),
        "machine": machine(target.isa, target.threads),
        "versions": versions(),
    }


def advise(
    seconds: dict[int, float], acceptance: Sequence[float], draft_cost: float = 0.0, batch: int = 1
) -> dict[str, Any]:
    """The arithmetic. seconds: {tokens in a pass: seconds}, of a pass over `batch` tokens among them."""
    cost = theory.interpolated(seconds)
    plain = cost(batch)
    best = {}
    for rate in acceptance:
        drafted = theory.best_drafted(rate, cost, draft_cost, batch, MOST)
        best[f"{rate:g}"] = {
            "nodes": drafted,
            "ratio": theory.speed_up(rate, drafted, cost, draft_cost, batch),
            "tau": theory.expected_tokens(rate, drafted),
        }
    return {
        "batch": batch,
        "draft_cost": draft_cost,
        "plain_ms": plain * 1e3,
        "budgets": {
            str(drafted): {
                "pass_cost": cost(batch * (drafted + 1)) / plain,
                "break_even": theory.break_even(drafted, cost, draft_cost, batch),
                "most": theory.speed_up(1.0, drafted, cost, draft_cost, batch),
            }
            for drafted in BUDGETS
        },
        "best": best,
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    where, batch = report["machine"], report["batch"]
    lines = [
        f"{report['title']}, {batch} request{'s' if batch > 1 else ''} at a time, "
        f"{report['context']} tokens of context, a drafted token costs {report['draft_cost']:g} plain passes",
        f"{where['cpu']}, {where['isa']}, threads: {where['threads']}",
        f"a plain pass takes {report['plain_ms']:.2f} ms",
        "",
        f"{'drafted':>8}{'pass costs':>12}{'pays from':>11}{'at most':>9}",
    ]
    for drafted, entry in report["budgets"].items():
        pays = "never" if entry["break_even"] is None else f"{entry['break_even']:.0%}"
        lines.append(f"{drafted:>8}{entry['pass_cost']:12.2f}{pays:>11}{entry['most']:9.2f}")
    lines += ["", f"{'accepted':>8}{'best drafted':>14}{'times as fast':>15}{'τ':>7}"]
    for rate, entry in report["best"].items():
        lines.append(f"{float(rate):8.0%}{entry['nodes']:14}{entry['ratio']:15.2f}{entry['tau']:7.2f}")
    lines += [
        "",
        "pass costs: in plain passes. pays from: how often a drafted token must be accepted, if all before",
        "it were, for so many to pay. at most: times as fast if all are. Best drafted 0: do not draft.",
        "Worked out from timed passes for drafts of one path, without a drafter; bench sweep measures.",
    ]
    return "\n".join(lines)
