"""Drafters against plain decoding: the same prompts, the same target, the same run.

How it is measured, so that the comparison is fair:

- One target serves all contenders, each with an engine of its own. For every prompt each contender answers
  once, alone, directly after one another, so that a machine that gets slower or faster does so for all; who
  goes first rotates.
- Before that each contender answers a prompt that is not among the measured ones, with drafters that are
  then thrown away: the measured ones start knowing nothing.
- Drafters that learn from earlier answers learn across prompts, as in real use, but each from its own
  requests only: what plain decoding or another drafter answered does not reach it, and no prompt comes
  twice. So nobody is ever drafted for from an earlier run of the same prompt.
- A prompt of several turns is played out: a turn stands behind plain decoding's answers to the earlier ones.
- Times are of the whole answer, from the request to the last token, by a clock outside the engine. The
  figures named "decode" leave out the time up to the first token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.bench import conversation
from paceline.bench import prompts as prompt_files
from paceline.bench.figures import FEW, Turns, compared, figures
from paceline.bench.measure import Answer, answer
from paceline.bench.progress import progress_bar
from paceline.bench.setup import PLAIN, WARM_UP, WARM_UP_TOKENS, Note, Setup, measured
from paceline.core import Promise, Rule
from paceline.rules.match import match
from paceline.sampling import SamplingParams

if TYPE_CHECKING:
    from paceline.engine import Engine
    from paceline.models.tokenizer import Tokenizer


def run(
    *,
    model: str,
    drafters: list[str],
    prompts: Path | None,
    limit: int | None,
    params: SamplingParams,
    threads: int | None,
    note: Note,
    rule: str = "match",
    policy: str = "throughput",
    allow_lossy: bool = False,
    rows: int | None = None,
) -> dict[str, Any]:
    """Measure drafters on a model, and return the report that `paceline bench speed --json` prints.

    drafters, rule, policy: names, with options where wanted; a drafter with a policy of its own is written
    drafter@policy. prompts: a file, None for those that come along; limit: how many of them (see
    `prompts.choose`); note: called with remarks on what is going on. A missing seed becomes 0.

    Raises ConfigError, ModelFileError.
    """
    from paceline import rules

    decides = rules.load(rule, allow_lossy=allow_lossy)
    chosen = prompt_files.choose(prompts, limit)
    return measured(
        model,
        threads,
        prompts,
        note,
        lambda setup: compare(setup, drafters, chosen, params, note, decides, policy),
        rows=rows,
    )


def compare(
    setup: Setup,
    drafters: Sequence[str],
    prompts: Sequence[prompt_files.Prompt],
    params: SamplingParams,
    note: Note,
    rule: Rule = match,
    policy: str = "fixed",
) -> dict[str, Any]:
    """Measure drafters; the report without what only `run` knows. Raises ConfigError."""
    tokenizer = setup.tokenizer
    params = params if params.seed is not None else replace(params, seed=0)
    conversation.check(prompts, params.max_tokens, tokenizer, setup.target.info)
    # The baseline is always there; naming it as a drafter as well shows how much noise there is.
    contenders = ["plain", *dict.fromkeys(drafters)]
    turns = sum(len(prompt.turns) for prompt in prompts)
    note(f"warming up, then {len(prompts)} prompts, {turns} answers, with {', '.join(contenders)}")
    warm_up = replace(params, max_tokens=WARM_UP_TOKENS, min_tokens=0)

    def engines() -> dict[str, Engine]:
        return {name: setup.engine(PLAIN if name == "plain" else name, rule, policy) for name in contenders}

    for engine in engines().values():
        answer(engine, conversation.question([WARM_UP], [], tokenizer), warm_up, engine.drafter)
    answers = _measure(engines(), tokenizer, prompts, params)
    categories = [prompt.category for prompt in prompts]
    return _report(answers, categories, params, rule, setup.target.info.keeps(rule.promise), policy)


def _measure(
    engines: Mapping[str, Engine],
    tokenizer: Tokenizer,
    prompts: Sequence[prompt_files.Prompt],
    params: SamplingParams,
) -> dict[str, list[Turns]]:
    """Every contender's answers, in the order of the prompts."""
    contenders = list(engines)
    answers: dict[str, list[Turns]] = {name: [] for name in contenders}
    categories = list(dict.fromkeys(prompt.category for prompt in prompts))
    seen: Counter[str] = Counter()
    with progress_bar() as progress:
        task = progress.add_task("Measuring", total=sum(len(p.turns) for p in prompts) * len(contenders))
        for prompt in prompts:
            # Within each category everyone goes first equally often, and categories start differently.
            first = (seen[prompt.category] + categories.index(prompt.category)) % len(contenders)
            seen[prompt.category] += 1
            own: dict[str, list[Answer]] = {name: [] for name in contenders}
            for _ in prompt.turns:
                said = [item.completion.text for item in own["plain"]]
                question = conversation.question(prompt.turns, said, tokenizer)
                for name in (*contenders[first:], *contenders[:first]):
                    engine = engines[name]
                    own[name].append(answer(engine, question, params, engine.drafter))
                    progress.advance(task)
            for name, turns in own.items():
                answers[name].append(turns)
    return answers


