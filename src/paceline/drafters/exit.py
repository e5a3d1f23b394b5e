"""The target drafts for itself with its first layers, read out by its own head; how many is learned. What
stands between these layers and the head can be trained.

Sources: Elhoushi et al., "LayerSkip", 2024 (arXiv 2404.16710), for early exits as drafts, with models trained
for it; Entezari Zarch et al., "DEL", 2025 (arXiv 2504.05598), for choosing exit and depth by the expected
tokens per layer. DEL reads every layer out after every pass; here the head costs as much as several layers,
so only the exit in use is judged, and the others are tried now and then.
"""

from __future__ import annotations

from collections.abc import Mapping

from paceline.core import Shortcut, Sketch, TargetInfo
from paceline.drafters._options import parse_growth
from paceline.drafters._sketch import Choice, Fixed, SelfDrafter
from paceline.drafters._trained import LoadTrained
from paceline.errors import ConfigError

PRIOR, PRIOR_WEIGHT = 0.9, 4.0
"""What is believed of an exit that was not tried, and how many tokens that belief weighs: hopeful, so that
each is tried."""
KEPT = 0.98
"""What remains of what was seen after each further step; the rest falls back to the belief."""


class Exits:
    """Chooses among exits by the tokens they are expected to bring per layer that is run. exits: the passes
    behind so many layers."""

    def __init__(self, layers: int, exits: Mapping[int, Shortcut], depth: int) -> None:
        self._layers = layers
        self._exits = exits
        self._depth = depth
        self._seen = dict.fromkeys(exits, (0.0, 0.0))
        """{exit: tokens that were compared, of those accepted}, both forgotten bit by bit."""
        self.exit = min(exits)

    def shortcut(self) -> tuple[Shortcut, int]:
        """Without the layers behind the best exit, as deep as pays best."""
        _, self.exit, depth = max(
            (self._worth(exit, depth), exit, depth)
            for exit in self._seen
            for depth in range(1, self._depth + 1)
        )
        return self._exits[self.exit], depth

    def acceptance(self, exit: int) -> float:
        """The estimated probability that a token drafted there is accepted."""
        tried, accepted = self._seen[exit]
        return (accepted + PRIOR * PRIOR_WEIGHT) / (tried + PRIOR_WEIGHT)

    def _worth(self, exit: int, depth: int) -> float:
        """Expected tokens per pass of all layers."""
        rate = self.acceptance(exit)
        return sum(rate**level for level in range(depth + 1)) / (depth * exit / self._layers + 1)

    def learn(self, tried: int, accepted: int) -> None:
        """Note how the exit in use fared."""
        self._seen = {exit: (KEPT * a, KEPT * b) for exit, (a, b) in self._seen.items()}
        before = self._seen[self.exit]
        self._seen[self.exit] = before[0] + tried, before[1] + accepted


def build(
    info: TargetInfo,
    sketch: Sketch,
    load_trained: LoadTrained,
    *,
    model: str = "",
    layers: int = 0,
    widths: str = "1x1x1x1",
    min_probability: float = 0.3,
    drawn: str = "iid",
) -> SelfDrafter:
    """Self-drafting by early exit.

    model            folder of trained exits; empty: the target's own last norm reads out
    layers           layers that are run; 0 chooses a depth, and among the trained exits or else among a fifth
                     to four fifths of the layers
    widths           children of a node on each level: 1x1x1 is a chain of three tokens, 2x2x1 a tree
    min_probability  a token is drafted only where the likeliest path through it is likelier than this
    drawn            how siblings are drawn under a rule that compares laws: "iid" (independently) or
                     "without_replacement"

    Raises ConfigError for a value out of range, or a target with too few layers; ModelFileError for the
    folder, IncompatibleDrafter for exits that were trained for another target.
    """
    growth = parse_growth("exit", widths, min_probability, drawn)
    if info.layers < 2:
        raise ConfigError(f"exit needs a target of at least 2 layers, {info.name} has {info.layers}")
    if not 0 <= layers < info.layers:
        raise ConfigError(f"exit:layers must be from 1 to {info.layers - 1}, or 0 to choose, got {layers}")
    exits = _trained(model, layers, load_trained, info.layers) if model else _untrained(layers, info.layers)
    choice: Choice = Exits(info.layers, exits, len(growth.widths))
    if layers:
        choice = Fixed(exits[layers], len(growth.widths))
    return SelfDrafter(sketch, choice, growth)


def _untrained(layers: int, of: int) -> dict[int, Shortcut]:
    """The exit behind so many layers; 0: some."""
    exits = {layers} if layers else {max(1, round(of * fifth / 5)) for fifth in range(1, 5)}
    return {exit: Shortcut(frozenset(range(exit, of))) for exit in exits}


def _trained(model: str, layers: int, load_trained: LoadTrained, of: int) -> dict[int, Shortcut]:
    """All that are in a folder. Raises ConfigError if that behind so many layers is not."""
    readouts = load_trained("exit", model).readouts
    if layers and layers not in readouts:
        known = ", ".join(map(str, readouts))
        raise ConfigError(f"exit:layers is {layers}, and {model} has exits behind {known} layers")
    return {exit: Shortcut(frozenset(range(exit, of)), readout=readout) for exit, readout in readouts.items()}
