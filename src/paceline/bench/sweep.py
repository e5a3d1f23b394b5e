"""How the speed depends on node budget, temperature, batch and context.

Every combination of temperature, batch and context is a setting. In each setting plain decoding and every
drafter with every node budget answer the same groups of prompts, one group after the other, directly after
one another; who goes first rotates. A group is as many prompts as the batch, submitted together. Contenders
keep what they learn within a setting, and start it knowing nothing.

A longer context is made of text that comes along with the package, put in front of the prompt. Of prompts of
several turns the first is taken. Node budgets are per request.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from paceline.bench import conversation, theory
from paceline.bench import prompts as prompt_files
from paceline.bench.figures import NOT_SHOWN, TOO_FEW, divide, speed_up
from paceline.bench.measure import same
from paceline.bench.progress import progress_bar
from paceline.bench.recorder import Pass, Recorder, by_position
from paceline.bench.setup import PLAIN, WARM_UP, WARM_UP_TOKENS, Note, Setup, measured
from paceline.bench.speed import promises_tokens
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.rules.match import match
from paceline.sampling import SamplingParams

if TYPE_CHECKING:
    from paceline.core import Rule
    from paceline.models.tokenizer import Tokenizer
    from paceline.results import Completion

Key = tuple[str, int]
"""A contender: drafter and node budget."""

LEAST_PASSES = 5
"""Passes of a size that must have been timed before its median counts."""


class Setting(NamedTuple):
    """What all contenders of a comparison have in common.

    temperature: of sampling; batch: requests at a time; context: tokens of a prompt at least, 0 for the
    prompts as they are
    """

    temperature: float
    batch: int
    context: int


class Lists(NamedTuple):
    """What is swept: every combination. nodes: drafted tokens per request and step."""

    nodes: Sequence[int] = (1, 2, 4, 8, 16)
    temperature: Sequence[float] = (0.0,)
    batch: Sequence[int] = (1,)
    context: Sequence[int] = (0,)

    def settings(self) -> list[Setting]:
        """All but the node budgets."""
        return [Setting(*one) for one in product(self.temperature, self.batch, self.context)]


class Group(NamedTuple):
    """Answers to prompts that were submitted together.

    seconds   of all of it
    decode_s  of the steps in which no prompt was read, and the tokens that these brought
    """

    completions: list[Completion]
    seconds: float
    decode_s: float
    decode_tokens: int


def run(
    *,
    model: str,
    drafters: list[str],
    lists: Lists,
    prompts: Path | None,
    limit: int | None,
    params: SamplingParams,
    threads: int | None,
    note: Note,
    rule: str = "match",
    policy: str = "fixed",
    allow_lossy: bool = False,
    rows: int | None = None,
) -> dict[str, Any]:
    """Sweep, and return the report that `paceline bench sweep --json` prints. Arguments are those of
    `speed.run`; the temperatures of `lists` replace that of `params`. Raises ConfigError, ModelFileError."""
    from paceline import rules

    decides = rules.load(rule, allow_lossy=allow_lossy)
    chosen = prompt_files.choose(prompts, limit)
    return measured(
        model,
        threads,
        prompts,
        note,
        lambda setup: compare(setup, drafters, lists, chosen, params, note, decides, policy),
        rows=rows,
    )


def compare(
    setup: Setup,
    drafters: Sequence[str],
    lists: Lists,
    prompts: Sequence[prompt_files.Prompt],
    params: SamplingParams,
    note: Note,
    rule: Rule = match,
    policy: str = "fixed",
) -> dict[str, Any]:
    """Sweep; the report without what only `run` knows. Raises ConfigError."""
    info, tokenizer = setup.target.info, setup.tokenizer
    promise = info.keeps(rule.promise)
    params = params if params.seed is not None else replace(params, seed=0)
    first_turns = [prompt._replace(turns=prompt.turns[:1]) for prompt in prompts]
    conversation.check(first_turns, params.max_tokens, tokenizer, info)
    settings = lists.settings()
    for setting in settings:
        if setting.batch > len(prompts):
            raise ConfigError(f"a batch of {setting.batch} needs as many prompts, there are {len(prompts)}")
        if setting.context + params.max_tokens > info.max_positions:
            raise ConfigError(
                f"a context of {setting.context} and answers of {params.max_tokens} tokens are more than the "
                f"{info.max_positions} that {info.name} takes"
            )
    contenders = [(name, nodes) for name in dict.fromkeys(drafters) for nodes in lists.nodes]
    answers = sum(len(prompts) // s.batch * s.batch for s in settings) * (len(contenders) + 1)
    note(f"{len(settings)} settings, in each plain decoding and {len(contenders)} others: {answers} answers")

    def make(name: str, nodes: int, batch: int) -> Engine:
        recorded = partial(Recorder, most=nodes)
        return setup.engine(name, rule, policy, recorded, nodes=nodes * batch, max_batch=batch)

    plain_report: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    categories = [prompt.category for prompt in first_turns]
    warm_up_question = conversation.question([WARM_UP], [], tokenizer)
    with progress_bar() as progress:
        task = progress.add_task("Measuring", total=answers)
        for setting in settings:
            chosen = replace(params, temperature=setting.temperature)
            questions = _questions(first_turns, setting.context, tokenizer)
            warm_up = replace(chosen, max_tokens=WARM_UP_TOKENS, min_tokens=0)
            for contender in ((PLAIN, 1), *contenders):
                _answer(make(*contender, setting.batch), [warm_up_question], warm_up)
            engines = {key: make(*key, setting.batch) for key in ((PLAIN, 1), *contenders)}
            groups = _take_turns(
                engines, questions, setting.batch, chosen, lambda count: progress.advance(task, count)
            )
            plain, *others = (_Contender(*key, setting, groups[key], engines[key]) for key in engines)
            pass_seconds = _pass_seconds([plain, *others])
            plain_report.append(
                {
                    **plain.figures(),
                    "pass_ms": {str(n): seconds * 1e3 for n, seconds in sorted(pass_seconds.items())},
                }
            )
            for drafter in dict.fromkeys(drafters):
                own = [other for other in others if other.name == drafter]
                rate = _acceptance(own)
                results += [one.compared(plain, categories, rate, pass_seconds) for one in own]
    return {
        "prompts": len(prompts),
        "max_tokens": params.max_tokens,
        "top_p": params.top_p,
        "seed": params.seed,
        "rule": rule.name,
        "promise": promise.value,
        "policy": policy,
        "swept": lists._asdict(),
        "plain": plain_report,
        "results": results,
        "same_outputs_promised": all(
            promises_tokens(promise, temperature) for temperature in lists.temperature
        ),
    }


class _Contender:
    """One drafter with one node budget in one setting, after it has answered."""

    def __init__(self, name: str, nodes: int, setting: Setting, groups: list[Group], engine: Engine) -> None:
        assert isinstance(engine.policy, Recorder), "the sweep's engines record"
        self.name, self.nodes, self.setting, self.groups = name, nodes, setting, groups
        self.passes = engine.policy.passes
        self.stage_seconds = dict(engine.watch.seconds)

    def figures(self) -> dict[str, Any]:
        stats = [done.stats for group in self.groups for done in group.completions]
        tokens = sum(s.tokens for s in stats)
        lengths: dict[int, int] = {}
        for one in stats:
            for length, count in one.accepted_lengths.items():
                lengths[length] = lengths.get(length, 0) + count
        return {
            **self.setting._asdict(),
            "tokens": tokens,
            "tokens_per_second": divide(tokens, sum(group.seconds for group in self.groups)),
            "decode_tokens_per_second": divide(
                sum(group.decode_tokens for group in self.groups),
                sum(group.decode_s for group in self.groups),
            ),
            "tau": divide(tokens, sum(s.passes for s in stats)),
            "acceptance_rate": divide(sum(s.accepted for s in stats), sum(s.drafted for s in stats)),
            "accepted_lengths": {str(length): lengths[length] for length in sorted(lengths)},
            "ms_per_step": {
                stage: s / len(self.passes) * 1e3 for stage, s in self.stage_seconds.items() if s
            },
        }

    def compared(
        self,
        plain: _Contender,
        categories: Sequence[str],
        acceptance: float,
        pass_seconds: dict[int, float],
    ) -> dict[str, Any]:
        own = self.figures()
        positions = by_position(self.passes)
        decode = own["decode_tokens_per_second"], plain.figures()["decode_tokens_per_second"]
        return {
            "drafter": self.name,
            "nodes": self.nodes,
            **own,
            **self._speed_up(plain, range(len(self.groups))),
            "decode_total_ratio": divide(*decode),
            "acceptance_by_position": [kept / count for kept, count in positions],
            "tried_by_position": [count for _, count in positions],
            "acceptance": acceptance,
            "theory_ratio": self._theory(acceptance, pass_seconds),
            "different_outputs": sum(
                not same(p, o)
                for p_group, o_group in zip(plain.groups, self.groups, strict=True)
                for p, o in zip(p_group.completions, o_group.completions, strict=True)
            ),
            "by_category": self._by_category(plain, categories) if self.setting.batch == 1 else {},
        }

    def _theory(self, acceptance: float, pass_seconds: dict[int, float]) -> float | None:
        """What arithmetic says: the tokens per pass that a chain of `nodes` tokens would bring, by the cost
        of a pass over the tokens that were drafted on average."""
        rows = [row for item in self.passes for row in item.rows]
        if not rows or len(pass_seconds) < 2:
            return None
        cost, batch = theory.interpolated(pass_seconds), self.setting.batch
        drafted = sum(row.drafted for row in rows) / len(rows)
        tokens = theory.expected_tokens(acceptance, self.nodes)
        return tokens * cost(batch) / cost(batch * (1 + drafted))

    def _speed_up(self, plain: _Contender, places: Sequence[int]) -> dict[str, Any]:
        return speed_up(
            [plain.groups[place].seconds for place in places],
            [self.groups[place].seconds for place in places],
        )

    def _by_category(self, plain: _Contender, categories: Sequence[str]) -> dict[str, Any]:
        return {
            name: self._speed_up(plain, [place for place, c in enumerate(categories) if c == name])
            for name in dict.fromkeys(categories)
        }


def _acceptance(contenders: Sequence[_Contender]) -> float:
    """How often the next token was drafted where a budget allowed it and all before it were kept."""
    rows = [(row, one.nodes) for one in contenders for item in one.passes for row in item.rows]
    kept = sum(row.accepted for row, _ in rows)
    return divide(kept, kept + sum(row.accepted < nodes for row, nodes in rows))


def _take_turns(
    engines: dict[Key, Engine],
    questions: Sequence[Sequence[int]],
    batch: int,
    params: SamplingParams,
    answered: Callable[[int], None],
) -> dict[Key, list[Group]]:
    """Everyone's answers to the same groups of `batch` questions; a last group that is not full stays out.

    answered: called with the number of answers after each group.
    """
    groups: dict[Key, list[Group]] = {key: [] for key in engines}
    order = list(engines)
    for turn in range(len(questions) // batch):
        group = questions[turn * batch : (turn + 1) * batch]
        first = turn % len(order)
        for key in (*order[first:], *order[:first]):
            groups[key].append(_answer(engines[key], group, params))
            answered(batch)
    return groups


def _answer(engine: Engine, questions: Sequence[Sequence[int]], params: SamplingParams) -> Group:
    policy = engine.policy
    assert isinstance(policy, Recorder), "the sweep's engines record"
    start = perf_counter()
    order = [engine.submit(question, params) for question in questions]
    done: dict[int, Completion] = {}
    decode_s, decode_tokens = 0.0, 0
    while not engine.idle:
        begun = perf_counter()
        events = engine.step()
        if not policy.passes[-1].reading:
            decode_s += perf_counter() - begun
            decode_tokens += sum(len(event.token_ids) for event in events)
        done.update((event.request, event.finish) for event in events if event.finish)
    seconds = perf_counter() - start
    return Group([done[request] for request in order], seconds, decode_s, decode_tokens)


def _questions(
    prompts: Sequence[prompt_files.Prompt], context: int, tokenizer: Tokenizer
) -> list[Sequence[int]]:
    """Token ids of the prompts, filled up at the front to `context` tokens, each with other text."""
    questions: list[Sequence[int]] = [conversation.question(p.turns, [], tokenizer) for p in prompts]
    if not context:
        return questions
    texts = [prompt.text for prompt in prompt_files.load() if prompt.category == "long"]
    filled: list[Sequence[int]] = []
    for place, question in enumerate(questions):
        text = tokenizer.encode("\n\n".join((*texts[place % len(texts) :], *texts[: place % len(texts)])))
        missing = max(0, context - len(question))
        if missing > len(text):
            raise ConfigError(
                f"a context of {context} tokens is more than the {len(text)} that can be filled"
            )
        filled.append([*text[:missing], *question])
    return filled


def _pass_seconds(contenders: Sequence[_Contender]) -> dict[int, float]:
    """{tokens in a pass: median of its seconds} over all passes in which no prompt was read."""
    seconds: dict[int, list[float]] = {}
    passes: list[Pass] = [item for contender in contenders for item in contender.passes]
    for item in passes:
        if not item.reading:
            seconds.setdefault(item.tokens, []).append(item.seconds)
    return {n: statistics.median(times) for n, times in seconds.items() if len(times) >= LEAST_PASSES}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    where = report["machine"]
    lines = [
        f"{report['title']}, {report['prompts']} prompts, answers of at most {report['max_tokens']} tokens, "
        f"rule {report['rule']} ({report['promise']}), policy {report['policy']}",
        f"{where['cpu']}, {where['isa']}, threads: {where['threads']}",
    ]
    head = (
        f"{'':16}{'nodes':>6}{'tokens/s':>10}{'ratio':>7}{'95 % interval':>15}  {'verdict':10}{'decode':>7}"
        f"{'theory':>8}{'τ':>7}{'accepted':>10}{'different':>11}"
    )
    for plain in report["plain"]:
        setting = Setting(plain["temperature"], plain["batch"], plain["context"])
        lines += [
            "",
            f"temperature {setting.temperature:g}, batch {setting.batch}, "
            + (f"context {setting.context}" if setting.context else "prompts as they are"),
            head,
            f"{'plain':22}{plain['tokens_per_second']:10.1f}{1:7.2f}{'':27}{1:7.2f}{'':8}{plain['tau']:7.2f}",
        ]
        for one in report["results"]:
            if Setting(one["temperature"], one["batch"], one["context"]) == setting:
                lines.append(_line(one))
    lines += [
        "",
        "ratio: median over groups of prompts of plain's time by the drafter's, reading the prompt included.",
        f"verdict: where the interval includes 1, no speed-up and no loss is shown ({NOT_SHOWN}); {TOO_FEW}:",
        "groups for an interval. decode: tokens per second of steps that read no prompt, by plain's. theory:",
        "what decode would be if every further token were accepted with the same probability, the average.",
    ]
    return "\n".join(lines)


def _line(one: dict[str, Any]) -> str:
    interval = f"{one['ratio_low']:.2f} to {one['ratio_high']:.2f}" if one["verdict"] != TOO_FEW else ""
    theory_ratio = "" if one["theory_ratio"] is None else f"{one['theory_ratio']:.2f}"
    return (
        f"{one['drafter'][:15]:16}{one['nodes']:6}{one['tokens_per_second']:10.1f}{one['ratio']:7.2f}"
        f"{interval:>15}  {one['verdict']:10}{one['decode_total_ratio']:7.2f}{theory_ratio:>8}"
        f"{one['tau']:7.2f}{one['acceptance_rate']:10.0%}{one['different_outputs']:11}"
    )
