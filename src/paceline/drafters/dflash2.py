"""A drafter that was trained for the target, drafts a block in one pass and chooses its tokens in order:
DFlash 2.

The pass, DFlash's with convolutions along the block, says of each place which tokens are likely without those
before it. Of these candidates a selector then says how well each follows the token above, so the law of a
node depends on its parent, and the paths of a tree have laws of their own. Tokens that are no candidates are
not drafted; the law that a rule is shown is the one over the candidates, which tokens were drawn from.

Sources: "DFlash 2", 2026 (inco.ai/blog/dflash2); for the trees and the coupling see
`paceline.drafters.dflash`.
"""

from __future__ import annotations

from paceline.core import TargetInfo
from paceline.drafters._options import parse_growth
from paceline.drafters._selector import SelectorScorer
from paceline.drafters._trained import LoadTrained, load_folder
from paceline.drafters.dflash import DFlash, check_candidates


def build(
    info: TargetInfo,
    load_trained: LoadTrained,
    *,
    model: str = "",
    candidates: int = 4,
    widths: str = "1x1x1x1x1x1x1x1",
    min_probability: float = 0.1,
    drawn: str = "iid",
) -> DFlash:
    """A trained DFlash 2 drafter.

    model            its folder, in the native form
    candidates       at temperature 0, under a rule that compares tokens: below each node so many of the
                     likeliest tokens are looked at, and the likeliest paths proposed (DDTree); 1: a chain
    widths           otherwise: children of a node on each level, as far as the block goes: 1x1x1 is a chain
                     of three tokens, 2x2x1 a tree
    min_probability  a token is drafted only where the path to it is likelier than this; of drawn ones, the
                     likeliest path through it
    drawn            how siblings are drawn under a rule that compares laws: "iid" (independently) or
                     "without_replacement"

    Raises ConfigError for a value out of range, ModelFileError for the folder, IncompatibleDrafter for a
    drafter that was trained for another target.
    """
    growth = parse_growth("dflash2", widths, min_probability, drawn)
    check_candidates("dflash2", candidates)
    blocks = SelectorScorer(load_folder("dflash2", model, load_trained))
    return DFlash(blocks, growth, info.vocab_size, candidates)
