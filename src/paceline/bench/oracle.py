"""How much faster perfect choices would be: drafters and policies judged on a recorded trace.

First every prompt is answered plainly, and at every token of the answer each drafter is asked what it would
propose there. Under `match` answers do not depend on what is drafted, so from this trace any policy can be
played afterwards: a pass at token i with a draft of which k tokens are right goes on at token i + k + 1. A
pass over n tokens costs v(n), measured on this target beforehand; what drafters cost and what reading the
prompt costs is left out everywhere. Then these are compared:

- one drafter with one node budget in every pass, the best of all budgets;
- what a real policy did with all these drafters mixed, in a run of its own;
- the best drafter in every pass, all with one budget, the best of all: chosen with knowledge of the answer
  such that the whole answer takes the least time;
- a perfect policy: of what any drafter proposes it scores the right tokens only, or fewer.

No policy that chooses among these drafters' proposals can beat the last; one that does not know the answer
stays below. Drafters learn from the answers as they grow, but not from passes over drafts, of which there are
none here: a drafter that learns from these, such as `recycling`, is judged a little too low.

Source of the idea: the oracle that chooses between drafters per step in the study of Liu et al., "Speculative
Decoding: Performance or Illusion?", 2026 (arXiv 2601.11580).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from paceline.bench import conversation
from paceline.bench import prompts as prompt_files
from paceline.bench.progress import progress_bar
from paceline.bench.recorder import Pass, Recorder
from paceline.bench.setup import Note, Setup, measured
from paceline.core import NOTHING, UNSURE, Budget, Drafter, Step, Tree, View
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.sampling import SamplingParams

BUDGETS = (1, 2, 4, 8, 16)
LISTENER = "listener"

Cost = Callable[[int], float]
"""Of a pass by the tokens in it, in any unit."""

Choices = Callable[[Mapping[str, "Proposal"]], Sequence[tuple[int, int]]]
"""What may be done at a token: (tokens scored, how many of them are right)."""


class Proposal(NamedTuple):
    """A drafter at one token of an answer.

    sizes  tokens scored, for each of BUDGETS
    right  how many of them would have been kept, for each of BUDGETS
    """

    sizes: tuple[int, ...]
    right: tuple[int, ...]


Trace = Sequence[Mapping[str, Proposal]]
"""What each drafter would have proposed at every token of one answer but the first."""


class Listener:
    """A drafter that proposes nothing and keeps what others would have proposed."""

    def __init__(self, drafters: Mapping[str, Drafter]) -> None:
        self._drafters = drafters
        self.needs: frozenset[str] = frozenset().union(*(d.needs for d in drafters.values()))
        self.whole = any(drafter.whole for drafter in drafters.values())
        self.drawn = frozenset().union(*(d.drawn for d in drafters.values()))
        self.branches = True
        self.heard: list[tuple[int, dict[str, Tree]]] = []
        """(tokens known, {drafter: its tree}) of every step that drew a further token."""

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """Nothing. There is one row."""
        trees = {name: drafter.propose(view, budgets)[0] for name, drafter in self._drafters.items()}
        if view.draws(0) and len(view.histories[0]) > view.prompts[0]:
            self.heard.append((len(view.histories[0]), trees))
        return [NOTHING]

    def observe(self, step: Step) -> None:
        """Let everybody see the step."""
        for drafter in self._drafters.values():
            drafter.observe(step)

    def release(self, slots: Sequence[int]) -> None:
        """The answer ended."""
        for drafter in self._drafters.values():
            drafter.release(slots)


def run(
    *,
    model: str,
    drafters: list[str],
    prompts: Path | None,
    limit: int | None,
    params: SamplingParams,
    threads: int | None,
    note: Note,
    policy: str = "throughput",
) -> dict[str, Any]:
    """Record and judge, and return the report that `paceline bench oracle --json` prints. Arguments are those
    of `speed.run`. Raises ConfigError, ModelFileError."""
    chosen = prompt_files.choose(prompts, limit)
    return measured(
        model,
        threads,
        prompts,
        note,
        lambda setup: compare(setup, drafters, chosen, params, note, policy),
    )


def compare(
    setup: Setup,
    drafters: Sequence[str],
    prompts: Sequence[prompt_files.Prompt],
    params: SamplingParams,
    note: Note,
    policy: str = "throughput",
) -> dict[str, Any]:
    """Record and judge; the report without what only `run` knows. Of prompts of several turns the first is
    taken. Raises ConfigError."""
    names = list(dict.fromkeys(drafters))
    if any("@" in name for name in names):
        raise ConfigError("bench oracle judges drafters without a policy: leave @POLICY out")
    params = params if params.seed is not None else replace(params, seed=0)
    first_turns = [prompt._replace(turns=prompt.turns[:1]) for prompt in prompts]
    conversation.check(first_turns, params.max_tokens, setup.tokenizer, setup.target.info)
    listener = Listener({name: setup.drafter(name) for name in names})
    plain = Engine(
        setup.target,
        {LISTENER: listener},
        drafter=LISTENER,
        tokenizer=setup.tokenizer,
        nodes=BUDGETS[-1],
        max_batch=1,
        share_prefixes=False,
    )
    recorder = Recorder(setup.policy(policy))
    real = setup.engine("+".join(names), wrap=lambda _: recorder, nodes=BUDGETS[-1], max_batch=1)
    note(f"{len(prompts)} prompts, plainly with {', '.join(names)} asked at every token, and with {policy}")
    traces: list[Trace] = []
    with progress_bar() as progress:
        for prompt in progress.track(first_turns, description="Recording"):
            listener.heard = []
            question = conversation.question(prompt.turns, [], setup.tokenizer)
            (done,) = plain.generate(question, params)
            real.generate(question, params)
            text = [*question, *done.token_ids]
            traces.append(
                [
                    {name: _proposal(tree, text[known:]) for name, tree in trees.items()}
                    for known, trees in listener.heard
                ]
            )
    if not any(traces):
        raise ConfigError(
            "the answers have one token each: there is nothing to draft; take more --max-tokens"
        )
    cost = setup.cost()
    return {
        "prompts": len(prompts),
        "tokens": sum(map(len, traces)),
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "seed": params.seed,
        "pass_cost": {str(n): cost.relative(n) / cost.relative(1) for n in (1, *(b + 1 for b in BUDGETS))},
        "policy": policy,
        **judge(traces, names, cost.relative),
        "real_policy": _real(recorder.passes, cost.relative),
    }


def _real(passes: Sequence[Pass], cost: Cost) -> dict[str, float]:
    """What the passes of a real run were worth, but for those that read prompts."""
    decoding = [item for item in passes if not item.reading]
    tokens = sum(row.accepted + 1 for item in decoding for row in item.rows)
    spent = sum(cost(item.tokens) for item in decoding)
    return {"ratio": tokens * cost(1) / spent, "tau": tokens / len(decoding)}


def judge(traces: Sequence[Trace], names: Sequence[str], cost: Cost) -> dict[str, Any]:
    """What choices are worth on traces: times as fast as plain passes, and tokens per pass."""
    drafters = {}
    for name in names:
        tried = _every_budget(traces, [name], cost)
        drafters[name] = {**_fastest(tried), "by_nodes": tried}
    return {
        "drafters": drafters,
        "best_drafter_per_step": _fastest(_every_budget(traces, names, cost)),
        "perfect_policy": _play(traces, cost, _right_only),
    }


def _every_budget(traces: Sequence[Trace], names: Sequence[str], cost: Cost) -> dict[str, dict[str, float]]:
    """What the best of these drafters in every pass is worth, by the budget that all have."""

    def at(place: int) -> Choices:
        return lambda one: [(one[name].sizes[place], one[name].right[place]) for name in names]

    return {str(budget): _play(traces, cost, at(place)) for place, budget in enumerate(BUDGETS)}


def _fastest(tried: Mapping[str, dict[str, float]]) -> dict[str, Any]:
    best = max(tried, key=lambda budget: tried[budget]["ratio"])
    return {"best_nodes": int(best), **tried[best]}


def _right_only(one: Mapping[str, Proposal]) -> list[tuple[int, int]]:
    most = max(proposal.right[-1] for proposal in one.values())
    return [(count, count) for count in range(most + 1)]


def _play(traces: Sequence[Trace], cost: Cost, choices: Choices) -> dict[str, float]:
    """Go through all answers, at every token with the choice that lets the whole answer take the least time:
    worked out from the end of the answer on."""
    spent = plain = 0.0
    tokens = passes = 0
    for trace in traces:
        left = [(0.0, 0)] * (len(trace) + 1)  # the least time from here to the end, and its passes
        for place in range(len(trace) - 1, -1, -1):
            found = []
            for size, right in choices(trace[place]):
                seconds, count = left[min(place + right + 1, len(trace))]
                found.append((seconds + cost(1 + size), count + 1))
            left[place] = min(found)
        spent += left[0][0]
        passes += left[0][1]
        tokens += len(trace)
        plain += len(trace) * cost(1)
    return {"ratio": plain / spent, "tau": tokens / passes}


def _proposal(tree: Tree, answer: Sequence[int]) -> Proposal:
    """How a tree would have fared where the answer goes on like this, cut to each budget."""
    paths: list[float] = []
    for node, parent in enumerate(tree.parents):
        confidence = tree.confidences[node] if tree.confidences else UNSURE
        paths.append(confidence * paths[parent] if parent >= 0 else confidence)
    # A parent is at least as likely as its children and comes before them: no node is kept without it.
    order = sorted(range(len(paths)), key=lambda node: -paths[node])
    sizes, right = [], []
    for budget in BUDGETS:
        cut = tree.some(sorted(order[:budget]))
        sizes.append(len(cut.tokens))
        right.append(_kept(cut, answer))
    return Proposal(tuple(sizes), tuple(right))


def _kept(tree: Tree, answer: Sequence[int]) -> int:
    reached = {-1: 0}
    for node, parent in enumerate(tree.parents):
        depth = reached.get(parent)
        if depth is not None and depth < len(answer) and tree.tokens[node] == answer[depth]:
            reached[node] = depth + 1
    return max(reached.values())


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    where = report["machine"]
    lines = [
        f"{report['title']}, {report['prompts']} prompts, {report['tokens']} tokens after their first, "
        f"temperature {report['temperature']:g}",
        f"{where['cpu']}, {where['isa']}, threads: {where['threads']}",
        "a pass over n tokens, in plain passes: "
        + ", ".join(f"{n}: {value:.2f}" for n, value in report["pass_cost"].items()),
        "",
        f"{'':42}{'nodes':>6}{'times as fast':>15}{'τ':>7}",
    ]
    for name, entry in report["drafters"].items():
        lines.append(_line(f"{name}, best budget throughout", entry["best_nodes"], entry))
    lines.append(_line(f"{report['policy']}, all of them mixed, as it ran", "", report["real_policy"]))
    each = report["best_drafter_per_step"]
    lines.append(_line("best drafter in every pass", each["best_nodes"], each))
    lines.append(_line("perfect policy", "", report["perfect_policy"]))
    lines += [
        "",
        "Played on a trace, by what passes cost; the time of drafters and of reading prompts is left out.",
        "The last two know the answers: what is between them and the policy as it ran is the most that a",
        "better one could gain with these drafters' own proposals.",
    ]
    return "\n".join(lines)


def _line(name: str, nodes: object, entry: Mapping[str, float]) -> str:
    return f"{name[:41]:42}{nodes!s:>6}{entry['ratio']:15.2f}{entry['tau']:7.2f}"
