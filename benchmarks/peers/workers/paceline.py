"""Paceline: plain, with a drafter, or (for laws) as float32 arithmetic on the same weights."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.law import answer_logits, float32_target
from benchmarks.peers.workers.protocol import serve
from paceline import Engine, SamplingParams
from paceline.bench.measure import answer
from paceline.targets.native import NativeTarget
from paceline.targets.weights import load_weights


class Worker:
    def __init__(self, model: str, drafter: str, threads: int, context: int, sequences: int) -> None:
        self._drafter = drafter
        self._engine = Engine.from_pretrained(
            model,
            drafter=drafter,
            threads=threads,
            context=context,
            cache_tokens=context * sequences,
            max_batch=sequences,
            share_prefixes=False,
        )

    def answer(self, prompt: list[int], tokens: int) -> dict[str, Any]:
        done = answer(self._engine, prompt, _greedy(tokens), self._drafter)
        ids = list(done.completion.token_ids)
        return {"tokens": ids, "first_s": done.first_seconds, "seconds": done.seconds}

    def batch(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        start = perf_counter()
        done = self._engine.generate(prompts, _greedy(tokens))
        seconds = perf_counter() - start
        return {"tokens": [list(one.token_ids) for one in done], "seconds": seconds}

    def logits(self, tokens: list[int], first: int, file: str) -> dict[str, Any]:
        np.save(file, answer_logits(self._engine.target, tokens, first))
        return {}


class Reference:
    """Exact arithmetic; slow, and only asked for logits."""

    def __init__(self, model: str, context: int) -> None:
        self._target: NativeTarget = float32_target(load_weights(Path(model)), context)

    def logits(self, tokens: list[int], first: int, file: str) -> dict[str, Any]:
        np.save(file, answer_logits(self._target, tokens, first))
        return {}


def _greedy(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


def make(*, reference: bool = False, **settings: Any) -> Worker | Reference:
    return Reference(**settings) if reference else Worker(**settings)


if __name__ == "__main__":
    serve(make)
