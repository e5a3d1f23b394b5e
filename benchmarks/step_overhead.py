"""Microseconds per step that Paceline spends outside the target, at batch 1, greedy.

The target here costs nothing: it looks up ready logits of a vocabulary of 49,152 tokens, whose greedy
answer is a text that repeats itself now and then, as real text does.

    python benchmarks/step_overhead.py [--steps 2000] [--drafter none,suffix,auto] [--policy throughput]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

import numpy as np

from paceline import policies
from paceline.core import Draft, Scores, TargetInfo, Verdict
from paceline.drafters import load
from paceline.engine import Engine
from paceline.sampling import SamplingParams
from paceline.stopwatch import TARGET_STAGES

VOCABULARY = 49152
WORDS = 600


class Ready:
    """A target whose greedy answer is a given text, from the word number `first` on."""

    info = TargetInfo("ready", VOCABULARY, 1 << 20, 1 << 21, 16, frozenset())

    def __init__(self, text: Sequence[int]) -> None:
        self._text = np.array(text)
        self.first = 0
        self._logits = np.random.default_rng(0).normal(size=(WORDS, VOCABULARY)).astype(np.float32)
        self._logits[np.arange(WORDS), np.arange(WORDS)] = 30

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        return Scores(self._logits[self._text[self.first + draft.positions[draft.scored] + 1]])

    def commit(self, draft: Draft, verdict: Verdict) -> None: ...

    def release(self, slots: Sequence[int]) -> None: ...


def text(length: int) -> list[int]:
    """Phrases of 2 to 12 words, some of them said before."""
    rng = random.Random(0)
    phrases = [[rng.randrange(WORDS) for _ in range(rng.randint(2, 12))] for _ in range(30)]
    words: list[int] = []
    while len(words) < length:
        words += rng.choice(phrases) if rng.random() < 0.5 else [rng.randrange(WORDS) for _ in range(6)]
    return words[:length]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--drafter", default="none,ngram,suffix,auto")
    parser.add_argument("--policy", default="throughput")
    parser.add_argument("--prompt", type=int, default=400, help="tokens of prompt")
    arguments = parser.parse_args()
    answer = 128
    words = text(arguments.prompt + (arguments.steps + 2) * answer)
    print(f"{'drafter':10}{'tau':>6}{'us/step':>9}   of which")
    for name in arguments.drafter.split(","):
        target = Ready(words)
        engine = Engine(
            target, {name: load(name, target.info)}, drafter=name, policy=policies.load(arguments.policy)
        )
        params = SamplingParams(temperature=0, max_tokens=answer)
        tokens = passes = 0
        while passes < arguments.steps:
            done = engine.generate(words[target.first : target.first + arguments.prompt], params)[0]
            target.first += answer
            tokens += done.stats.tokens
            passes += done.stats.passes
        stages = {stage: s / passes * 1e6 for stage, s in engine.watch.seconds.items()}
        outside = {stage: us for stage, us in stages.items() if stage not in TARGET_STAGES}
        parts = ", ".join(f"{stage} {us:.0f}" for stage, us in outside.items())
        print(f"{name:10}{tokens / passes:6.2f}{sum(outside.values()):9.0f}   {parts}")


if __name__ == "__main__":
    main()
