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

from collections.abc import Sequence

from paceline.core import LAST, Drawn, Step, TargetInfo
from paceline.drafters._heads import Heads, HeadScorer, LoadHeads
from paceline.drafters._model import ModelDrafter
from paceline.drafters._options import MAX_WIDTH, check_probability, parse_drawn, parse_widths
from paceline.drafting import Subset
from paceline.errors import ConfigError


class Hydra(ModelDrafter):
    """Draws trees from heads that read what was drafted."""

    def __init__(
        self,
        heads: Heads,
        vocab_size: int,
        widths: Sequence[int],
        drawn: Drawn,
        min_probability: float,
        frontier: int = 0,
    ) -> None:
        self._heads = HeadScorer(heads)
        subset = Subset(heads.token_ids, vocab_size)
        super().__init__(self._heads, widths, drawn, min_probability, subset=subset, frontier=frontier)
        self.needs = frozenset({LAST})

    def observe(self, step: Step) -> None:
        """Take in the last states."""
        self._heads.observe(step)


def build(
    info: TargetInfo,
    load_heads: LoadHeads,
    *,
    model: str = "",
    widths: str = "1x1x1x1",
    frontier: int = 0,
    min_probability: float = 0.3,
    drawn: str = "iid",
) -> Hydra:
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
    levels, how = parse_widths("hydra", widths), parse_drawn("hydra", drawn)
    check_probability("hydra", "min_probability", min_probability)
    if not 0 <= frontier <= MAX_WIDTH:
        raise ConfigError(f"hydra:frontier must be from 0 to {MAX_WIDTH}, got {frontier}")
    if not model:
        raise ConfigError("hydra:model must name the folder of trained heads, as in hydra:model=FOLDER")
    return Hydra(load_heads("hydra", model), info.vocab_size, levels, how, min_probability, frontier)
