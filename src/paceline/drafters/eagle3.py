"""A drafter that was trained for the target: one layer that reads the target's own hidden states.

It reads what the target thought at the last tokens, made of a low, a middle and a high layer, and goes on
from there with its own output in place of those thoughts. It proposes tokens of a reduced vocabulary. What it
says is warped by the request's own controls and, under a rule that compares tokens, drawn with the target's
own noise.

Sources: Li et al., "EAGLE-3", 2025 (arXiv 2503.01840), and "EAGLE-2", 2024 (arXiv 2406.16858), for the trees;
drafting without cached drafts and the coupling by noise of positions are our own.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline.core import Drawn, Step, TargetInfo
from paceline.drafters._features import FeatureModel, FeatureScorer, LoadDrafter
from paceline.drafters._model import ModelDrafter
from paceline.drafters._options import MAX_WIDTH, check_probability, parse_drawn, parse_widths
from paceline.drafting import Subset
from paceline.errors import ConfigError


class Eagle3(ModelDrafter):
    """Draws trees from a model that reads the target's hidden states."""

    def __init__(
        self,
        model: FeatureModel,
        vocab_size: int,
        widths: Sequence[int],
        drawn: Drawn,
        min_probability: float,
        frontier: int = 0,
    ) -> None:
        self._features = FeatureScorer(model)
        subset = Subset(model.token_ids, vocab_size)
        super().__init__(self._features, widths, drawn, min_probability, subset=subset, frontier=frontier)
        self.needs = frozenset(model.taps)

    def observe(self, step: Step) -> None:
        """Take in the hidden states of what was kept."""
        self._features.observe(step)


def build(
    info: TargetInfo,
    load_drafter: LoadDrafter,
    *,
    model: str = "",
    widths: str = "1x1x1x1",
    frontier: int = 0,
    min_probability: float = 0.3,
    drawn: str = "iid",
) -> Eagle3:
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
    levels, how = parse_widths("eagle3", widths), parse_drawn("eagle3", drawn)
    check_probability("eagle3", "min_probability", min_probability)
    if not 0 <= frontier <= MAX_WIDTH:
        raise ConfigError(f"eagle3:frontier must be from 0 to {MAX_WIDTH}, got {frontier}")
    if not model:
        raise ConfigError("eagle3:model must name a trained drafter's folder, as in eagle3:model=FOLDER")
    return Eagle3(load_drafter(model), info.vocab_size, levels, how, min_probability, frontier)
