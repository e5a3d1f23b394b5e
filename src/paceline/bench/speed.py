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
- Times are of the whole answer, from the request to the last token, by a clock outside the engine. The
  figures named "decode" leave out the time up to the first token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from paceline.bench import prompts as prompt_files
from paceline.bench.machine import machine, versions
from paceline.bench.measure import Answer, answer, same
from paceline.bench.progress import progress_bar
from paceline.core import Promise, Rule
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.rules.match import match
from paceline.sampling import SamplingParams

if TYPE_CHECKING:
    from paceline.core import Target
    from paceline.models.tokenizer import Tokenizer
    from paceline.policies import PassCost

PLAIN = "none"
WARM_UP = "Name three colours of the rainbow."
WARM_UP_TOKENS = 16
RESAMPLES = 10_000
CONFIDENCE = 0.95
FEW = 5
"""An interval from fewer prompts would say nothing; the table leaves it out."""

Note = Callable[[str], None]


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
) -> dict[str, Any]:
    """Measure drafters on a model, and return the report that `paceline bench speed --json` prints.

    drafters, rule, policy: names, with options where wanted; a drafter with a policy of its own is written
    drafter@policy. prompts: a file, None for those that come along; limit: how many of them; note: called
    with remarks on what is going on. A missing seed becomes 0.

    Raises ConfigError, ModelFileError.
    """
    from paceline import rules
    from paceline.pretrained import load_model, pass_cost

    decides = rules.load(rule, allow_lossy=allow_lossy)
    chosen = prompt_files.load(prompts or prompt_files.SHIPPED)[:limit]
    note(f"loading {model}")
    target, tokenizer = load_model(model, threads=threads)
    return {
        "model": model,
        "title": target.info.name,
        **compare(
            target, tokenizer, drafters, chosen, params, note, decides, policy, lambda: pass_cost(target)
        ),
        "machine": machine(target.model.isa, target.model.threads),
        "versions": versions(),
    }


def compare(
    target: Target,
    tokenizer: Tokenizer,
    drafters: Sequence[str],
    prompts: Sequence[prompt_files.Prompt],
    params: SamplingParams,
    note: Note,
    rule: Rule = match,
    policy: str = "fixed",
    cost: Callable[[], PassCost] | None = None,
) -> dict[str, Any]:
    """Measure drafters on a target; the report without what only `run` knows. Raises ConfigError.

    cost: makes a curve of what passes cost, for each contender its own, since policies learn.
    """
    params = params if params.seed is not None else replace(params, seed=0)
    questions = [_tokens(prompt, tokenizer, target) for prompt in prompts]
    # The baseline is always there; naming it as a drafter as well shows how much noise there is.
    contenders = ["plain", *dict.fromkeys(drafters)]
    note(f"warming up, then {len(prompts)} prompts with {', '.join(contenders)}")
    warm_up = replace(params, max_tokens=WARM_UP_TOKENS, min_tokens=0)

    def engines() -> dict[str, Engine]:
        return {name: _engine(target, tokenizer, name, rule, policy, cost) for name in contenders}

    for engine in engines().values():
        answer(engine, _question(WARM_UP, tokenizer), warm_up, engine.drafter)
    answers = _measure(engines(), prompts, questions, params)
    return _report(answers, [prompt.category for prompt in prompts], params, rule, policy)


def _measure(
    engines: Mapping[str, Engine],
    prompts: Sequence[prompt_files.Prompt],
    questions: Sequence[Sequence[int]],
    params: SamplingParams,
) -> dict[str, list[Answer]]:
    """Every contender's answers, in the order of the prompts."""
    contenders = list(engines)
    answers: dict[str, list[Answer]] = {name: [] for name in contenders}
    categories = list(dict.fromkeys(prompt.category for prompt in prompts))
    turns: Counter[str] = Counter()
    with progress_bar() as progress:
        task = progress.add_task("Measuring", total=len(prompts) * len(contenders))
        for prompt, question in zip(prompts, questions, strict=True):
            # Within each category everyone goes first equally often, and categories start differently.
            first = (turns[prompt.category] + categories.index(prompt.category)) % len(contenders)
            turns[prompt.category] += 1
            for name in (*contenders[first:], *contenders[:first]):
                engine = engines[name]
                answers[name].append(answer(engine, question, params, engine.drafter))
                progress.advance(task)
    return answers


