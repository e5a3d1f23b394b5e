"""Log-probabilities of emitted tokens, as the model itself gave them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.results import TokenLogprob, TokenLogprobs


def logprobs(logits: NDArray[Any], token: int, top: int) -> TokenLogprobs:
    """The token's log-probability under the raw logits [V], and the `top` likeliest tokens.

    A log-softmax in float64, before temperature and every other control. NaN if a logit is NaN or infinite.
    """
    x = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        x -= x.max()
        x -= np.log(np.exp(x).sum())
    likeliest: list[int] = []
    if top:
        least = np.partition(x, -top)[-top] if top < len(x) else -np.inf
        candidates = np.flatnonzero(x >= least)
        likeliest = candidates[np.argsort(-x[candidates], kind="stable")][:top].tolist()
    return TokenLogprobs(token, float(x[token]), tuple(TokenLogprob(t, float(x[t])) for t in likeliest))
