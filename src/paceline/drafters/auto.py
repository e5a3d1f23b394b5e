"""What pays without being chosen: the drafters that need no training and hardly any time, in one tree.

See docs/drafters/auto.md. How much of their proposals is scored, down to none, is the policy's business;
`throughput`, the default, works it out.
"""

from __future__ import annotations

from typing import Any

from paceline.core import TargetInfo
from paceline.drafters.prediction import build as prediction
from paceline.drafters.suffix import build as suffix
from paceline.mixture import Mixture

NODES = 16
LEAST = 0.03
"""Parts propose what is likelier than this: the policy, which knows what a token costs, does the rest."""


def build(info: TargetInfo, *, store_tokens: int = 100_000, store: str = "") -> Mixture:
    """The mixture of the drafters that pay.

    store_tokens  tokens of earlier answers kept and shared by all requests of the engine; 0 for none
    store         a file to keep earlier answers in from one run to the next; made if it is not there

    Raises ConfigError for a value out of range, TokenFileError for the file.
    """
    common: Any = {"max_nodes": NODES, "min_probability": LEAST}
    return Mixture(
        {
            "prediction": prediction(info, **common),
            "suffix": suffix(info, **common, store_tokens=store_tokens, store=store),
        }
    )