def _engine(
    target: Target,
    tokenizer: Tokenizer,
    contender: str,
    rule: Rule,
    policy: str,
    cost: Callable[[], PassCost] | None,
) -> Engine:
    from paceline import drafters, policies

    drafter, _, own = contender.partition("@")
    drafter = PLAIN if drafter == "plain" else drafter
    decides = policies.load(own or policy, cost and cost())
    return Engine(
        target,
        {drafter: drafters.load(drafter, target.info)},
        drafter=drafter,
        tokenizer=tokenizer,
        rule=rule,
        policy=decides,
    )


def _question(text: str, tokenizer: Tokenizer) -> list[int]:
    if tokenizer.has_chat_template:
        return tokenizer.apply_chat_template([{"role": "user", "content": text}])
    return tokenizer.encode(text)


def _tokens(prompt: prompt_files.Prompt, tokenizer: Tokenizer, target: Target) -> list[int]:
    tokens = _question(prompt.text, tokenizer)
    if len(tokens) >= target.info.max_positions:
        raise ConfigError(
            f"prompt {prompt.id} has {len(tokens)} tokens; {target.info.name} takes up to "
            f"{target.info.max_positions - 1}"
        )
    return tokens


def _report(
    answers: dict[str, list[Answer]],
    categories: Sequence[str],
    params: SamplingParams,
    rule: Rule,
    policy: str,
) -> dict[str, Any]:
    plain = answers["plain"]
    rows_of = {name: [i for i, c in enumerate(categories) if c == name] for name in dict.fromkeys(categories)}
    drafters = {}
    for name, own in answers.items():
        if name != "plain":
            by_category = {
                category: _compared([plain[i] for i in rows], [own[i] for i in rows])
                for category, rows in rows_of.items()
            }
            drafters[name] = {**_compared(plain, own), "by_category": by_category}
    return {
        "prompts": len(plain),
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "seed": params.seed,
        "rule": rule.name,
        "policy": policy,
        "promise": rule.promise.value,
        "same_outputs_promised": promises_tokens(rule, params),
        "plain": _figures(plain),
        "drafters": drafters,
    }


def promises_tokens(rule: Rule, params: SamplingParams) -> bool:
    """Whether outputs that differ from plain decoding's are a fault: not where other tokens are drawn from
    the same law, and not where nothing is promised."""
    return rule.promise is Promise.TOKENS or (rule.promise is Promise.LAW and params.temperature == 0)


def _figures(answers: Sequence[Answer]) -> dict[str, Any]:
    """How fast these answers came, and where the time after the first token went."""
    stats = [item.completion.stats for item in answers]
    tokens, passes = sum(s.tokens for s in stats), sum(s.passes for s in stats)
    drafted, accepted = sum(s.drafted for s in stats), sum(s.accepted for s in stats)
    decode_s = sum(item.decode_s for item in answers)
    target, draft = sum(item.target_s for item in answers), sum(item.draft_s for item in answers)
    shares = {"target": target, "draft": draft, "other": decode_s - target - draft}
    return {
        "prompts": len(answers),
        "tau": _divide(tokens, passes),
        "acceptance_rate": _divide(accepted, drafted),
        "tokens": tokens,
        "tokens_per_second": _divide(tokens, sum(item.seconds for item in answers)),
        "decode_tokens_per_second": _divide(tokens - len(answers), decode_s),
        "share_of_decode_time": {name: _divide(seconds, decode_s) for name, seconds in shares.items()},
    }


