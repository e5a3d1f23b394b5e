"""What pays without being chosen: the drafters that look things up, and one that was trained for the target.

See docs/drafters/auto.md. How much of their proposals is scored, down to none, is the policy's business;
`throughput`, the default, works it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from paceline import shipped
from paceline.core import Drafter, TargetInfo
from paceline.drafters._trained import LoadTrained
from paceline.drafters.datastore import build as datastore
from paceline.drafters.eagle3 import build as eagle3
from paceline.drafters.prediction import build as prediction
from paceline.drafters.redrafter import build as redrafter
from paceline.drafters.suffix import build as suffix
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.mixture import Mixture
from paceline.models.drafter_kinds import kind_of

NODES = 16
LEAST = 0.03
"""Parts propose what is likelier than this: the policy, which knows what a token costs, does the rest."""
KINDS: dict[str, tuple[Callable[..., Drafter], dict[str, Any]]] = {
    "eagle3": (eagle3, {"widths": "3x2x2x1", "frontier": 3, "min_probability": 0.1}),
    "redrafter": (redrafter, {"widths": "3x1x1x1", "frontier": 1, "min_probability": 0.5}),
}
"""Trained drafters that may be a part, and their trees: each level is a pass of the drafter, and beside what
is looked up the first token matters most. So more levels pay only where those above are probably right."""
MOST = 256
LOOKED_UP = 3 / 8
"""Of more tokens than NODES what a part that looks things up may propose: a trained one fills the rest."""


def wide(nodes: int) -> dict[str, Any]:
    """The tree of a trained drafter that is to fill so many tokens, more than NODES: as wide as that on its
    first level, half as wide on each further one."""
    widths = "x".join(str(max(1, nodes // part)) for part in (4, 8, 16, 32, 64, 64))
    return {"widths": widths, "frontier": max(1, nodes // 8), "min_probability": 0.2 / nodes}


def build(
    info: TargetInfo,
    load_trained: LoadTrained | None = None,
    *,
    max_nodes: int = NODES,
    store_tokens: int = 100_000,
    store: str = "",
    texts: str = "shipped",
    trained: str = "shipped",
) -> Mixture:
    """The mixture of the drafters that pay.

    max_nodes     drafted tokens per request and step at most; above 16 its trees are wide, for machines where
                  a pass over many tokens takes little longer. A policy must be told to score as many, too
    store_tokens  tokens of earlier answers kept and shared by all requests of the engine; 0 for none
    store         a file to keep earlier answers in from one run to the next; made if it is not there
    texts         a datastore to draft from: "shipped", the one that comes with the package for the target's
                  tokens, if there is one; "none"; or a file that `paceline datastore build` wrote
    trained       a trained drafter as a part, too: "shipped", the one that comes with the package for the
                  target, if there is one; "none"; or a folder that `paceline train run` wrote, of an
                  architecture in KINDS

    Raises ConfigError for a value out of range, TokenFileError for a file, ModelFileError for a folder,
    IncompatibleDrafter for a drafter that was trained for another target.
    """
    if not 1 <= max_nodes <= MOST:
        raise ConfigError(f"auto:max_nodes must be from 1 to {MOST}, got {max_nodes}")
    common: Any = {"max_nodes": max_nodes, "min_probability": LEAST}
    tree: dict[str, Any] = {}
    if max_nodes > NODES:
        common |= {
            "max_nodes": int(max_nodes * LOOKED_UP),
            "min_probability": LEAST * (NODES / max_nodes) ** 2,
        }
        tree = wide(max_nodes)
    parts: dict[str, Drafter] = {
        "prediction": prediction(info, **common),
        "suffix": suffix(info, **common, store_tokens=store_tokens, store=store),
    }
    path = shipped.datastore(info) if texts == "shipped" else texts
    if path is not None and path != "none":
        parts["datastore"] = datastore(info, path=str(path), **common)
    if trained == "shipped":
        parts |= _shipped(info, load_trained, tree)
    elif trained != "none":
        parts |= _trained(info, load_trained, trained, tree)
    return Mixture(parts)


def _shipped(
    info: TargetInfo, load_trained: LoadTrained | None, tree: Mapping[str, Any]
) -> dict[str, Drafter]:
    """The drafter that comes along, by its name; nothing where none does, or this is another target with as
    many layers and the same tokens. tree: what is other than KINDS says."""
    folder = shipped.trained(info)
    if folder is None or load_trained is None:
        return {}
    try:
        return _trained(info, load_trained, str(folder), tree)
    except IncompatibleDrafter:
        return {}


def _trained(
    info: TargetInfo, load_trained: LoadTrained | None, folder: str, tree: Mapping[str, Any]
) -> dict[str, Drafter]:
    if load_trained is None:
        raise IncompatibleDrafter(f"auto:trained={folder}: {info.name} cannot run trained drafters")
    kind = kind_of(Path(folder))
    if kind not in KINDS:
        raise ConfigError(f"auto:trained={folder}: is for {kind}, allowed: {', '.join(KINDS)}")
    build, usual = KINDS[kind]
    return {kind: build(info, load_trained, model=folder, **{**usual, **tree})}
