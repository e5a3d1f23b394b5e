"""What pays without being chosen, in one tree: the drafters that need no training and hardly any time, and
the trained one that comes with the package, if the target is its.

See docs/drafters/auto.md. How much of their proposals is scored, down to none, is the policy's business;
`throughput`, the default, works it out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paceline.core import Drafter, TargetInfo
from paceline.drafters._features import LoadDrafter
from paceline.drafters.eagle3 import build as eagle3
from paceline.drafters.prediction import build as prediction
from paceline.drafters.suffix import build as suffix
from paceline.mixture import Mixture

NODES = 16
LEAST = 0.03
"""Parts propose what is likelier than this: the policy, which knows what a token costs, does the rest."""


def build(
    info: TargetInfo,
    load_drafter: LoadDrafter | None = None,
    shipped: Path | None = None,
    *,
    store_tokens: int = 100_000,
    store: str = "",
) -> Mixture:
    """The mixture of the drafters that pay.

    store_tokens  tokens of earlier answers kept and shared by all requests of the engine; 0 for none
    store         a file to keep earlier answers in from one run to the next; made if it is not there

    Raises ConfigError for a value out of range, TokenFileError for the file.
    """
    common: Any = {"max_nodes": NODES, "min_probability": LEAST}
    parts: dict[str, Drafter] = {
        "prediction": prediction(info, **common),
        "suffix": suffix(info, **common, store_tokens=store_tokens, store=store),
    }
    if load_drafter is not None and shipped is not None:
        parts["eagle3"] = eagle3(info, load_drafter, shipped)
    return Mixture(parts)
