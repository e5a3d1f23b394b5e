"""How far the native kernels' law is from float32 arithmetic on the same weights, over the model's own text.

    python benchmarks/law.py --prompts prompts.jsonl --limit 24 --tokens 96

Both read the same greedy answers; at every position the two next-token laws are compared. Prints one JSON
line: mean KL(float32 || native) in nats, top-1 agreement, positions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from paceline import Engine, SamplingParams
from paceline.core import NOTHING, Draft, Tree, Verdict, View
from paceline.kernels.packing import LANES
from paceline.kernels.reference import Model
from paceline.models.registry import resolve
from paceline.targets.native import NativeTarget
from paceline.targets.weights import PackedWeights, load_weights

CHUNK = 32
CONTEXT = 4096


def answer_logits(target: NativeTarget, tokens: list[int], prompt: int) -> NDArray[np.float32]:
    """Logits before every answer token, float32 [answer, V]; the slot is released."""
    rows = []
    none = [None]
    for start in range(0, len(tokens), CHUNK):
        chunk = tokens[start : start + CHUNK]
        # The first token of a chunk is pending, the rest is drafted below it and all of it is kept.
        view = View([0], [tokens[: start + 1]], [start], [start + 1], none, [0], [prompt], ["none"])
        draft = Draft.pack(view, [Tree.chain(chunk[1:]) if len(chunk) > 1 else NOTHING])
        scores = target.forward(draft, frozenset())
        rows.append(np.array(scores.logits[: len(chunk)], np.float32))
        target.commit(draft, Verdict([list(range(1, len(chunk)))], [-1]))
    target.release([0])
    return np.concatenate(rows)[prompt - 1 : -1]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def compare(
    exact: NDArray[np.float32], other: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """KL(exact || other) in nats and whether the likeliest token is the same, of logits [n, V]: both [n]."""
    p, q = log_softmax(exact), log_softmax(other)
    return (np.exp(p) * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1)


def float32_target(weights: PackedWeights, context: int) -> NativeTarget:
    """The native target around float32 arithmetic instead of the kernels."""
    target = NativeTarget(weights, context=context)
    target.model = Model(
        weights.shape,
        weights.tensors,
        windows=weights.config.windows,
        frequencies=weights.frequencies,
        cache_pages=-(-context // LANES),
        max_positions=context,
        exact_activations=True,
    )
    return target


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="name or path of a GGUF file")
    parser.add_argument("--prompts", type=Path, required=True, help="Spec-Bench style JSON lines")
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=96, help="answer tokens per prompt")
    options = parser.parse_args()

    engine = Engine.from_pretrained(options.model, drafter="none")
    native = engine.target
    float32 = float32_target(load_weights(resolve(options.model)), CONTEXT)
    lines = options.prompts.read_text().splitlines()[: options.limit]
    kl: list[float] = []
    agree: list[bool] = []
    for line in track(lines, console=Console(stderr=True), description="Comparing"):
        text = json.loads(line)["turns"][0][:2000]
        params = SamplingParams(temperature=0, max_tokens=options.tokens)
        if engine.tokenizer.has_chat_template:
            messages = [{"role": "user", "content": text}]
            prompt = engine.tokenizer.apply_chat_template(messages)
            answer = engine.generate(messages, params)[0].token_ids
        else:
            prompt = engine.tokenizer.encode(text)
            answer = engine.generate(text, params)[0].token_ids
        tokens = [*prompt, *answer]
        distance, same = compare(*(answer_logits(t, tokens, len(prompt)) for t in (float32, native)))
        kl += distance.tolist()
        agree += same.tolist()
    print(
        json.dumps(
            {
                "model": options.model,
                "isa": native.model.isa,
                "positions": len(kl),
                "mean_kl_nats": float(np.mean(kl)),
                "top1_agreement": float(np.mean(agree)),
            }
        )
    )


if __name__ == "__main__":
    main()
