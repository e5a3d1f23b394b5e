"""Embeddings that were trained for the target: it reads them in place of the tokens that nobody knows yet,
and says what stands there.

Behind the last known token and behind each drafted one stand a few pads in the target's own pass; what its
frozen layers and its head make of them are guesses at the tokens further on. Those behind the last token that
was kept are the next draft. A pad does not know which token the target draws before it, so the levels of a
tree are guessed apart, as by Medusa's heads; the tree is made as theirs is.

Sources: Monea et al., "PaSS", 2023 (arXiv 2311.13581); Chen et al., "Parallel Prompt Decoding", 2024 (arXiv
2405.18628), for pads behind every node of a tree. Accuracies learned while drafting and the coupling by noise
of positions are our own.
"""

from __future__ import annotations

from paceline.core import TargetInfo
from paceline.drafters._options import parse_growth
from paceline.drafters._trained import LoadTrained, load_folder
from paceline.drafters.medusa import Medusa


def build(
    info: TargetInfo,
    load_trained: LoadTrained,
    *,
    model: str = "",
    widths: str = "1x1x1x1",
    min_probability: float = 0.3,
    drawn: str = "iid",
) -> Medusa:
    """Trained pads.

    model            their folder
    widths           tokens of each level: 1x1x1 is a chain of three tokens, 2x2x1 a tree. Under a rule that
                     compares tokens the likeliest paths are proposed, under others all of them
    min_probability  a token is drafted only where the likeliest path through it is likelier than this
    drawn            how siblings are drawn under a rule that compares laws: "iid" (independently) or
                     "without_replacement"

    Raises ConfigError for a value out of range, ModelFileError for the folder, IncompatibleDrafter for pads
    that were trained for another target, and for a target that reads no pads.
    """
    growth = parse_growth("pads", widths, min_probability, drawn)
    return Medusa(load_folder("pads", model, load_trained), growth, info.vocab_size)
