"""How a drafter is trained."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.errors import ConfigError

LOSSES = ("kl", "jsd", "tv")
DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a drafter is trained.

    arch              architecture, with options as in eagle3:depths=5,draft_vocab=8192
    start_from        folder of a drafter of that architecture whose weights and tokens are the first ones;
                      empty: fresh ones
    epochs            times that each answer is seen
    batch_tokens      tokens of one pass, padding included
    accumulate        passes whose gradients make one step
    max_length        tokens of an answer with its prompt; longer ones are cut
    learning_rate     at its highest; it rises over the share `warmup` of all steps, then falls as a cosine
    weight_decay, clip   the optimiser's decay of matrices; largest norm of the gradient
    loss              what is made small: "kl", "jsd" or "tv", see `paceline.train.losses.divergence`
    depth_decay       weight of each depth's loss compared with that of the depth before
    ema               part of the average of all parameters that a step leaves as it is; the average is what
                      is measured and kept
    dtype             "bfloat16" (mixed: products in bfloat16, parameters in float32) or "float32"
    held_out          share of answers that is only measured with, at most `held_out_most` of them; 0: the
                      measurements are of answers that it is trained on
    log_every, measure_every, checkpoint_every   in steps
    """

    arch: str = "eagle3"
    start_from: str = ""
    epochs: int = 1
    batch_tokens: int = 4096
    accumulate: int = 1
    max_length: int = 1024
    learning_rate: float = 5e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    loss: str = "kl"
    depth_decay: float = 0.8
    ema: float = 0.999
    dtype: str = "bfloat16"
    held_out: float = 0.02
    held_out_most: int = 128
    log_every: int = 10
    measure_every: int = 250
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {
            "epochs": (1, 1000),
            "batch_tokens": (1, 1 << 20),
            "accumulate": (1, 1024),
            "max_length": (4, 1 << 20),
            "learning_rate": (1e-7, 1),
            "warmup": (0, 1),
            "weight_decay": (0, 1),
            "clip": (1e-3, 1e3),
            "depth_decay": (0.01, 1),
            "ema": (0, 0.999999),
            "held_out": (0, 0.5),
            "held_out_most": (1, 1 << 20),
            "log_every": (1, 1 << 30),
            "measure_every": (1, 1 << 30),
            "checkpoint_every": (1, 1 << 30),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} is {getattr(self, name)}, allowed: {low} to {high}")
        for name, allowed in (("loss", LOSSES), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, allowed: {', '.join(allowed)}")
