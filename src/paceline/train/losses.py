"""What a drafter is trained on, and estimates of how it would fare."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from paceline.train.batches import Batch

BINS = 10
"""Of the confidences, for the calibration error."""


def divergence(logits: Tensor, law: Tensor) -> Tensor:
    """Σ p log(p/q) for each row, in nats: float32 [n]. logits: the drafter's, [n, D]; law: p, [n, D].

    The gradient is that of the cross entropy. Source: Zhou et al., "DistillSpec", 2023 (arXiv 2310.08461).
    """
    return torch.xlogy(law, law).sum(-1) - (law * logits.float().log_softmax(-1)).sum(-1)


@dataclass(slots=True)
class Estimate:
    """How drafts along the text of answers would have fared, depth by depth.

    At each depth the drafted tokens before are those of the answer, as they are where a draft is accepted so
    far. `overlap`, Σ min(p, q), is the largest probability with which any rule accepts a drawn token at
    temperature 1; `agreement`, whether the likeliest tokens are the same, decides at temperature 0.
    """

    depths: int
    overlap: list[float] = field(init=False)
    agreement: list[float] = field(init=False)
    counts: list[int] = field(init=False)
    paths: list[list[float]] = field(init=False)
    bases: int = 0
    bins: list[list[float]] = field(init=False)

    def __post_init__(self) -> None:
        self.overlap, self.agreement = [0.0] * self.depths, [0.0] * self.depths
        self.counts = [0] * self.depths
        self.paths = [[0.0] * self.depths, [0.0] * self.depths]
        self.bins = [[0.0] * 3 for _ in range(BINS)]

    def add(self, batch: Batch, rows: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Count one batch. rows: per depth overlap, agreement and confidence of each base, float32 [n]."""
        shape = batch.tokens.shape
        survivals = [torch.ones(shape, device=batch.tokens.device) for _ in self.paths]
        # Only bases that reach the last depth, so that every depth sees the same ones.
        last = batch.bases(self.depths - 1)
        self.bases += int(last.sum())
        for depth, (overlap, agreement, confidence) in enumerate(rows):
            mask = batch.bases(depth)
            self.counts[depth] += len(overlap)
            self.overlap[depth] += float(overlap.sum())
            self.agreement[depth] += float(agreement.sum())
            for survival, path, value in zip(survivals, self.paths, (overlap, agreement), strict=True):
                here = torch.zeros(shape, device=mask.device)
                here[mask] = value
                survival *= here
                path[depth] += float(survival[last].sum())
            self._calibrate(confidence, agreement)

    def _calibrate(self, confidence: Tensor, agreement: Tensor) -> None:
        places = (confidence * BINS).long().clamp(max=BINS - 1)
        for number in range(BINS):
            chosen = places == number
            totals = (chosen.sum(), confidence[chosen].sum(), agreement[chosen].sum())
            for at, total in enumerate(totals):
                self.bins[number][at] += float(total)

    def summary(self) -> dict[str, Any]:
        """overlap, agreement: by depth. tau_sampled, tau_greedy: tokens per target pass of drafts as deep as
        the drafter was trained for. calibration_error: mean distance between the drafter's probability of its
        likeliest token and how often that is the target's, over bins."""
        counts = [max(1, count) for count in self.counts]
        total = max(1.0, sum(bin[0] for bin in self.bins))
        taus = [1 + sum(path) / max(1, self.bases) for path in self.paths]
        return {
            "overlap": _rounded(part / count for part, count in zip(self.overlap, counts, strict=True)),
            "agreement": _rounded(part / count for part, count in zip(self.agreement, counts, strict=True)),
            "tau_sampled": round(taus[0], 4),
            "tau_greedy": round(taus[1], 4),
            "calibration_error": round(sum(abs(bin[1] - bin[2]) for bin in self.bins) / total, 4),
        }


def _rounded(values: Any) -> list[float]:
    return [round(value, 4) for value in values]


def compared(logits: Tensor, law: Tensor, vocabulary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap, agreement and confidence of each row, float32 [n]. law: over the target's whole vocabulary, so
    that tokens the drafter cannot propose count against it."""
    q = logits.float().softmax(-1)
    confidence, likeliest = q.max(-1)
    overlap = torch.minimum(q, law[:, vocabulary]).sum(-1)
    return overlap, (vocabulary[likeliest] == law.argmax(-1)).float(), confidence
