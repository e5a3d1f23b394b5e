"""What a drafter's folder says about how it came about: card.json, and card.md for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.errors import TrainingError
from paceline.models.cache import write_atomically
from paceline.train.dataset import Manifest

if TYPE_CHECKING:
    from paceline.train.checkpoint import Progress

CARD = "card.json"
RUN = ("settings", "steps", "trained_tokens", "seconds")
"""What the card of a later drafter keeps of a run."""


def record(
    manifests: Sequence[Manifest],
    settings: Mapping[str, Any],
    progress: Progress,
    *,
    before: Sequence[Mapping[str, Any]],
    curve: Sequence[Mapping[str, Any]],
    parameters: int,
    bytes: int,
    device: str,
    trained_tokens: int,
    license: str,
) -> dict[str, Any]:
    """The card as JSON. manifests: of the data sets; before: the runs that made the drafter which this one
    started from; curve: all measurements; the drafter is that of the best."""
    target = manifests[0].target
    return {
        "license": license,
        "target": target.model,
        "target_sha256": target.file_sha256,
        "target_name": target.shape.name,
        "vocabulary": target.vocabulary,
        "layers": target.shape.layers,
        "settings": dict(settings),
        "before": [dict(run) for run in before],
        "data": _data(manifests[0]),
        "data_also": [_data(manifest) for manifest in manifests[1:]],
        "steps": progress.step,
        "trained_tokens": trained_tokens,
        "seconds": round(progress.seconds, 1),
        "device": device,
        "parameters": parameters,
        "bytes": bytes,
        "estimate": progress.best,
        "curve": [dict(line) for line in curve],
    }


def _data(manifest: Manifest) -> dict[str, Any]:
    return {
        **manifest.recipe,
        "answers": sum(shard.answers for shard in manifest.shards),
        "tokens": manifest.tokens,
        "answer_tokens": sum(shard.answer_tokens for shard in manifest.shards),
        "shards_sha256": [shard.sha256 for shard in manifest.shards],
    }


def write(folder: Path, card: Mapping[str, Any]) -> None:
    """Put a card into a drafter's folder, for programs and for people. Raises TrainingError."""
    for name, text in ((CARD, json.dumps(card, indent=1)), ("card.md", page(card))):
        try:
            with write_atomically(folder / name) as file:
                file.write(text.encode())
        except OSError as error:
            raise TrainingError(f"{folder / name}: {error.strerror or error}") from None


def page(card: Mapping[str, Any]) -> str:
    """The card for people, in Markdown."""
    best = card["estimate"]
    rows = [
        f"| {line['step']} | {line['tau_greedy']} | {line['tau_sampled']} | {line['agreement'][0]} | "
        f"{line['overlap'][0]} | {line['calibration_error']} |"
        for line in card["curve"]
    ]
    depths = [
        f"| {depth + 1} | {agreement} | {overlap} |"
        for depth, (agreement, overlap) in enumerate(zip(best["agreement"], best["overlap"], strict=True))
    ]
    measured = [line for one in card.get("measured", ()) for line in _measured(one)]
    settings = [f"| {name} | {value} |" for name, value in card["settings"].items()]
    return "\n".join(
        [
            f"# A drafter for {card['target']}",
            "",
            f"{card['parameters']:,} parameters, {card['bytes']:,} bytes, trained on {card['device']} in "
            f"{card['seconds']} s: {card['steps']} steps over {card['trained_tokens']:,} tokens. Licence: "
            f"{card['license'] or 'not said'}.",
            "",
            *_before(card.get("before", ())),
            *_averaged(card.get("averaged", ())),
            "## Estimates",
            "",
            "Over answers that were held out, along their own text; the drafter is the one of step "
            f"{best['step']}. Overlap: the largest probability of acceptance at temperature 1. Agreement: at "
            "temperature 0. τ: tokens per target pass with drafts as deep as trained for.",
            "",
            "| step | τ greedy | τ sampled | agreement, depth 1 | overlap, depth 1 | calibration error |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            "| depth | agreement | overlap |",
            "|---|---|---|",
            *depths,
            "",
            *measured,
            "## Data",
            "",
            *(line for data in (card["data"], *card.get("data_also", ())) for line in _answers(data)),
            f"SHA-256 of the target's file: {card['target_sha256']}.",
            "",
            "## Settings",
            "",
            "| setting | value |",
            "|---|---|",
            *settings,
            "",
        ]
    )


def _answers(data: Mapping[str, Any]) -> list[str]:
    """One data set."""
    draft_model = data.get("answered_by")
    who = f"a draft model, SHA-256 {draft_model}, read by the target" if draft_model else "the target itself"
    return [
        f"{data['answers']:,} answers of {who}, {data['tokens']:,} tokens, {data['answer_tokens']:,} of them "
        f"the answers', at temperatures {', '.join(map(str, data['temperatures']))}. SHA-256 of the prompts: "
        f"{data['prompts_sha256']}.",
        "",
    ]


def _before(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The runs that went before."""
    lines = [
        f"- {run['settings']['arch']}, learning rate {run['settings']['learning_rate']}: "
        f"{run['steps']} steps over {run['trained_tokens']:,} tokens in {run['seconds']} s"
        for run in runs
    ]
    return ["It started from a drafter that was trained before:", "", *lines, ""] if lines else []


def _averaged(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The runs whose weights are averaged; all else on the card is of the last of them."""
    lines = [f"- {run['steps']} steps over {run['trained_tokens']:,} tokens" for run in runs]
    said = "Its weights are the mean of those that these runs ended with; what the rest says is of the last:"
    return [said, "", *lines, ""] if lines else []


def _measured(one: Mapping[str, Any]) -> list[str]:
    """What `paceline train eval` found at one temperature."""
    depths = ", ".join(f"{share:.3f}" for share in one["accepted_at_least"])
    return [
        f"## Measured at temperature {one['temperature']:g}",
        "",
        f"{one['prompts']} prompts ({one['prompts_from']}), at most {one['max_tokens']} tokens each, drafter "
        f"{one['drafter']}, policy {one['policy']}, {one['cpu']}, {one['threads']} threads. ratio: plain "
        "decoding's time by the drafter's, the median over prompts.",
        "",
        f"Passes that kept 1, 2, ... drafted tokens or more: {depths}.",
        "",
        "| category | τ | ratio |",
        "|---|---|---|",
        f"| all | {one['tau']:.2f} | {one['ratio']:.2f} |",
        *(
            f"| {category} | {part['tau']:.2f} | {part['ratio']:.2f} |"
            for category, part in one["by_category"].items()
        ),
        "",
    ]
