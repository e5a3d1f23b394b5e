"""Drafting while the target verifies (`draft:ahead`): on this machine's cores, and beside a target elsewhere.

    python -m benchmarks.ahead                          both models on one thread each, and a pause of 40 ms
    python -m benchmarks.ahead --pause 0 --threads 4    four threads for the target, one for the draft model

With a pause the target computes and then does nothing for so long: a stand-in for one that computes on a
device of its own and takes that much longer. Greedy, always drafting (policy `fixed`); the kinds of drafting
take turns prompt by prompt, plain decoding among them. Every answer is compared with plain decoding's.

Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from threading import current_thread, main_thread
from time import perf_counter, sleep
from typing import Any

from paceline import kernels
from paceline.bench.machine import machine, versions
from paceline.bench.prompts import choose
from paceline.core import Draft, Scores
from paceline.drafters import load
from paceline.engine import Engine
from paceline.pretrained import load_model, offers
from paceline.results import Completion
from paceline.sampling import SamplingParams

KINDS = ("", ",ahead=1", ",ahead=2", ",ahead=4", ",ahead=1,wait=false", ",ahead=4,wait=false")


class Counted:
    """A draft model that counts its passes: those that the engine waits for, and those in the thread."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.passes = {"waited_for": 0, "meanwhile": 0}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        """As the model."""
        self.passes["waited_for" if current_thread() is main_thread() else "meanwhile"] += 1
        scores: Scores = self._model.forward(draft, taps)
        return scores


class Elsewhere:
    """A target that does nothing for a while after each pass."""

    def __init__(self, target: Any, pause: float) -> None:
        self._target, self._pause = target, pause

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        """As the target, later."""
        scores: Scores = self._target.forward(draft, taps)
        sleep(self._pause)
        return scores


def measure(asked: argparse.Namespace, pause: float) -> dict[str, Any]:
    """Of each kind: tokens per second and per pass, the draft model's passes per pass of the target, and
    whether all answers were plain decoding's."""
    target, tokenizer = load_model(asked.target, threads=asked.threads)
    offered = offers(target, tokenizer)
    models: list[Counted] = []

    def counted(*what: Any, **how: Any) -> tuple[Counted, Any]:
        model, own = offered["load_model"](*what, **how)
        models.append(Counted(model))
        return models[-1], own

    spec = f"draft:model={asked.draft},vocabulary=shared,threads=1,widths={asked.widths}"
    names = [*(spec + kind for kind in KINDS), "none"]
    drafters = {name: load(name, target.info, **offered | {"load_model": counted}) for name in names}
    passes = dict(zip(names, (model.passes for model in models), strict=False))
    engine = Engine(Elsewhere(target, pause), drafters, drafter="none", tokenizer=tokenizer)
    params = SamplingParams(temperature=0, max_tokens=asked.max_tokens)
    seconds: dict[str, float] = dict.fromkeys(names, 0.0)
    done: dict[str, list[Completion]] = {name: [] for name in names}
    for prompt in choose(None, asked.limit):
        for name in names:
            began = perf_counter()
            done[name] += engine.generate(prompt.text, params, name)
            seconds[name] += perf_counter() - began
    plain = [one.token_ids for one in done["none"]]
    report = {}
    for name in names:
        tokens = sum(one.stats.tokens for one in done[name])
        scored = sum(one.stats.passes for one in done[name])
        report[name.removeprefix(spec + ",") if name != spec else "ahead=0"] = {
            "tokens_per_second": round(tokens / seconds[name], 2),
            "tokens_per_pass": round(tokens / scored, 3),
            "draft_passes": {when: round(n / scored, 3) for when, n in passes.get(name, {}).items()},
            "as_plain": [one.token_ids for one in done[name]] == plain,
        }
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", default="gemma3-270m")
    parser.add_argument("--draft", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=1, help="of the target; the draft model has one")
    parser.add_argument("--widths", default="1x1x1x1")
    parser.add_argument("--pause", type=float, nargs="+", default=[0, 40], help="milliseconds")
    parser.add_argument("--limit", type=int, default=8, help="prompts")
    parser.add_argument("--max-tokens", type=int, default=64)
    asked = parser.parse_args(arguments)
    by_pause = {f"{pause:g} ms": measure(asked, pause / 1000) for pause in asked.pause}
    here = machine(kernels.chosen(), asked.threads)
    print(json.dumps({"machine": here, "versions": versions(), **vars(asked), "by_pause": by_pause}))


if __name__ == "__main__":
    main()
