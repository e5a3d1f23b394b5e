"""PyTorch on a GPU, all in one run: is it right, what do passes cost, how fast are answers.

    python -m benchmarks.gpu [--sizes 0.1,1,3,8] [--tokens 128] [--prompts 8] > gpu.json

For each size a Llama of that shape, random weights in bfloat16, on the GPU if there is one. Then:

- identity: answers with drafts against plain ones, sampled, token for token: with `rows` (or why that is
  refused on this device) and without, where ties may be decided otherwise;
- passes: milliseconds over so many rows of one sequence and one row of so many sequences, behind a context,
  played from CUDA graphs where they are (`target` says whether) and computed call by call (eager), beside the
  floor: the bytes of the weights by the measured speed of a copy on the device;
- host: milliseconds of a plain step that are not the pass;
- answers of a fixed length, greedy, alone: transformers' own generate, plain, with a static cache (which it
  compiles on a GPU), with prompt lookup and with an assistant (the model's own first layers); the same model
  through `paceline.hf.speculative`, plain and with the same two kinds of drafting; and drafters that are told
  the answer and say so many of its tokens rightly. All answer each prompt in turn, in an order that moves on.

Prints ratios to transformers' plain generation on stderr, one JSON object on stdout. Needs paceline[torch].
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from statistics import median
from time import perf_counter
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.scale import SHAPES, Passes
from paceline.bench.machine import machine, versions
from paceline.core import NOTHING, Budget, Drawn, Step, Tree, View
from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.hf import speculative
from paceline.policies.fixed import Fixed
from paceline.sampling import SamplingParams
from paceline.stopwatch import TARGET_STAGES
from paceline.targets.torch import TorchTarget

SIZES = SHAPES | {"8": (4096, 32, 32, 8, 128, 14336, 128256)}  # Llama-3.1-8B
ASSISTANT_SHARE = 8
"""The assistant has one layer of so many."""
DRAFTED = 5
RIGHT = (0.6, 0.8, 1.0)
COPIED_BYTES = 1 << 30
COPIES = 20

Report = dict[str, Any]
Answer = Callable[[list[int]], list[int]]


def made(size: str, positions: int, device: str) -> Any:
    """A Llama of this size, random weights in bfloat16 (float32 on a CPU)."""
    hidden, layers, heads, kv_heads, head_dim, ffn, vocabulary = SIZES[size]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        max_position_embeddings=positions, tie_word_embeddings=size != "8", bos_token_id=None,
        eos_token_id=None, pad_token_id=0, initializer_range=0.05,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32 if device == "cpu" else torch.bfloat16
        )
    return model.eval()


def first_layers(model: Any) -> Any:
    """The model without most of its layers, on the same weights."""
    config = LlamaConfig(**model.config.to_dict())
    config.num_hidden_layers = -(-config.num_hidden_layers // ASSISTANT_SHARE)
    with torch.device("meta"):
        small = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    parts = dict(model.named_parameters())
    small.load_state_dict(
        {name: parts[name] for name in dict(small.named_parameters())}, strict=False, assign=True
    )
    small.tie_weights()
    small.model.rotary_emb = model.model.rotary_emb
    return small.eval()


class Told:
    """A drafter that is told the answer, and says each token of it rightly with one probability."""

    needs: frozenset[str] = frozenset()
    drawn = frozenset({Drawn.FIXED})
    branches = False

    def __init__(self, right: float) -> None:
        self._right = right
        self._random = random.Random(0)
        self.text: list[int] = []

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """A chain for the one row."""
        ((known,), (budget,)) = view.histories, budgets
        tokens = self.text[len(known) : len(known) + min(budget.nodes, budget.depth)]
        return [Tree.chain([self._said(token) for token in tokens]) if tokens else NOTHING]

    def _said(self, token: int) -> int:
        return token if self._random.random() < self._right else token + 1 - 2 * (token > 0)

    def observe(self, step: Step) -> None: ...

    def release(self, slots: Sequence[int]) -> None: ...


def told(target: TorchTarget, right: float, tokens: int, answers: dict[tuple[int, ...], list[int]]) -> Answer:
    """Answers with a drafter that knows them, from `answers` {prompt: answer}."""
    drafter = Told(right)
    engine = Engine(
        target, {"told": drafter}, drafter="told", policy=Fixed(nodes=DRAFTED), share_prefixes=False
    )
    params = SamplingParams(temperature=0, max_tokens=tokens)

    def answer(prompt: list[int]) -> list[int]:
        drafter.text = prompt + answers[tuple(prompt)]
        return list(engine.generate([prompt], params)[0].token_ids)

    return answer


def generating(model: Any, tokens: int, **options: Any) -> Answer:
    """The model's `generate`."""

    def answer(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt], device=model.device)
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, **options)
        return [int(token) for token in out[0, len(prompt) :]]

    return answer


