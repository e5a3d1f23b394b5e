"""A drafter that was trained for the target and drafts all tokens of a path in one pass: P-EAGLE.

It reads the target's own hidden states as EAGLE-3 does. Where that goes on with its own output, one level of
the tree after the other, this reads a mask in the place of what it does not know yet, so a draft costs one
pass however deep it is; the law of a place does not know which tokens were drafted before it. What it says
is warped by the request's own controls and, under a rule that compares tokens, drawn with the target's own
noise.

Source: "P-EAGLE: Parallel-Drafting EAGLE with Scalable Training", 2026 (arXiv 2602.01469); trees from its
laws and the coupling by noise of positions are our own.
"""

from __future__ import annotations

from paceline.core import TargetInfo
from paceline.drafters._features import ParallelScorer
from paceline.drafters._options import parse_growth
from paceline.drafters._trained import LoadTrained, TrainedDrafter, load_folder


def build(
    info: TargetInfo,
    load_trained: LoadTrained,
    *,
    model: str = "",
    widths: str = "1x1x1x1x1x1x1x1",
    frontier: int = 0,
    min_probability: float = 0.1,
    drawn: str = "iid",
) -> TrainedDrafter:
    """A trained P-EAGLE drafter.

    model            its folder, in the form of the speculators library or the native one of EAGLE-3
    widths           children of a node on each level, as far as the drafter goes: 1x1x1 is a chain of three
                     tokens, 2x2x1 a tree
    frontier         under a rule that compares tokens only so many nodes of a level have children, the
                     likeliest, and of all tokens the likeliest are proposed (EAGLE-2); 0: all have
    min_probability  a token is drafted only where the likeliest path through it is likelier than this
    drawn            how siblings are drawn under a rule that compares laws: "iid" (independently) or
                     "without_replacement"

    Raises ConfigError for a value out of range, ModelFileError for the folder, IncompatibleDrafter for a
    drafter that was trained for another target.
    """
    growth = parse_growth("peagle", widths, min_probability, drawn, frontier)
    return TrainedDrafter(ParallelScorer(load_folder("peagle", model, load_trained)), growth, info.vocab_size)
