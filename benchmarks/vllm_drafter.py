"""An exported drafter in vLLM on the CPU, beside the same drafter here.

    python -m benchmarks.vllm_drafter FOLDER --prompts prompts.jsonl --limit 13 --tokens 64

Each prompt is answered greedily by vLLM plainly, by vLLM with the drafter, and by Paceline with it, as chains
of the same length that are never cut. Printed, and written as JSON: how many drafted tokens each accepts; and
where vLLM's two answers differ, by how much exact arithmetic prefers one token to the other. Arithmetic in
bfloat16 rounds otherwise in passes of several tokens, and may break a tie in another way: a distance of no
more than TIE counts as one. vLLM gets an environment of its own below build/peers/. Exit code 1: the two
acceptances are further apart than CLOSE, or a difference was no tie.
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.law import answer_logits, float32_target
from benchmarks.peers.adapters.vllm import environment_of
from benchmarks.peers.contender import Launch, Plan
from benchmarks.peers.environment import BUILD, safetensors
from benchmarks.peers.process import Process
from paceline import Engine, SamplingParams
from paceline.bench.prompts import choose
from paceline.models.cache import write_atomically
from paceline.models.drafter_kinds import kind_of
from paceline.models.registry import resolve
from paceline.models.tokenizer import Tokenizer
from paceline.targets.weights import load_weights
from paceline.trained.exports import export

TIE = 0.25
"""Of logits of about 16 to 32: two steps of bfloat16 there."""
CLOSE = 0.05
"""The two acceptances may differ by this share."""


def main() -> int:
    options = _options()
    file = resolve(options.model)
    weights = load_weights(file)
    tokenizer = Tokenizer.from_json(weights.tokenizer_json)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt.text}])
        for prompt in choose(options.prompts, options.limit)
    ]
    context = max(map(len, prompts)) + options.tokens + options.depth
    console = Console(stderr=True, highlight=False)
    plan = Plan(
        model=file,
        own_weights="",
        context=context,
        threads=options.threads,
        drafters=(),
        assistant=None,
        llama_pythons=(),
        llama_servers=(),
        chosen=("vllm",),
        note=console.print,
    )
    python = environment_of(plan)
    target = safetensors(plan, "vllm", python)
    exported = export(options.folder, "vllm", BUILD / "vllm-drafter", str(target))
    # As the command says that `paceline export` prints.
    drafting = {**json.loads(shlex.split(exported.command)[-1]), "num_speculative_tokens": options.depth}
    answers: dict[str, list[list[int]]] = {}
    counted: dict[str, Any] = {}
    for name, speculative in (("plain", None), ("drafter", drafting)):
        console.print(f"vLLM {name}")
        settings = {**plan.common, "model": str(target), "speculative": speculative, "counts": True}
        with Process(Launch(python, "vllm", settings), f"vLLM drafter {name}") as vllm:
            answers[name] = [vllm.answer(prompt, options.tokens)["tokens"] for prompt in prompts]
            counted = vllm.ask("counters")
    theirs = [count / counted["drafts"] for count in counted["accepted"]]
    ours = _ours(options, prompts)
    gaps = _gaps(file, context, prompts, answers)
    report: dict[str, Any] = {
        "prompts": len(prompts),
        "tokens": options.tokens,
        "depth": options.depth,
        "accepted_at_least": {"vllm": theirs, "paceline": ours},
        "tau": {"vllm": 1 + sum(theirs), "paceline": 1 + sum(ours)},
        "different": [gap for gap in gaps if gap is not None],
    }
    with write_atomically(options.out) as out:
        out.write(json.dumps(report, indent=1).encode())
    print(json.dumps(report))
    apart = abs(report["tau"]["vllm"] - report["tau"]["paceline"]) / report["tau"]["paceline"]
    return int(apart > CLOSE or any(gap > TIE for gap in report["different"]))


def _ours(options: argparse.Namespace, prompts: list[list[int]]) -> list[float]:
    """The share of drafts of which 1, 2, ... tokens or more were accepted."""
    widths = "x".join("1" * options.depth)
    drafter = f"{kind_of(options.folder)}:model={options.folder},widths={widths},min_probability=0"
    engine = Engine.from_pretrained(
        options.model, drafter=drafter, policy="fixed", threads=options.threads, share_prefixes=False
    )
    lengths = np.zeros(options.depth + 1)
    params = SamplingParams(temperature=0, max_tokens=options.tokens, ignore_eos=True)
    for prompt in prompts:
        [done] = engine.generate([prompt], params)
        for drafted, kept in done.stats.drafts.items():
            if drafted == options.depth:  # not the shorter ones at the end of an answer
                for length, passes in kept.items():
                    lengths[length] += passes
    return [float(lengths[depth:].sum() / lengths.sum()) for depth in range(1, options.depth + 1)]


def _gaps(
    file: Path, context: int, prompts: list[list[int]], answers: dict[str, list[list[int]]]
) -> list[float | None]:
    """How far two tokens' logits are apart in exact arithmetic where answers first differ; None where they
    are the same."""
    exact = float32_target(load_weights(file), context)
    gaps: list[float | None] = []
    for prompt, plain, drafted in zip(prompts, answers["plain"], answers["drafter"], strict=True):
        first = next(
            (at for at, pair in enumerate(zip(plain, drafted, strict=True)) if pair[0] != pair[1]), None
        )
        if first is None:
            gaps.append(None)
            continue
        row = answer_logits(exact, [*prompt, *plain[: first + 1]], len(prompt))[first]
        gaps.append(float(abs(row[plain[first]] - row[drafted[first]])))
    return gaps


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a drafter that vLLM loads")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--limit", type=int, default=13)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--depth", type=int, default=3, help="drafted tokens of a pass")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/vllm_drafter.json"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