def _report(
    answers: dict[str, list[Turns]],
    categories: Sequence[str],
    params: SamplingParams,
    rule: Rule,
    promise: Promise,
    policy: str,
) -> dict[str, Any]:
    plain = answers["plain"]
    rows_of = {name: [i for i, c in enumerate(categories) if c == name] for name in dict.fromkeys(categories)}
    drafters = {}
    for name, own in answers.items():
        if name != "plain":
            by_category = {
                category: compared([plain[i] for i in rows], [own[i] for i in rows])
                for category, rows in rows_of.items()
            }
            drafters[name] = {**compared(plain, own), "by_category": by_category}
    return {
        "prompts": len(plain),
        "answers": sum(map(len, plain)),
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "seed": params.seed,
        "rule": rule.name,
        "policy": policy,
        "promise": promise.value,
        "same_outputs_promised": promises_tokens(promise, params.temperature),
        "plain": figures(plain),
        "drafters": drafters,
    }


def promises_tokens(promise: Promise, temperature: float) -> bool:
    """Whether outputs that differ from plain decoding's are a fault: not where ties may fall either way, not
    where other tokens are drawn from the same law, and not where nothing is promised."""
    return promise is Promise.TOKENS or (promise is Promise.LAW and temperature == 0)


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    plain, where = report["plain"], report["machine"]
    lines = [
        f"{report['title']}, {report['prompts']} prompts, {report['answers']} answers of at most "
        f"{report['max_tokens']} tokens, temperature {report['temperature']:g}, rule {report['rule']} "
        f"({report['promise']})",
        f"{where['cpu']}, {where['isa']}, threads: {where['threads']}",
        "",
        f"{'':16}{'tokens/s':>9}{'ratio':>7}{'95 % interval':>15}  {'verdict':9}{'total':>7}{'decode':>8}"
        f"{'τ':>7}{'accepted':>10}{'outside':>9}{'different':>11}",
        f"{'plain':16}{plain['tokens_per_second']:9.1f}{1:7.2f}{'':26}{1:7.2f}{1:8.2f}{plain['tau']:7.2f}"
        f"{'':10}{_outside(plain):>9}",
    ]
    lines += [_line(name, entry) for name, entry in report["drafters"].items()]
    for name, entry in report["drafters"].items():
        lines += ["", f"{name} by category"]
        lines += [_line(f"  {category}", part) for category, part in entry["by_category"].items()]
    lines += [
        "",
        "tokens/s: of whole answers, reading the prompt included. ratio: median over prompts of plain's",
        "time by the drafter's. verdict: where the interval includes 1, no speed-up and no loss is shown;",
        f"fewer than {FEW} prompts are too few to tell. total: plain's time of all prompts by the drafter's;",
        "decode: as ratio, without the time to the first token. outside: share of the time after the first",
        f"token that is not the target pass. different: outputs that are not plain's, {_expected(report)}",
    ]
    return "\n".join(lines)


def _expected(report: dict[str, Any]) -> str:
    if report["same_outputs_promised"]:
        return "which must be 0."
    if report["promise"] == Promise.TIES.value:
        return "as may\nhappen: on this target rounding decides between tokens that are all but tied."
    if report["promise"] == Promise.LAW.value:
        return "as is to be\nexpected: this rule promises the same law, not the same tokens."
    return "as is to be\nexpected: this rule is lossy and promises nothing."


def _line(name: str, entry: dict[str, Any]) -> str:
    interval = f"{entry['ratio_low']:.2f} to {entry['ratio_high']:.2f}"
    return (
        f"{name[:15]:16}{entry['tokens_per_second']:9.1f}{entry['ratio']:7.2f}"
        f"{interval if entry['prompts'] >= FEW else '':>15}  {entry['verdict']:9}{entry['total_ratio']:7.2f}"
        f"{entry['decode_ratio'] or 1:8.2f}{entry['tau']:7.2f}{entry['acceptance_rate']:10.0%}"
        f"{_outside(entry):>9}{entry['different_outputs']:11}"
    )


def _outside(entry: dict[str, Any]) -> str:
    shares = entry["share_of_decode_time"]
    return f"{shares['draft'] + shares['other']:.1%}"
