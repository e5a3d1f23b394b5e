"""The drafter's head and the loss behind it, with their gradient, a block of rows at a time.

A row of logits is as long as the drafter's vocabulary, and there is one for each drafted token: written to
memory and read again for each step of the loss they take most of a step of training. Here a block of them
stays in the processor's cache from the head's product to the gradient. The same as `losses.divergence`
behind a linear layer, up to rounding.

Source of the idea: Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024 (arXiv
2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from paceline.train.batches import STEP, rounded


def head_divergence(
    kind: str, read: Tensor, head: Tensor, laws: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum over rows of the divergence of the drafter's law from the target's, a float32 number, and of
    each row their overlap Σ min(p, q), of which there is no gradient, float32 [n].

    kind: see `losses.divergence`. read: what the head reads, [n, H]; head: [D, H]; laws: the target's,
    float32 [m, D], each summing to 1; rows: int64 [n], the law of each row.
    """
    loss, overlap = _HeadDivergence.apply(kind, read, head, laws, rows)
    return loss, overlap


class _HeadDivergence(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, kind: str, read: Tensor, head: Tensor, laws: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        device = read.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        count = len(read)
        padding = rounded(count) - count
        with torch.autocast(device, enabled=False):
            x, w = functional.pad(read.to(dtype), (0, 0, 0, padding)), head.to(dtype)
            places = functional.pad(rows, (0, padding))
            slopes = torch.empty(len(x), len(w), dtype=dtype, device=x.device)
            sums = torch.zeros(2, len(x), device=x.device)
            for first in range(0, len(x), STEP):  # 2 MB of logits for 8,192 tokens
                block = slice(first, first + STEP)
                law = laws[places[block]]
                sums[0, block], sums[1, block], slopes[block] = _block(kind, (x[block] @ w.T).float(), law)
            slopes[count:] = 0
        ctx.save_for_backward(slopes, x, w)
        ctx.count, ctx.dtypes = count, (read.dtype, head.dtype)
        loss, overlap = sums[0, :count].sum(), sums[1, :count].clone()
        ctx.mark_non_differentiable(overlap)
        return loss, overlap

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor | None, None, None]:
        slopes, x, w = ctx.saved_tensors
        of_read, of_head = ctx.dtypes
        grad = grads[0]
        below = (slopes @ w)[: ctx.count].to(of_read) * grad
        # A head that is not trained needs none.
        of_w = (slopes.T @ x).to(of_head) * grad if ctx.needs_input_grad[2] else None
        return None, below, of_w, None, None


def _block(kind: str, logits: Tensor, law: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Divergence and overlap of each row, and the divergence's gradient by the logits: with g its gradient by
    q it is q (g - Σ q g)."""
    q = logits.softmax(-1)
    overlap = torch.minimum(q, law).sum(-1)
    if kind == "tv":
        return 1 - overlap, overlap, _through_softmax(q, (q - law).sign() / 2)
    # Where a probability is 0, so is what its logarithm is multiplied by.
    tiny = torch.finfo(torch.float32).tiny
    log_p = law.clamp_min(tiny).log()
    if kind == "kl":
        log_q = logits - logits.logsumexp(-1, keepdim=True)
        return torch.linalg.vecdot(law, log_p - log_q), overlap, q - law
    log_q, log_middle = q.clamp_min(tiny).log(), ((law + q) / 2).clamp_min(tiny).log()
    of_p, of_q = log_p - log_middle, log_q - log_middle
    loss = (torch.linalg.vecdot(law, of_p) + torch.linalg.vecdot(q, of_q)) / 2
    return loss, overlap, _through_softmax(q, of_q / 2)


def _through_softmax(q: Tensor, slope: Tensor) -> Tensor:
    return q * (slope - torch.linalg.vecdot(q, slope)[:, None])
