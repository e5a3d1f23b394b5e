"""What a trained drafter really brings: measured with the engine, and written into its card."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from paceline.bench import speed
from paceline.errors import TrainingError
from paceline.models.cache import sha256_of
from paceline.models.drafter_folder import TENSORS, read_json
from paceline.models.eagle3_folder import read_eagle3
from paceline.models.registry import resolve
from paceline.models.tasks_folder import merged, read_adapters
from paceline.sampling import SamplingParams
from paceline.train import card as cards
from paceline.trained.eagle3_export import export_eagle3

_KEPT = ("prompts", "max_tokens", "temperature", "policy")
_FIGURES = ("tau", "ratio", "ratio_low", "ratio_high", "acceptance_rate", "accepted_at_least", "tokens")


def evaluate(
    folder: Path,
    *,
    model: str | None,
    options: str,
    prompts: Path | None,
    limit: int | None,
    max_tokens: int,
    temperatures: Sequence[float],
    policy: str,
    threads: int | None,
    note: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Measure a drafter that `paceline train run` made at each temperature, against plain decoding in the
    same run, and put the result into its card in place of an earlier one. Adapters are measured as the
    drafter that they make of the one that they were trained from.

    model: the target, by default under the name that the card has. options: of the drafter, as in
    "widths=1x1x1". Returns one report of `paceline bench speed` for each temperature. Raises TrainingError
    for a folder without a card or another target, or where adapters' drafter is gone, and what
    `paceline.bench.speed.run` raises.
    """
    path = folder / cards.CARD
    try:
        card = json.loads(path.read_bytes())
        architecture = card["settings"]["arch"].partition(":")[0]
        model = model or card["target"]
        wanted = card["target_sha256"]
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror}; `paceline train run` writes it") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TrainingError(f"{path}: is damaged") from None
    target = resolve(model)
    if not target.is_file() or sha256_of(target) != wanted:
        raise TrainingError(
            f"{folder}: was trained for another file than {model}; name its target with --model"
        )
    with _drafter(architecture, folder) as drafter:
        reports = [
            speed.run(
                model=model,
                drafters=[drafter + (f",{options}" if options else "")],
                prompts=prompts,
                limit=limit,
                params=SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=0),
                threads=threads,
                note=note,
                policy=policy,
            )
            for temperature in temperatures
        ]
    card["measured"] = [
        _summary(report, architecture + (f":{options}" if options else "")) for report in reports
    ]
    cards.write(folder, card)
    return reports


@contextmanager
def _drafter(architecture: str, folder: Path) -> Iterator[str]:
    """The drafter that the engine runs, inside."""
    if architecture != "lora":
        yield f"{architecture}:model={folder}"
        return
    begun = read_json(folder / "run.json")
    try:
        base, start = Path(begun["settings"]["start_from"]), begun["start"]
    except (KeyError, TypeError):
        raise TrainingError(f"{folder / 'run.json'}: is damaged") from None
    if not (base / TENSORS).is_file() or sha256_of(base / TENSORS) != start:
        raise TrainingError(f"{folder}: adapts the drafter in {base}, which has changed or is gone")
    drafter = read_eagle3(base)
    with TemporaryDirectory() as own:
        whole = merged(drafter, read_adapters(folder, drafter))
        yield f"eagle3:model={export_eagle3(whole, 'vllm', Path(own) / folder.name, 'target').folder}"


def _summary(report: dict[str, Any], drafter: str) -> dict[str, Any]:
    """What the card keeps of a report."""
    (found,) = report["drafters"].values()
    return {
        **{name: report[name] for name in _KEPT},
        "prompts_from": Path(report["prompts_from"]).name,
        "drafter": drafter,
        "cpu": report["machine"]["cpu"],
        "threads": report["machine"]["threads"],
        **{name: found[name] for name in _FIGURES},
        "by_category": {
            category: {name: part[name] for name in _FIGURES}
            for category, part in found["by_category"].items()
        },
    }
