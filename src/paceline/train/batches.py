"""Which answers each step of training sees, and what it sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.train.corpus import Corpus
from paceline.train.teacher import from_bfloat16

POOL = 64
"""Answers of like length are taken from among so many batches, so that little is padded."""


STEP = 64
"""Lengths and numbers of rows are made multiples of it: libraries make code for each new shape of a product,
which takes longer than the product."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some answers with their prompts, padded behind their ends.

    tokens    int64 [B, L]
    states    bfloat16 [B, L, taps, H]; zero for each last token
    lengths   int64 [B]; prompts: int64 [B], tokens of the prompt alone
    """

    tokens: Tensor
    states: Tensor
    lengths: Tensor
    prompts: Tensor

    def bases(self, depth: int) -> Tensor:
        """bool [B, L]: the positions t with which a draft can begin while the answer grows, its first token
        being known, and where the target's law for the token at t + 2 + depth is known."""
        places = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        begun = places >= self.prompts[:, None] - 1
        return begun & (places <= self.lengths[:, None] - 3 - depth)

    def shifted(self, by: int) -> Tensor:
        """int64 [B, L]: the token so many places behind each position; 0 beyond the end."""
        return torch.nn.functional.pad(self.tokens, (0, by))[:, by:]


def collate(corpus: Corpus, places: Sequence[int], device: torch.device) -> Batch:
    """The batch of these answers."""
    lengths = corpus.lengths[places]
    longest = rounded(int(lengths.max()))
    states = corpus.states(places)
    tokens = np.zeros((len(places), longest), np.int64)
    padded = np.zeros((len(places), longest, *states[0].shape[1:]), np.uint16)
    for row, (place, own) in enumerate(zip(places, states, strict=True)):
        tokens[row, : lengths[row]] = corpus.tokens(place)
        padded[row, : len(own)] = own
    return Batch(
        torch.from_numpy(tokens).to(device),
        from_bfloat16(padded).to(device),
        torch.from_numpy(lengths).to(device),
        torch.from_numpy(corpus.prompts[places]).to(device),
    )


def rounded(count: int) -> int:
    """The next multiple of `STEP`."""
    return -(-count // STEP) * STEP


def split(count: int, held_out: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The places to train on, and those held out to measure with, at least one each. Where nothing is to be
    held out, or there is only one, both are all places."""
    order = np.random.default_rng([seed, 1]).permutation(count)
    if not held_out or count < 2:
        return np.sort(order), order
    apart = max(1, round(held_out * count))
    return np.sort(order[apart:]), order[:apart]


def epoch(
    lengths: NDArray[np.int64], places: NDArray[np.int64], batch_tokens: int, seed: int, number: int
) -> list[list[int]]:
    """The batches of one epoch: all places once, padded to at most `batch_tokens` each unless one alone is
    longer. The same for the same arguments, whatever came before."""
    rng = np.random.default_rng([seed, 2, number])
    order = rng.permutation(places)
    pool = max(1, POOL * batch_tokens // int(lengths[places].max()))
    batches: list[list[int]] = []
    for first in range(0, len(order), pool):
        some = order[first : first + pool]
        batch: list[int] = []
        for place in some[np.argsort(lengths[some], kind="stable")].tolist():
            if batch and rounded(int(lengths[place])) * (len(batch) + 1) > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(place)
        batches.append(batch)
    return [batches[at] for at in rng.permutation(len(batches))]
