"""What pays without being chosen: the drafters that only look things up, in one tree.

See docs/drafters/auto.md. How much of their proposals is scored, down to none, is the policy's business;
`throughput`, the default, works it out.
"""

from __future__ import annotations

from typing import Any

from paceline import shipped
from paceline.core import Drafter, TargetInfo
from paceline.drafters.datastore import build as datastore
from paceline.drafters.prediction import build as prediction
from paceline.drafters.suffix import build as suffix
from paceline.mixture import Mixture

NODES = 16
LEAST = 0.03
"""Parts propose what is likelier than this: the policy, which knows what a token costs, does the rest."""


def build(
    info: TargetInfo, *, store_tokens: int = 100_000, store: str = "", texts: str = "shipped"
) -> Mixture:
    """The mixture of the drafters that pay.

    store_tokens  tokens of earlier answers kept and shared by all requests of the engine; 0 for none
    store         a file to keep earlier answers in from one run to the next; made if it is not there
    texts         a datastore to draft from: "shipped", the one that comes with the package for the target's
                  tokens, if there is one; "none"; or a file that `paceline datastore build` wrote

    Raises ConfigError for a value out of range, TokenFileError for a file.
    """
    common: Any = {"max_nodes": NODES, "min_probability": LEAST}
    parts: dict[str, Drafter] = {
        "prediction": prediction(info, **common),
        "suffix": suffix(info, **common, store_tokens=store_tokens, store=store),
    }
    path = {"shipped": shipped.find(info), "none": None}.get(texts, texts)
    if path is not None:
        parts["datastore"] = datastore(info, path=str(path), **common)
    return Mixture(parts)
