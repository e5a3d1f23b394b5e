"""DFlash 2: DFlash's block with convolutions along it, and a selector among the likeliest tokens of a place.

Each slot of a block is mixed with those right before it, around the attention and the feed-forward part of
every layer. The selector adds to the logit of a token v, behind the token u, <A[u] * W h, B[v]>, where h is
what the head reads of the place; in training u is the text's own token.

Two laws are learnt of each depth, and weigh the same: that of the head alone, which the candidates are taken
by, and that with what the selector adds, over all tokens, where the authors have the cross entropy among the
candidates. Drafting cuts it down to these.

Source: "DFlash 2", 2026 (inco.ai/blog/dflash2). Names of tensors and settings: its authors' own, whose
folders vLLM and SGLang load. The head is the target's, for these folders have none. It begins as DFlash:
convolutions that change nothing, a selector that adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from paceline.errors import ConfigError
from paceline.models.config import ModelConfig
from paceline.models.dflash2_folder import DFlash2Config, described
from paceline.train.architectures.dflash import DFlash, Layer, check_options
from paceline.train.batches import Batch
from paceline.train.teacher import Teacher


def build(
    teacher: Teacher,
    *,
    depths: int = 5,
    layers: int = 1,
    rank: int = 64,
    candidates: int = 16,
    kernel: int = 2,
    group: int = 16,
) -> DFlash2:
    """A fresh DFlash 2 drafter, its layers of the target's own shape, its head the target's.

    depths: drafted tokens along one path, which is the block but for its anchor. layers: decoder layers.
    rank: of the selector. candidates: tokens of each place that it chooses from. kernel: slots that a
    convolution reads. group: channels that share what a slot adds to their kernels. Raises ConfigError.
    """
    check_options("dflash2", teacher, depths, layers, "target")
    for name, value, most in (
        ("rank", rank, 1024),
        ("candidates", candidates, min(256, len(teacher.counts))),
        ("kernel", kernel, depths + 1),
    ):
        if not 1 <= value <= most:
            raise ConfigError(f"{name} is {value}, allowed: 1 to {most}")
    if group < 1 or teacher.config.hidden % group:
        raise ConfigError(f"group is {group}, allowed: divisors of the target's {teacher.config.hidden}")
    return DFlash2(teacher, depths, layers, rank, candidates, kernel, group)


class DFlash2(DFlash):
    """The drafter."""

    def __init__(
        self,
        teacher: Teacher,
        depths: int,
        layers: int,
        rank: int,
        candidates: int,
        kernel: int,
        group: int,
    ) -> None:
        make = partial(ConvolvedLayer, kernel=kernel, group=group)
        super().__init__(teacher, depths, layers, 0, own_head=False, make=make)
        for layer in self.layers:
            for part in (layer.attention_conv, layer.mlp_conv):
                nn.init.zeros_(part.kernel_projection.weight)
        self.candidate_selector = Selector(teacher.config, rank)
        self._own: dict[str, Any] = {"kernel": kernel, "group": group, "rank": rank, "candidates": candidates}

    @property
    def head(self) -> Tensor:
        """The target's, and the selector's beside it: see `Architecture.head`."""
        return torch.cat((super().head, self.candidate_selector.successor_codebook), 1)

    @property
    def outer(self) -> list[nn.Parameter]:
        """See `Architecture.outer`."""
        return [self.candidate_selector.predecessor_codebook, self.candidate_selector.successor_codebook]

    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.forward`."""
        for depth, read in enumerate(super().forward(batch)):
            above = batch.shifted(1 + depth)[batch.bases(depth)]
            yield torch.cat((read, self.candidate_selector(read, above)), 1)

    @property
    def lessons(self) -> Sequence[int]:
        """Each depth twice: with the selector, and without it."""
        return (*range(self.depths), *range(self.depths))

    def study(self, batch: Batch) -> Iterator[Tensor]:
        """See `Architecture.study`."""
        reads = list(self(batch))
        yield from reads
        hidden = self._config.hidden
        for read in reads:
            yield functional.pad(read[:, :hidden], (0, read.shape[1] - hidden))

    def known_tokens(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """All of them: see `Architecture.known_tokens`."""
        return self.vocabulary

    def folder(self, weights: Mapping[str, Tensor], model: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A folder of the native form."""
        tensors = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
        return described(DFlash2Config(**self.fields, **self._own)), tensors


class Selector(nn.Module):
    """How well tokens follow each other at a place, of low rank."""

    def __init__(self, config: ModelConfig, rank: int) -> None:
        super().__init__()
        self.predecessor_codebook = nn.Parameter(torch.randn(config.vocab_size, rank))
        self.successor_codebook = nn.Parameter(torch.zeros(config.vocab_size, rank))
        self.hidden_projection = nn.Linear(config.hidden, rank, bias=False)

    def forward(self, read: Tensor, above: Tensor) -> Tensor:
        """What rows of the successors' codebook are multiplied with, [n, rank], where the head reads `read`,
        [n, H], behind the tokens `above`, int64 [n]."""
        gated: Tensor = self.hidden_projection(read).float() * self.predecessor_codebook[above]
        return gated


class ConvolvedLayer(Layer):
    """A layer of DFlash with convolutions before and behind each part."""

    def __init__(self, config: ModelConfig, kernel: int, group: int) -> None:
        super().__init__(config)
        self.attention_conv = Convolution(config.hidden, kernel, group)
        self.mlp_conv = Convolution(config.hidden, kernel, group)

    def forward(self, context: Tensor, blocks: Tensor, bases: Tensor) -> Tensor:
        """See `Layer`."""
        read, added = self.attention_conv.before(self.input_layernorm(blocks))
        blocks = blocks + self.attention_conv.behind(self.self_attn(context, read, bases), added)
        read, added = self.mlp_conv.before(self.post_attention_layernorm(blocks))
        return blocks + self.mlp_conv.behind(self.mlp(read), added)


class Convolution(nn.Module):
    """Each slot of a block mixed with those right before it, by a kernel of each channel and what the slot
    adds to it, alike for groups of channels."""

    def __init__(self, hidden: int, kernel: int, group: int) -> None:
        super().__init__()
        self._group = group
        self.base_kernel = nn.Parameter(torch.zeros(2, kernel, hidden))
        self.kernel_projection = nn.Linear(hidden, 2 * kernel * (hidden // group), bias=False)
        with torch.no_grad():
            self.base_kernel[:, 0] = 1

    def before(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """What a part reads in place of [n, S, H], and what `behind` asks for."""
        added = self.kernel_projection(read).float().unflatten(-1, (*self.base_kernel.shape[:2], -1))
        return self._mixed(read, 0, added), added

    def behind(self, made: Tensor, added: Tensor) -> Tensor:
        """What becomes of what the part made, [n, S, H]."""
        return self._mixed(made, 1, added)

    def _mixed(self, x: Tensor, side: int, added: Tensor) -> Tensor:
        kernels = self.base_kernel[side] + added[:, :, side].repeat_interleave(self._group, -1)
        shifted = [functional.pad(x, (0, 0, back, 0))[:, : x.shape[1]] for back in range(kernels.shape[2])]
        return (kernels * torch.stack(shifted, 2)).sum(2)
