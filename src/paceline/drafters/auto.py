"""What pays without being chosen: the drafters that look things up, and one that was trained for the target.

See docs/drafters/auto.md. How much of their proposals is scored, down to none, is the policy's business;
`throughput`, the default, works it out.
"""

from __future__ import annotations

from typing import Any

from paceline import shipped
from paceline.core import Drafter, TargetInfo
from paceline.drafters._trained import LoadTrained
from paceline.drafters.datastore import build as datastore
from paceline.drafters.eagle3 import build as eagle3
from paceline.drafters.prediction import build as prediction
from paceline.drafters.suffix import build as suffix
from paceline.errors import IncompatibleDrafter
from paceline.mixture import Mixture

NODES = 16
LEAST = 0.03
"""Parts propose what is likelier than this: the policy, which knows what a token costs, does the rest."""
TREE: dict[str, Any] = {"widths": "3x2x2x1", "frontier": 3, "min_probability": 0.1}
"""Of a trained drafter: each level is a pass of it."""


def build(
    info: TargetInfo,
    load_trained: LoadTrained | None = None,
    *,
    store_tokens: int = 100_000,
    store: str = "",
    texts: str = "shipped",
    trained: str = "none",
) -> Mixture:
    """The mixture of the drafters that pay.

    store_tokens  tokens of earlier answers kept and shared by all requests of the engine; 0 for none
    store         a file to keep earlier answers in from one run to the next; made if it is not there
    texts         a datastore to draft from: "shipped", the one that comes with the package for the target's
                  tokens, if there is one; "none"; or a file that `paceline datastore build` wrote
    trained       a trained EAGLE-3 drafter as a part, too: "shipped", the one that comes with the package for
                  the target; "none"; or a folder that `paceline train run` wrote

    Raises ConfigError for a value out of range, TokenFileError for a file, ModelFileError for a folder,
    IncompatibleDrafter for a drafter that was trained for another target, or if none comes along for this.
    """
    common: Any = {"max_nodes": NODES, "min_probability": LEAST}
    parts: dict[str, Drafter] = {
        "prediction": prediction(info, **common),
        "suffix": suffix(info, **common, store_tokens=store_tokens, store=store),
    }
    path = shipped.datastore(info) if texts == "shipped" else texts
    if path is not None and path != "none":
        parts["datastore"] = datastore(info, path=str(path), **common)
    if trained != "none":
        parts["eagle3"] = _trained(info, load_trained, trained)
    return Mixture(parts)


def _trained(info: TargetInfo, load_trained: LoadTrained | None, trained: str) -> Drafter:
    if load_trained is None:
        raise IncompatibleDrafter(f"auto:trained={trained}: {info.name} cannot run trained drafters")
    folder = shipped.trained(info) if trained == "shipped" else trained
    if folder is None:
        raise IncompatibleDrafter(f"auto:trained=shipped: none comes with the package for {info.name}")
    return eagle3(info, load_trained, model=str(folder), **TREE)
