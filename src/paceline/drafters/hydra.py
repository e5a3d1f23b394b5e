"""Heads that were trained for the target, each of which reads the tokens that were drafted before its own.

They read the target's last hidden state as Medusa's do, and beside it the embeddings of the token that the
target drew from it and of those drafted behind that one. So each level of a tree takes a pass over the heads,
of the nodes that have children. What they say is warped by the request's own controls and, under a rule that
compares tokens, drawn with the target's own noise.

Sources: Ankner et al., "Hydra: Sequentially-Dependent Draft Heads for Medusa Decoding", 2024 (arXiv
2402.05109); Li et al., "EAGLE-2", 2024 (arXiv 2406.16858), for the choice of nodes. The coupling by noise of
positions is our own.
"""

from __future__ import annotations

from paceline.core import TargetInfo
from paceline.drafters._heads import HeadScorer
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
    """Trained Hydra heads.

    model            their folder, as `paceline train run --arch hydra` writes it
    widths           children of a node on each level: 1x1x1 is a chain of three tokens, 2x2x1 a tree
    frontier         under a rule that compares tokens only so many nodes of a level have children, the
                     likeliest, and of all tokens the likeliest are proposed (EAGLE-2); 0: all have
    min_probability  a token is drafted only where the likeliest path through it is likelier than this
    drawn            how siblings are drawn under a rule that compares laws: "iid" (independently) or
                     "without_replacement"

    Raises ConfigError for a value out of range, ModelFileError for the folder, IncompatibleDrafter for heads
    that were trained for another target.
    """
    growth = parse_growth("hydra", widths, min_probability, drawn, frontier)
    return TrainedDrafter(HeadScorer(load_folder("hydra", model, load_trained)), growth, info.vocab_size)
