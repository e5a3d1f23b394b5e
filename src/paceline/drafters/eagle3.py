"""A drafter that was trained for the target: one layer that reads the target's own hidden states.

It reads what the target thought at the last tokens, made of a low, a middle and a high layer, and goes on
from there with its own output in place of those thoughts. It proposes tokens of a reduced vocabulary. What it
says is warped by the request's own controls and, under a rule that compares tokens, drawn with the target's
own noise.

Sources: Li et al., "EAGLE-3", 2025 (arXiv 2503.01840), and "EAGLE-2", 2024 (arXiv 2406.16858), for the trees;
drafting without cached drafts and the coupling by noise of positions are our own.
"""

from __future__ import annotations

from paceline.core import TargetInfo
from paceline.drafters._features import FeatureScorer
from paceline.drafters._options import parse_growth
from paceline.drafters._trained import LoadTrained, TrainedDrafter, load_folder


def build(
    info: TargetInfo,
    load_trained: LoadTrained,
    *,
    model: str = "",
    widths: str = "1x1x1x1",
    frontier: int = 0,
    min_probability: float = 0.3,
    drawn: str = "iid",
) -> TrainedDrafter:
    """A trained EAGLE-3 drafter.

    model            its folder, in the form of the speculators library or the native one
    widths           children of a node on each level: 1x1x1 is a chain of three tokens, 2x2x1 a tree
    frontier         under a rule that compares tokens only so many nodes of a level have children, the
                     likeliest, and of all tokens the likeliest are proposed (EAGLE-2); 0: all have
    min_probability  a token is drafted only where the likeliest path through it is likelier than this
    drawn            how siblings are drawn under a rule that compares laws: "iid" (independently) or
                     "without_replacement"

    Raises ConfigError for a value out of range, ModelFileError for the folder, IncompatibleDrafter for a
    drafter that was trained for another target.
    """
    growth = parse_growth("eagle3", widths, min_probability, drawn, frontier)
    return TrainedDrafter(FeatureScorer(load_folder("eagle3", model, load_trained)), growth, info.vocab_size)
