"""The forward pass of a DFlash 2 drafter in NumPy: slow, without a cache, to be read beside the blog.

Around the attention and the feed-forward part of each of DFlash's layers, a slot of the block is mixed with
those right before it: a convolution whose kernel is a fixed one and what the slot itself adds to it, for
groups of channels. Of the tokens that the head says of a place, the likeliest are candidates; the selector
adds to the logit of each how well it follows the token above, seen from that place.

Source: "DFlash 2", 2026 (inco.ai/blog/dflash2); the places of the parts are those of its authors
(github.com/z-lab/dflash).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.models.dflash2_folder import ABOVE, BELOW, GATE, DFlash2Weights
from paceline.models.drafter_folder import Floats
from paceline.trained.dflash_reference import Inner, Layer, denoise


def follow(
    weights: DFlash2Weights, head: Floats, embedded: Floats, injected: Floats, text: Sequence[int]
) -> Floats:
    """Logits float32 [n, vocab_size] of the token behind each of the n of `text`, at most `depths`: the next
    token and a path drafted behind it; -inf for what is no candidate. The rest as for
    `paceline.trained.dflash_reference.forward`."""
    tensors, candidates = weights.tensors, weights.config.candidates

    def around(layer: Layer, name: str, read: Floats, inner: Inner) -> Floats:
        """Between convolutions."""
        base = layer[f"{name}_conv.base_kernel"]
        added = (read @ layer[f"{name}_conv.kernel_projection"].T).reshape(len(read), *base.shape[:2], -1)
        return convolved(inner(convolved(read, base[0], added[:, 0])), base[1], added[:, 1])

    read = denoise(weights, embedded, injected, around)[: len(text)]
    unary, gates = read @ head.T, read @ tensors[GATE].T
    scores = np.full_like(unary, -np.inf)
    for place, above in enumerate(text):
        likeliest = np.argsort(-unary[place], kind="stable")[:candidates]
        edges = tensors[BELOW][likeliest] @ (tensors[ABOVE][above] * gates[place])
        scores[place, likeliest] = unary[place, likeliest] + edges
    return scores


def convolved(x: Floats, base: Floats, added: Floats) -> Floats:
    """A block's slots, each mixed with those before it: out[i, c] = Σ_t (base[t, c] + added[i, t, g(c)])
    x[i - t, c].

    x: float32 [..., block, hidden]; base: [kernel, hidden]; added: [..., block, kernel, groups].
    """
    out = np.zeros_like(x)
    for back, fixed in enumerate(base):
        kernel = fixed + added[..., back, :].repeat(x.shape[-1] // added.shape[-1], axis=-1)
        out[..., back:, :] += kernel[..., back:, :] * x[..., : x.shape[-2] - back, :]
    return out
