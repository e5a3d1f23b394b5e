"""The target's part in training: its law, and what the drafter shares with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.errors import ConfigError
from paceline.models.config import ModelConfig
from paceline.train.dataset import TargetRecord
from paceline.train.target_layers import TargetLayers, load_layers


class Teacher:
    """What training knows of the target.

    config      its hyper-parameters
    taps        the features of a data set; the last is the one whose head gives the law
    embedding   bfloat16 [V, H]; head: bfloat16 [V, H], the same where the target ties them
    norm        float32 [H]
    counts      int64 [V]: how often each token stands in the answers
    scales      root mean square of each tap over some answers
    layers      its own layers, read from the model's file where they are asked for
    """

    def __init__(
        self,
        config: ModelConfig,
        taps: Sequence[str],
        shared: Mapping[str, NDArray[np.generic]],
        counts: NDArray[np.int64],
        scales: Sequence[float],
        device: torch.device,
        record: TargetRecord,
    ) -> None:
        self.config = config
        self._device, self._record = device, record
        self.taps = tuple(taps)
        self.counts = counts
        self.scales = tuple(scales)
        self.embedding = from_bfloat16(shared["embed_tokens.weight"]).to(device)
        self.head = self.embedding
        if "lm_head.weight" in shared:
            self.head = from_bfloat16(shared["lm_head.weight"]).to(device)
        self.norm = torch.from_numpy(np.array(shared["norm.weight"])).to(device)

    @cached_property
    def layers(self) -> TargetLayers:
        """Raises ModelFileError, ConfigError, TrainingError: see `paceline.train.target_layers`."""
        return load_layers(self._record, self._device)

    @property
    def layer_ids(self) -> list[int]:
        """The layers behind which the drafter reads hidden states, as transformers counts them."""
        return [int(tap.removeprefix("hidden.")) for tap in self.taps[:-1]]

    def likeliest(self, count: int) -> Tensor:
        """The ids of so many tokens, ascending: the most frequent in the answers, of equally frequent ones
        the lower. Raises ConfigError if the target has fewer."""
        if not 1 <= count <= len(self.counts):
            raise ConfigError(f"draft_vocab is {count}, allowed: 1 to the target's {len(self.counts)} tokens")
        return torch.from_numpy(np.sort(np.argsort(-self.counts, kind="stable")[:count]))

    def last(self, states: Tensor) -> Tensor:
        """Last hidden states [n, H] as the head reads them, behind the last norm: float32 [n, H]."""
        x = states.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.norm_eps) * self.norm

    def logits(self, states: Tensor, head: Tensor) -> Tensor:
        """The target's logits [n, rows of head] behind its last hidden states [n, H]."""
        return self.last(states) @ head.T


def from_bfloat16(bits: NDArray[np.generic]) -> Tensor:
    """A tensor of bfloat16 from the bits of its numbers, uint16."""
    return torch.from_numpy(np.array(bits).view(np.int16)).view(torch.bfloat16)