def _compared(plain: Sequence[Answer], own: Sequence[Answer]) -> dict[str, Any]:
    """The figures of a drafter's answers beside plain decoding's of the same prompts.

    ratio is the median over prompts of plain's time by the drafter's; low and high bound its bootstrap
    interval. total_ratio compares the sums, so that long answers weigh more. Above 1 is faster.
    """
    whole = np.array([p.seconds / o.seconds for p, o in zip(plain, own, strict=True)])
    decode = np.array(
        [p.decode_s / o.decode_s for p, o in zip(plain, own, strict=True) if min(p.decode_s, o.decode_s) > 0]
    )
    low, high = bootstrap_interval(whole)
    return {
        **_figures(own),
        "ratio": float(np.median(whole)),
        "ratio_low": low,
        "ratio_high": high,
        "total_ratio": sum(p.seconds for p in plain) / sum(o.seconds for o in own),
        "decode_ratio": float(np.median(decode)) if len(decode) else None,
        "decode_total_ratio": _divide(sum(p.decode_s for p in plain), sum(o.decode_s for o in own)),
        "different_outputs": sum(
            not same(p.completion, o.completion) for p, o in zip(plain, own, strict=True)
        ),
    }


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % percentile-bootstrap interval of the median of values [n]; the same numbers every time."""
    picks = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(values[picks], axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _divide(above: float, below: float) -> float:
    """0 where there was nothing to divide by: no drafts, or answers of one token."""
    return above / below if below else 0.0


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    plain, where = report["plain"], report["machine"]
    lines = [
        f"{report['title']}, {report['prompts']} prompts, {report['max_tokens']} tokens at most, "
        f"temperature {report['temperature']:g}, rule {report['rule']} ({report['promise']})",
        f"{where['cpu']}, {where['isa']}, threads: {where['threads']}",
        "",
        f"{'':16}{'tokens/s':>9}{'ratio':>7}{'95 % interval':>15}{'total':>7}{'decode':>8}{'τ':>7}"
        f"{'accepted':>10}{'outside':>9}{'different':>11}",
        f"{'plain':16}{plain['tokens_per_second']:9.1f}{1:7.2f}{'':15}{1:7.2f}{1:8.2f}{plain['tau']:7.2f}{'':10}"
        f"{_outside(plain):>9}",
    ]
    lines += [_line(name, entry) for name, entry in report["drafters"].items()]
    for name, entry in report["drafters"].items():
        lines += ["", f"{name} by category"]
        lines += [_line(f"  {category}", part) for category, part in entry["by_category"].items()]
    lines += [
        "",
        "tokens/s: of whole answers, reading the prompt included. ratio: median over prompts of plain's",
        "time by the drafter's; total: plain's time of all prompts by the drafter's; decode: as ratio,",
        "without the time to the first token. outside: share of the time after the first token that is",
        f"not the target pass. different: outputs that are not plain decoding's, {_expected(report)}",
    ]
    return "\n".join(lines)


def _expected(report: dict[str, Any]) -> str:
    if report["same_outputs_promised"]:
        return "which must be 0."
    if report["promise"] == Promise.LAW.value:
        return "as is to be\nexpected: this rule promises the same law, not the same tokens."
    return "as is to be\nexpected: this rule is lossy and promises nothing."


def _line(name: str, entry: dict[str, Any]) -> str:
    interval = f"{entry['ratio_low']:.2f} to {entry['ratio_high']:.2f}"
    return (
        f"{name[:15]:16}{entry['tokens_per_second']:9.1f}{entry['ratio']:7.2f}"
        f"{interval if entry['prompts'] >= FEW else '':>15}{entry['total_ratio']:7.2f}"
        f"{entry['decode_ratio'] or 1:8.2f}{entry['tau']:7.2f}{entry['acceptance_rate']:10.0%}"
        f"{_outside(entry):>9}{entry['different_outputs']:11}"
    )


def _outside(entry: dict[str, Any]) -> str:
    shares = entry["share_of_decode_time"]
    return f"{shares['draft'] + shares['other']:.1%}"
