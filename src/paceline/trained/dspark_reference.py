"""The forward pass of a DSpark drafter in NumPy: slow, without a cache, to be read beside the paper.

DFlash's layers say of each drafted token what it may be without those before it; the Markov head adds what
the token right before it changes, a product of low rank. The confidence head reads the same two parts and
says how likely the token that is drawn from their law is accepted, before it is drawn.

Source: "DSpark", 2026 (DeepSeek-AI, github.com/deepseek-ai/DeepSpec); where the parts are read is as in vLLM
(vllm/model_executor/models/qwen3_dspark.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paceline.models.drafter_folder import Floats
from paceline.models.dspark_folder import CONFIDENCE, CONFIDENCE_BIAS, MARKOV_IN, MARKOV_OUT, DSparkWeights
from paceline.trained.dflash_reference import denoise


def follow(
    weights: DSparkWeights, head: Floats, embedded: Floats, injected: Floats, text: Sequence[int]
) -> tuple[Floats, Floats]:
    """Logits float32 [n, draft_vocab_size] of the token behind each of the n of `text`, at most `depths`: the
    next token and a path drafted behind it; and confidences float32 [n] of what is drawn from them, all 1
    without a confidence head. The rest as for `paceline.trained.dflash_reference.forward`."""
    config, tensors = weights.config, weights.tensors
    read = denoise(weights, embedded, injected)[: len(text)]
    above = tensors[MARKOV_IN][list(text)]
    logits: Floats = read @ head.T + above @ tensors[MARKOV_OUT].T
    if not config.confidence:
        return logits, np.ones(len(text), np.float32)
    both = np.concatenate([read, above], axis=-1) if config.confidence_tokens else read
    certain = both @ tensors[CONFIDENCE][0] + tensors[CONFIDENCE_BIAS]
    return logits, 1 / (1 + np.exp(-certain))