def answers(model: Any, target: TorchTarget, prompts: Sequence[list[int]], tokens: int) -> Report:
    """{contender: seconds of each answer, its speed and how many answers differ from transformers' own}."""
    assistant = first_layers(model)
    assistant.generation_config.num_assistant_tokens = DRAFTED
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    lookup = {"prompt_lookup_num_tokens": DRAFTED, "max_matching_ngram_size": 2}
    drafted = {
        "assistant_model": assistant,
        "num_assistant_tokens": DRAFTED,
        "assistant_confidence_threshold": 0.0,
    }
    known: dict[tuple[int, ...], list[int]] = {}
    plain = generating(model, tokens)
    fixed = f"fixed:nodes={DRAFTED}"
    runs: dict[str, Answer] = {
        "transformers": plain,
        "transformers, static cache": generating(model, tokens, cache_implementation="static"),
        "transformers, prompt lookup": generating(model, tokens, **lookup),
        "transformers, assistant": generating(model, tokens, assistant_model=assistant),
        "ours, plain": generating(model, tokens, custom_generate=speculative("none", policy=fixed)),
        "ours, prompt lookup": generating(
            model, tokens, custom_generate=speculative("none", policy=fixed), **lookup
        ),
        "ours, assistant": generating(
            model, tokens, custom_generate=speculative("none", policy=fixed), **drafted
        ),
        **{f"ours, {right:.0%} right": told(target, right, tokens, known) for right in RIGHT},
    }
    known.update((tuple(prompt), plain(prompt)) for prompt in prompts)
    for run in runs.values():
        run(prompts[0])  # the first time something may be compiled, and targets are made
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    differing = dict.fromkeys(runs, 0)
    for number, prompt in enumerate(prompts):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = perf_counter()
            found = runs[name](prompt)
            seconds[name].append(perf_counter() - start)
            differing[name] += found != known[tuple(prompt)]
    report = {}
    for name in names:
        ratios = [base / own for base, own in zip(seconds["transformers"], seconds[name], strict=True)]
        report[name] = {
            "tokens_per_second": tokens / median(seconds[name]),
            "speed": median(ratios),
            "differing": differing[name],
            "seconds": seconds[name],
        }
        note(f"  {name:30} {report[name]['tokens_per_second']:8.1f} tokens/s  {median(ratios):5.2f} x")
    return report


def identity(model: Any, prompts: Sequence[list[int]], tokens: int, rows: int | None) -> Report:
    """Sampled answers with drafts against plain ones: how many, how many differ; or why there are none."""
    try:
        target = TorchTarget(model, rows=rows)
    except ConfigError as error:
        return {"refused": str(error)}
    found = []
    for drafter in ("none", "recycling:min_probability=1e-6"):
        engine = Engine(target, {"it": load(drafter, target.info)}, drafter="it")
        params = [SamplingParams(seed=seed, max_tokens=tokens) for seed in range(len(prompts))]
        found.append([done.token_ids for done in engine.generate(list(prompts), params)])
    return {"answers": len(prompts), "differing": sum(a != b for a, b in zip(*found, strict=True))}


def passes(
    targets: dict[str, TorchTarget], rows: Sequence[int], batches: Sequence[int], context: int
) -> list[Report]:
    """Milliseconds of a pass over so many rows of one sequence, and one row of so many sequences, of each
    target {key in the report: target}."""
    shapes = [*((1, n) for n in rows), *((n, 1) for n in batches if n > 1)]
    report: list[Report] = [{"batch": batch, "rows": n} for batch, n in shapes]
    for key, target in targets.items():
        timed = Passes(target)
        for slot in range(max(batches)):
            timed.extend(slot, context)
        for entry, ms in zip(report, timed.milliseconds(shapes, context), strict=True):
            entry[key] = ms
        target.release(range(max(batches)))
    return report


