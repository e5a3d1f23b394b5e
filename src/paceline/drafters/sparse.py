"""The target drafts for itself with all its layers, but sees only the beginning and the end of its cache.

Sources: Xiao et al., "StreamingLLM", 2023 (arXiv 2309.17453), for what is seen of the cache; Chen et al.,
"MagicDec", 2024 (arXiv 2408.11049), and Sun et al., "TriForce", 2024 (arXiv 2404.11912), for drafts made so.
"""

from __future__ import annotations

from paceline.core import Shortcut, Sketch, TargetInfo
from paceline.drafters._options import parse_growth
from paceline.drafters._sketch import Fixed, SelfDrafter
from paceline.errors import ConfigError


def build(
    info: TargetInfo,
    sketch: Sketch,
    *,
    sinks: int = 16,
    recent: int = 256,
    widths: str = "1x1x1x1",
    min_probability: float = 0.3,
    drawn: str = "iid",
) -> SelfDrafter:
    """Self-drafting with a sparse cache, for long contexts.

    sinks            first tokens of the sequence that are seen, at least
    recent           last tokens that are seen, at least
    widths           children of a node on each level: 1x1x1 is a chain of three tokens, 2x2x1 a tree
    min_probability  a token is drafted only where the likeliest path through it is likelier than this
    drawn            how siblings are drawn under a rule that compares laws: "iid" (independently) or
                     "without_replacement"

    Raises ConfigError for a value out of range.
    """
    growth = parse_growth("sparse", widths, min_probability, drawn)
    for name, value, least in (("sinks", sinks, 0), ("recent", recent, 1)):
        if not least <= value < 1 << 30:
            raise ConfigError(f"sparse:{name} must be {least} to {(1 << 30) - 1}, got {value}")
    return SelfDrafter(sketch, Fixed(Shortcut(sinks=sinks, recent=recent), len(growth.widths)), growth)
