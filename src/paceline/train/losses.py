"""What a drafter is trained on, and estimates of how it would fare."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from paceline.train.batches import STEP, Batch, rounded
from paceline.train.teacher import Teacher

BINS = 10
"""Of the confidences, for the calibration error."""
BLOCK = 512
"""Laws over the target's whole vocabulary that are in memory at once."""


def divergence(kind: str, logits: Tensor, law: Tensor) -> Tensor:
    """How far the drafter's law q is from the target's law p, for each row: float32 [n].

    kind: "kl", Σ p log(p/q) in nats, whose gradient is that of the cross entropy; "jsd", the mean of that
    divergence of p and of q from their middle; "tv", Σ |p - q| / 2, which is 1 less the overlap. logits: the
    drafter's, [n, D]; law: p, [n, D].

    Source: Zhou et al., "DistillSpec", 2023 (arXiv 2310.08461).
    """
    log_q = logits.float().log_softmax(-1)
    if kind == "kl":
        return torch.xlogy(law, law).sum(-1) - (law * log_q).sum(-1)
    q = log_q.exp()
    if kind == "tv":
        return (law - q).abs().sum(-1) / 2
    # Where both are 0, so is what the logarithm is multiplied by.
    middle = ((law + q) / 2).clamp_min(torch.finfo(torch.float32).tiny).log()
    return ((torch.xlogy(law, law) + q * log_q - (law + q) * middle) / 2).sum(-1)


class Laws:
    """The target's laws where the drafts of a batch ask for them, within the drafter's vocabulary.

    whole: the probabilities are those of the target's whole vocabulary, and so sum to less than 1; otherwise
    they are what is left of them when no other token may be drawn.
    """

    def __init__(
        self, teacher: Teacher, vocabulary: Tensor, batch: Batch, depths: int, *, whole: bool
    ) -> None:
        self._batch = batch
        wanted = torch.zeros_like(batch.tokens, dtype=torch.bool)
        for depth in range(depths):
            wanted |= behind(batch.bases(depth), depth + 1)
        self._rows = wanted.flatten().cumsum(0).view_as(wanted) - 1
        states = batch.states[:, :, -1][wanted]
        with torch.no_grad(), torch.autocast(batch.tokens.device.type, enabled=False):
            if whole:
                head = teacher.head.float()
                parts = [_whole(teacher.logits(some, head), vocabulary) for some in states.split(BLOCK)]
                self.laws, self._likeliest = (torch.cat(part) for part in zip(*parts, strict=True))
            else:
                head = teacher.head[vocabulary].float()
                padded = functional.pad(states, (0, 0, 0, rounded(len(states)) - len(states)))
                self.laws = torch.cat([teacher.logits(some, head).softmax(-1) for some in padded.split(STEP)])

    def rows(self, depth: int) -> Tensor:
        """Where in `laws`, float32 [m, D], the law stands for the token that each base's draft has at this
        depth: int64 [n]."""
        return self._rows[behind(self._batch.bases(depth), depth + 1)]

    def at(self, depth: int) -> Tensor:
        """Those laws: float32 [n, D]."""
        return self.laws[self.rows(depth)]

    def likeliest(self, depth: int) -> Tensor:
        """Their likeliest tokens in the target's whole vocabulary, int64 [n]."""
        return self._likeliest[self.rows(depth)]


def _whole(logits: Tensor, vocabulary: Tensor) -> tuple[Tensor, Tensor]:
    return (logits[:, vocabulary] - logits.logsumexp(-1, keepdim=True)).exp(), logits.argmax(-1)


def behind(bases: Tensor, by: int) -> Tensor:
    """The positions so many places behind these, bool [B, L]."""
    return functional.pad(bases, (by, 0))[:, : bases.shape[1]]


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


def compared(
    logits: Tensor, law: Tensor, likeliest: Tensor, vocabulary: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Overlap, agreement and confidence of each row, float32 [n]. law, likeliest: see `Laws`, of the whole
    vocabulary, so that tokens the drafter cannot propose count against it."""
    q = logits.float().softmax(-1)
    confidence, own = q.max(-1)
    return torch.minimum(q, law).sum(-1), (vocabulary[own] == likeliest).float(), confidence
