"""A drafter that was trained for the target and drafts a block in one pass, token by token: DSpark.

The pass is DFlash's, which says of each place what it may be without those before it. A small head then adds
what the token right above changes, so the law of a node depends on its parent, and the paths of a tree have
laws of their own. Another head says how likely the token of a place is accepted: the pass, and the tokens
above, are all that it reads, so that it may stop a draft before that token is drawn, and the rule stays
exact.

Sources: "DSpark", 2026 (DeepSeek-AI, github.com/deepseek-ai/DeepSpec); for the trees see
`paceline.drafters.dflash`. The product of confidences as the only reason to stop, request by request, is our
own choice: the paper shares out the room of a batch by it.
"""

from __future__ import annotations

from paceline.core import TargetInfo, View
from paceline.drafters._blocks import MarkovModel, MarkovScorer
from paceline.drafters._model import Path
from paceline.drafters._options import Growth, check_probability, parse_growth
from paceline.drafters._trained import LoadTrained, load_folder
from paceline.drafters.dflash import DFlash, check_candidates


class DSpark(DFlash):
    """Trees from the laws of a block whose tokens know the one above.

    min_confidence: tokens are drafted below a path only where that, and what is drawn there, is accepted with
    a greater probability. The rest is as in `DFlash`.
    """

    def __init__(
        self, model: MarkovModel, growth: Growth, vocab_size: int, candidates: int, min_confidence: float
    ) -> None:
        self._markov = MarkovScorer(model)
        super().__init__(self._markov, growth, vocab_size, candidates)
        self._min_confidence = min_confidence

    def _trusts(self, view: View, row: int, path: Path) -> bool:
        """See `ModelDrafter`."""
        if not self._min_confidence:
            return True
        return self._markov.confidence(view.slots[row], view.histories[row], path) > self._min_confidence


def build(
    info: TargetInfo,
    load_trained: LoadTrained,
    *,
    model: str = "",
    candidates: int = 4,
    widths: str = "1x1x1x1x1x1x1x1",
    min_probability: float = 0.1,
    min_confidence: float = 0.1,
    drawn: str = "iid",
) -> DSpark:
    """A trained DSpark drafter.

    model            its folder, in the form of the speculators library or the native one
    candidates       at temperature 0, under a rule that compares tokens: below each node so many of the
                     likeliest tokens are looked at, and the likeliest paths proposed (DDTree); 1: a chain
    widths           otherwise: children of a node on each level, as far as the block goes: 1x1x1 is a chain
                     of three tokens, 2x2x1 a tree
    min_probability  a token is drafted only where the path to it is likelier than this; of drawn ones, the
                     likeliest path through it
    min_confidence   tokens are drafted only where the product of the drafter's confidences down to them is
                     greater; 0: these are not asked
    drawn            how siblings are drawn under a rule that compares laws: "iid" (independently) or
                     "without_replacement"

    Raises ConfigError for a value out of range, ModelFileError for the folder, IncompatibleDrafter for a
    drafter that was trained for another target.
    """
    growth = parse_growth("dspark", widths, min_probability, drawn)
    check_candidates("dspark", candidates)
    check_probability("dspark", "min_confidence", min_confidence)
    return DSpark(
        load_folder("dspark", model, load_trained), growth, info.vocab_size, candidates, min_confidence
    )
