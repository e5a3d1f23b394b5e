"""Finding the fastest drafter and policy for a model, a machine and a user's prompts, within a time limit.

Every prompt is answered by plain decoding and by all candidates, directly after one another; who goes first
rotates, and every answer must be plain decoding's. From `FEW` prompts on a candidate is dropped once it is
clearly not the best: when the upper end of its interval lies below the lower end of another's. So the time
goes to those that are hard to tell apart. No round is begun that would probably end after the limit; the
first is always run. No prompt comes twice, for drafters that learn would know it.

Chosen is the candidate with the highest ratio if it is faster than plain decoding for sure, else plain
decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

from paceline.bench import conversation
from paceline.bench import prompts as prompt_files
from paceline.bench.figures import FASTER, FEW, TOO_FEW, speed_up
from paceline.bench.measure import Answer, answer, same
from paceline.bench.progress import progress_bar
from paceline.bench.setup import PLAIN, WARM_UP, WARM_UP_TOKENS, Note, Setup, measured
from paceline.errors import ConfigError
from paceline.sampling import SamplingParams

THROUGHPUT = "throughput"


def candidates(drafters: Sequence[str], nodes: Sequence[int]) -> list[str]:
    """Every drafter sized by what passes cost, and with every fixed number of nodes, as drafter@policy.
    Raises ConfigError for a drafter that has a policy already."""
    if any("@" in drafter for drafter in drafters):
        raise ConfigError("tune chooses the policy: leave @POLICY out of --drafter")
    policies = (THROUGHPUT, *(f"fixed:nodes={count}" for count in nodes))
    return [f"{drafter}@{policy}" for drafter, policy in product(dict.fromkeys(drafters), policies)]


def run(
    *,
    model: str,
    drafters: list[str],
    nodes: list[int],
    prompts: Path | None,
    params: SamplingParams,
    seconds: float,
    threads: int | None,
    note: Note,
) -> dict[str, Any]:
    """Measure, and return the report that `paceline tune --json` prints, with the choice.

    nodes: fixed budgets to try; prompts: a file, None for those that come along, as many as the time allows;
    seconds: the time limit, loading the model not included; the rest as in `speed.run`.

    Raises ConfigError, ModelFileError.
    """
    names = candidates(drafters, nodes)
    chosen = prompt_files.load(prompts or prompt_files.SHIPPED)
    return measured(
        model,
        threads,
        prompts,
        note,
        lambda setup: compare(setup, names, chosen, params, seconds, note),
    )


def compare(
    setup: Setup,
    names: Sequence[str],
    prompts: Sequence[prompt_files.Prompt],
    params: SamplingParams,
    seconds: float,
    note: Note,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, Any]:
    """Measure; the report without what only `run` knows. names: candidates as drafter@policy. Of prompts of
    several turns the first is taken. Raises ConfigError."""
    tokenizer = setup.tokenizer
    params = params if params.seed is not None else replace(params, seed=0)
    first_turns = [prompt._replace(turns=prompt.turns[:1]) for prompt in prompts]
    conversation.check(first_turns, params.max_tokens, tokenizer, setup.target.info)
    begun = clock()
    engines = {name: setup.engine(name) for name in (PLAIN, *dict.fromkeys(names))}
    note(f"{len(engines) - 1} candidates beside plain decoding, at most {seconds:g} s")
    warm_up = replace(params, max_tokens=WARM_UP_TOKENS, min_tokens=0)
    for name in engines:
        unmeasured = setup.engine(name)
        answer(unmeasured, conversation.question([WARM_UP], [], tokenizer), warm_up, unmeasured.drafter)

    answers: dict[str, list[Answer]] = {name: [] for name in engines}
    left = list(engines)
    with progress_bar() as progress:
        task = progress.add_task("Tuning", total=round(seconds))
        longest = 0.0
        for turn, prompt in enumerate(first_turns):
            started = clock()
            if turn and started - begun + longest > seconds:
                break
            question = conversation.question(prompt.turns, [], tokenizer)
            first = turn % len(left)
            for name in (*left[first:], *left[:first]):
                answers[name].append(answer(engines[name], question, params, engines[name].drafter))
                progress.update(task, completed=min(round(clock() - begun), round(seconds)))
            longest = max(longest, clock() - started)
            left = _still_in(answers, left)
    entries = _entries(answers, left)
    return {
        "prompts": len(answers[PLAIN]),
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "seed": params.seed,
        "seconds": clock() - begun,
        "candidates": entries,
        **choose(entries),
    }


def _ratio(answers: Mapping[str, Sequence[Answer]], name: str) -> dict[str, Any]:
    own = answers[name]
    plain = answers[PLAIN][: len(own)]
    return speed_up([one.seconds for one in plain], [one.seconds for one in own])


def _still_in(answers: Mapping[str, Sequence[Answer]], left: Sequence[str]) -> list[str]:
    """Those of `left` that may still be the best; plain decoding always."""
    if len(answers[PLAIN]) < FEW:
        return list(left)
    ratios = {name: _ratio(answers, name) for name in left if name != PLAIN}
    bar = max((one["ratio_low"] for one in ratios.values()), default=0.0)
    return [name for name in left if name == PLAIN or ratios[name]["ratio_high"] >= bar]


def _entries(answers: Mapping[str, Sequence[Answer]], left: Sequence[str]) -> dict[str, Any]:
    plain = answers[PLAIN]
    return {
        name: {
            "prompts": len(own),
            "dropped": name not in left,
            **_ratio(answers, name),
            "different_outputs": sum(
                not same(p.completion, o.completion) for p, o in zip(plain, own, strict=False)
            ),
        }
        for name, own in answers.items()
        if name != PLAIN
    }


def choose(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The choice, as drafter and policy, and why."""
    left = {name: one for name, one in entries.items() if not one["dropped"] and not one["different_outputs"]}
    order = sorted(left, key=lambda name: -left[name]["ratio"])
    if not order or left[order[0]]["verdict"] != FASTER:
        few = any(one["verdict"] == TOO_FEW for one in left.values())
        reason = (
            "too few prompts were answered in the time to tell" if few else "no candidate is faster for sure"
        )
        return {"drafter": PLAIN, "policy": "fixed", "why": f"plain decoding: {reason}", "enough": not few}
    best = left[order[0]]
    drafter, _, policy = order[0].partition("@")
    why = (
        f"{best['ratio']:.2f} times as fast as plain decoding ({best['ratio_low']:.2f} to "
        f"{best['ratio_high']:.2f}) on {best['prompts']} prompts"
    )
    if len(order) > 1:
        second = left[order[1]]
        apart = best["ratio_low"] > second["ratio_high"]
        why += f"; next is {order[1]} with {second['ratio']:.2f}" + (
            "" if apart else ", hardly apart from it"
        )
    return {"drafter": drafter, "policy": policy, "why": why, "enough": True}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    where = report["machine"]
    lines = [
        f"{report['title']}, {report['prompts']} prompts in {report['seconds']:.0f} s, answers of at most "
        f"{report['max_tokens']} tokens, temperature {report['temperature']:g}",
        f"{where['cpu']}, {where['isa']}, threads: {where['threads']}",
        "",
        f"{'':34}{'prompts':>7}{'ratio':>7}{'95 % interval':>15}  verdict",
    ]
    entries = report["candidates"]
    for name in sorted(entries, key=lambda name: (entries[name]["dropped"], -entries[name]["ratio"])):
        one = entries[name]
        interval = f"{one['ratio_low']:.2f} to {one['ratio_high']:.2f}" if one["prompts"] >= FEW else ""
        state = one["verdict"] + (", dropped: not the best" if one["dropped"] else "")
        lines.append(f"{name[:33]:34}{one['prompts']:7}{one['ratio']:7.2f}{interval:>15}  {state}")
    chosen = report["drafter"] if report["drafter"] == PLAIN else f"{report['drafter']}@{report['policy']}"
    return "\n".join([*lines, "", f"chosen: {chosen}: {report['why']}"])
