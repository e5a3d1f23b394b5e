"""A drafter that was trained for the target: a module that reads its last hidden state and the next token.

From the state behind which the target drew a token, and that token, it says what comes after; then it goes on
with its own output in place of the state. Embeddings and head are the target's. What it says is warped by the
request's own controls and, under a rule that compares tokens, drawn with the target's own noise.

Sources: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024 (arXiv 2412.19437); Li et al., "EAGLE-2", 2024
(arXiv 2406.16858), for the trees.
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
    """A trained MTP module.

    model            its folder, in the form of the speculators library
    widths           children of a node on each level: 1x1x1 is a chain of three tokens, 2x2x1 a tree
    frontier         under a rule that compares tokens only so many nodes of a level have children, the
                     likeliest, and of all tokens the likeliest are proposed (EAGLE-2); 0: all have
    min_probability  a token is drafted only where the likeliest path through it is likelier than this
    drawn            how siblings are drawn under a rule that compares laws: "iid" (independently) or
                     "without_replacement"

    Raises ConfigError for a value out of range, ModelFileError for the folder, IncompatibleDrafter for a
    module that was trained for another target.
    """
    growth = parse_growth("mtp", widths, min_probability, drawn, frontier)
    return TrainedDrafter(FeatureScorer(load_folder("mtp", model, load_trained)), growth, info.vocab_size)
