"""Paceline on PyTorch beside transformers' own generation, on the same model object, in turns, in one run.

    python -m benchmarks.peers.workers.dequantise MODEL.gguf FOLDER   writes a GGUF file as such a folder
    python -m benchmarks.torch_cpu FOLDER [--gguf MODEL.gguf] [--limit 20] [--tokens 128] [--draft 10]

Greedy answers of a fixed length, alone: transformers plain and with prompt lookup; ours plain, with the same
drafting (looked up by runs as long, as many tokens drafted in every step) and as it comes (`auto`); with
--gguf the native target on that file too. Then batches of eight: transformers plain, ours plain and as it
comes. Each prompt, or batch, is answered by all of them in turn, in an order that moves on.

Prints medians of the ratios to transformers' prompt lookup (batches: to its plain generation) on stderr, and
one JSON object on stdout. Needs the extra paceline[torch].
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from paceline import policies
from paceline.bench import prompts as prompt_files
from paceline.bench.machine import machine, versions
from paceline.drafters import load
from paceline.engine import Engine
from paceline.pretrained import load_model, pass_cost
from paceline.sampling import SamplingParams

BATCH = 8
LONGEST = 2
"""Last tokens that are looked up, and below: transformers' own default."""

Run = Callable[[Sequence[list[int]]], list[list[int]]]
"""From prompts to answers, all as token ids."""


def transformers(model: Any, tokens: int, **options: Any) -> Run:
    """The model's own generate."""

    def run(prompts: Sequence[list[int]]) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0, **options
        )
        return [row[width:].tolist() for row in out]

    return run


def paceline(target: Any, tokens: int, drafter: str, policy: str, draft: int) -> Run:
    """Our engine."""
    made = Engine(
        target,
        {drafter: load(drafter, target.info)},
        drafter=drafter,
        policy=policies.load(policy, pass_cost(target)),
        nodes=max(16, draft),
    )
    params = SamplingParams(temperature=0, max_tokens=tokens)
    return lambda prompts: [list(done.token_ids) for done in made.generate(list(prompts), params)]


def measure(runs: dict[str, Run], work: Sequence[Sequence[list[int]]], base: str) -> dict[str, Any]:
    """Seconds of every run for every piece of work, and the medians of its speed relative to `base`."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    differing = dict.fromkeys(runs, 0)
    names = list(runs)
    for number, prompts in enumerate(work):
        answers = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = perf_counter()
            answers[name] = runs[name](prompts)
            seconds[name].append(perf_counter() - start)
        for name in names:
            differing[name] += sum(a != b for a, b in zip(answers[name], answers[base], strict=True))
        print(f"{number + 1} of {len(work)}", end="\r", file=sys.stderr)
    speed = {
        name: median(b / own for own, b in zip(seconds[name], seconds[base], strict=True)) for name in names
    }
    for name in names:
        print(f"{name:32} {speed[name]:6.2f} x  differing answers {differing[name]}", file=sys.stderr)
    return {"base": base, "seconds": seconds, "speed": speed, "differing": differing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", help="a GGUF file or known model for the native target")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--draft", type=int, default=10)
    parser.add_argument("--threads", type=int)
    chosen = parser.parse_args()
    target, tokenizer = load_model(chosen.folder, threads=chosen.threads)
    model = target.model
    model.generation_config.eos_token_id = None  # answers of one length
    lookup = {"prompt_lookup_num_tokens": chosen.draft, "max_matching_ngram_size": LONGEST}
    same = f"ngram:tokens={chosen.draft},longest={LONGEST},shortest=1"
    fixed = f"fixed:nodes={chosen.draft}"
    runs = {
        "transformers": transformers(model, chosen.tokens),
        "transformers, prompt lookup": transformers(model, chosen.tokens, **lookup),
        "ours, plain": paceline(target, chosen.tokens, "none", fixed, chosen.draft),
        "ours, the same drafting": paceline(target, chosen.tokens, same, fixed, chosen.draft),
        "ours, auto": paceline(target, chosen.tokens, "auto", "throughput", chosen.draft),
    }
    batched = {
        "transformers": runs["transformers"],
        "ours, plain": runs["ours, plain"],
        # A new engine: the other one remembers its answers to these very prompts.
        "ours, auto": paceline(target, chosen.tokens, "auto", "throughput", chosen.draft),
    }
    if chosen.gguf:
        native, _ = load_model(chosen.gguf, threads=chosen.threads)
        runs["native, auto"] = paceline(native, chosen.tokens, "auto", "throughput", chosen.draft)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt.text}])
        for prompt in prompt_files.choose(chosen.prompts, chosen.limit)
    ]
    report = {
        "alone": measure(runs, [[prompt] for prompt in prompts], "transformers, prompt lookup"),
        "batches": measure(
            batched,
            [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)],
            "transformers",
        ),
        "tokens": chosen.tokens,
        "draft": chosen.draft,
        "machine": machine(target.isa, target.threads),
        "versions": versions() | {"torch": torch.__version__},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
