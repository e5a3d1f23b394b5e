"""All architectures of trained drafters at equal data: what each costs, and what it brings.

    python -m benchmarks.architectures answers/ --prompts prompts.jsonl --limit 26 --epochs 1

Trains a fresh drafter of each on the data set that `paceline train data` made, with the same settings and in
the same order, below build/architectures/ (a run that was interrupted goes on), then answers prompts greedily
with all of them and plainly in one run. Printed, and written as JSON: parameters, seconds of training, tokens
per target pass with drafts that are never cut and under the default policy, and both speeds. lora and pads
take part only if --arch names them. Needs PyTorch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from paceline.bench import speed
from paceline.bench.progress import progress_bar
from paceline.models.cache import write_atomically
from paceline.sampling import SamplingParams
from paceline.train.architectures import names
from paceline.train.loop import Run
from paceline.train.settings import Settings

BUILD = Path(__file__).parents[1] / "build" / "architectures"
POLICIES = {"fixed": ",min_probability=0@fixed", "throughput": "@throughput"}
"""Drafts that are never cut, and the default."""
APART = ("lora", "pads")
"""Adapters of a drafter that is there already; and what trains by passes of the whole target."""


def main() -> None:
    options = _options()
    console = Console(stderr=True, highlight=False)
    settings = {
        "epochs": options.epochs,
        "batch_tokens": options.batch_tokens,
        "learning_rate": options.learning_rate,
    }
    cards = {}
    for arch in options.arch or [name for name in names() if name not in APART]:
        folder = BUILD / arch.replace(":", "-").replace(",", "-").replace("=", "")
        run = Run(options.data, folder, Settings(arch=arch, **settings), threads=options.threads)
        with progress_bar() as bar:
            task = bar.add_task(arch, total=run.plan.total, completed=run.progress.step)

            def advance(step: int, _: dict[str, Any], bar: Progress = bar, task: TaskID = task) -> None:
                bar.update(task, completed=step)

            cards[f"{arch.partition(':')[0]}:model={folder}"] = run.train(advance)
    report = speed.run(
        model=options.model,
        drafters=[drafter + how for drafter in cards for how in POLICIES.values()],
        prompts=options.prompts,
        limit=options.limit,
        params=SamplingParams(temperature=0, max_tokens=options.tokens, seed=0),
        threads=options.threads,
        note=console.print,
    )
    rows = [_row(drafter, card, report) for drafter, card in cards.items()]
    result = {"machine": report["machine"], "prompts": report["prompts"], "settings": settings, "rows": rows}
    with write_atomically(options.out) as out:
        out.write(json.dumps(result, indent=1).encode())
    print(json.dumps(result))


def _row(drafter: str, card: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    found = {policy: report["drafters"][drafter + how] for policy, how in POLICIES.items()}
    return {
        "arch": card["settings"]["arch"],
        "parameters": card["parameters"],
        "trained_tokens": card["trained_tokens"],
        "train_seconds": card["seconds"],
        "estimate": card["estimate"],
        **{
            policy: {
                name: entry[name]
                for name in ("tau", "ratio", "decode_ratio", "acceptance_rate", "share_of_decode_time")
            }
            for policy, entry in found.items()
        },
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--arch",
        action="append",
        help=f"repeatable, with options; default: all but {', '.join(APART)}, as they are",
    )
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--limit", type=int, default=26)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/architectures.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