def host_ms(target: TorchTarget, prompt: list[int], tokens: int) -> float:
    """Milliseconds of a plain step outside the pass."""
    engine = Engine(target, {"none": load("none", target.info)}, drafter="none", share_prefixes=False)
    engine.generate([prompt], SamplingParams(temperature=0, max_tokens=tokens))
    outside = sum(taken for stage, taken in engine.watch.seconds.items() if stage not in TARGET_STAGES)
    return outside / tokens * 1e3


def copied_bytes_per_second(device: str, size: int = COPIED_BYTES) -> float:
    """Bytes read and written by a copy on the device, by the second: the fastest of several."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    goal = torch.empty_like(source)
    times = []
    for _ in range(COPIES):
        wait(device)
        start = perf_counter()
        goal.copy_(source)
        wait(device)
        times.append(perf_counter() - start)
    return 2 * size / min(times)


def wait(device: str) -> None:
    """Until the device has done what it was told."""
    if device != "cpu":
        torch.accelerator.synchronize()


def measure(size: str, chosen: argparse.Namespace) -> Report:
    """All about one model."""
    note(f"{size} billion parameters")
    longest = chosen.context + max(chosen.rows) + chosen.tokens + 64
    model = made(size, longest, chosen.device)
    rng = random.Random(0)
    prompts = [[rng.randrange(3, SIZES[size][-1]) for _ in range(64)] for _ in range(chosen.prompts)]
    cache_tokens = (max(chosen.batches) + 1) * longest
    target = TorchTarget(model, cache_tokens=cache_tokens)
    targets = {"ms": target, "eager_ms": TorchTarget(model, cache_tokens=cache_tokens, graphs=False)}
    floor = target.weight_bytes / copied_bytes_per_second(chosen.device, chosen.copied)
    report = {
        "size": size,
        "target": target.isa,
        "weight_bytes": target.weight_bytes,
        "floor_ms": floor * 1e3,
        "identity": {
            "rows=16": identity(model, prompts, chosen.tokens, 16),
            "any rows": identity(model, prompts, chosen.tokens, None),
        },
        "passes": passes(targets, chosen.rows, chosen.batches, chosen.context),
        "host_ms_per_step": host_ms(target, prompts[0], chosen.tokens),
        "answers": answers(model, target, prompts, chosen.tokens),
    }
    for entry in report["passes"]:
        floors = entry["ms"] / floor / 1e3
        note(
            f"  {entry['batch']} x {entry['rows']}: {entry['ms']:.2f} ms, {floors:.2f} floors, "
            f"{entry['eager_ms']:.2f} ms call by call"
        )
    return report


def note(text: str) -> None:
    """A remark on stderr."""
    print(text, file=sys.stderr)


def numbers(text: str) -> list[int]:
    """From "1,2,4"."""
    return [int(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="0.1,1,3,8", help=f"of {', '.join(SIZES)}, in billions")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rows", type=numbers, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--batches", type=numbers, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument(
        "--copied", type=int, default=COPIED_BYTES, help="bytes that are copied for the floor"
    )
    chosen = parser.parse_args(arguments)
    models = []
    sizes = chosen.sizes.split(",")
    if unknown := set(sizes) - SIZES.keys():
        parser.error(f"--sizes: {', '.join(sorted(unknown))}; there are {', '.join(SIZES)}")
    for size in sizes:
        models.append(measure(size, chosen))
        gc.collect()
        if chosen.device != "cpu":
            torch.cuda.empty_cache()
    gpu = torch.cuda.get_device_name() if chosen.device != "cpu" else None
    report = {
        "models": models,
        "tokens": chosen.tokens,
        "context": chosen.context,
        "drafted": DRAFTED,
        "device": gpu or "cpu",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine("torch", torch.get_num_threads()),
        "versions": versions() | {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
