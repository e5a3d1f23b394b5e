"""The attention of a draft in training: the slots of depth 0 up to a base, and the draft's own slots behind.

On a CPU the first part is left to PyTorch's blockwise kernel, so that no matrix of length x length numbers
is written, and the few own slots are put in afterwards: with L the logarithm of a softmax's denominator,
shares over both parts are exp(score - L), where L = log(exp L0 + Σ exp own). In the gradient the kernel is
given L and the output of both parts, and so makes the gradient of its part of the whole.

Source of the kernel: Dao, "FlashAttention-2", 2023 (arXiv 2307.08691); of putting parts together: Liu et
al., "Ring Attention with Blockwise Transformers", 2023 (arXiv 2310.01889).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def draft_attention(q: Tensor, seen: Sequence[Pair]) -> Tensor:
    """What each slot of the last depth attends to, [B, heads, L, dim].

    q: [B, heads, L, dim]. seen: keys and values of each depth so far, of q's shape. A slot of base t attends
    to depth 0 up to t, and to t alone of the depths behind.
    """
    if q.device.type == "cpu":
        out: Tensor = _DraftAttention.apply(q, *(part for pair in seen for part in pair))
        return out
    return reference(q, seen)


def reference(q: Tensor, seen: Sequence[Pair]) -> Tensor:
    """The same, all scores in memory."""
    length, (keys, values) = q.shape[2], seen[0]
    q = q * q.shape[-1] ** -0.5
    causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    before = (q @ keys.mT).float().masked_fill(~causal, -torch.inf)
    own = [(q * key).sum(-1, keepdim=True).float() for key, _ in seen[1:]]
    shares = torch.cat((before, *own), -1).softmax(-1).to(values.dtype)
    attended = shares[..., :length] @ values
    for number, (_, value) in enumerate(seen[1:]):
        attended = attended + shares[..., length + number, None] * value
    return attended


class _DraftAttention(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, q: Tensor, *parts: Tensor) -> Tensor:
        before, scores = _kernel(q, parts[0], parts[1], 0.0, True)
        own = [_products(q, key) * q.shape[-1] ** -0.5 for key in parts[2::2]]
        total = torch.stack([scores, *own]).logsumexp(0)
        out = before * (scores - total).exp()[..., None]
        for score, value in zip(own, parts[3::2], strict=True):
            out = out + (score - total).exp()[..., None] * value.float()
        out = out.to(q.dtype)
        ctx.save_for_backward(q, out, total, *own, *parts)
        ctx.own = len(own)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, out, total, *rest = ctx.saved_tensors
        own, parts = rest[: ctx.own], rest[ctx.own :]
        grad = grads[0].contiguous()
        of_q, of_keys, of_values = _kernel_backward(grad, q, *parts[:2], out, total, 0.0, True)
        of_q, found = of_q.float(), [of_keys, of_values]
        mean, query, grad = _products(grad, out), q.float(), grad.float()
        for score, key, value in zip(own, parts[2::2], parts[3::2], strict=True):
            share = (score - total).exp()
            slope = (share * (_products(grad, value) - mean))[..., None] * q.shape[-1] ** -0.5
            of_q = of_q + slope * key.float()
            found += [(slope * query).to(key.dtype), (share[..., None] * grad).to(value.dtype)]
        return of_q.to(q.dtype), *found


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Of rows, float32 [..., L]."""
    return (left.float() * right.float()).sum(-1)
