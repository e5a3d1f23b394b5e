"""A drafter that was trained for the target and drafts a whole block in one pass: DFlash.

Behind the last token stand mask tokens, one for each drafted token; layers that see the target's hidden
states of the text say at once what each of them may be. The law of a place does not depend on the tokens
drafted before it, so a tree costs no more than a chain: at temperature 0 the likeliest paths through the laws
are proposed, otherwise tokens are drawn from them, under a rule that compares tokens with the target's own
noise.

Sources: "DFlash: Block Diffusion for Flash Speculative Decoding", 2026 (arXiv 2602.06036), and "DDTree", 2026
(arXiv 2604.12989), for the trees; the coupling by noise of positions is our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from paceline.core import Budget, TargetInfo, Tree, View
from paceline.drafters._blocks import BlockScorer
from paceline.drafters._model import Path
from paceline.drafters._options import MAX_WIDTH, Growth, parse_growth
from paceline.drafters._trained import LoadTrained, TrainedDrafter, load_folder
from paceline.drafting import warped
from paceline.errors import ConfigError
from paceline.lookups.best_first import best_first


class DFlash(TrainedDrafter):
    """Trees from the laws of a block.

    candidates: tokens of each place that are looked at where the likeliest paths are proposed. The rest is as
    in `TrainedDrafter`.
    """

    def __init__(self, blocks: BlockScorer, growth: Growth, vocab_size: int, candidates: int) -> None:
        self._blocks = blocks
        super().__init__(blocks, growth, vocab_size)
        self.branches = self.branches or candidates > 1
        self._candidates = candidates

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """A tree for each row that decodes and has room: one pass for all of them."""
        rooms = [
            self._blocks.room(slot, history, budget.nodes) if min(budget) > 0 else 0
            for slot, history, budget in zip(view.slots, view.histories, budgets, strict=True)
        ]
        ready = [row for row, room in enumerate(rooms) if room and view.draws(row)]
        self._blocks.draft([view.slots[row] for row in ready], [view.histories[row] for row in ready])
        likeliest = {
            row: self._likeliest(view, row, Budget(budgets[row].nodes, min(budgets[row].depth, rooms[row])))
            for row in ready
            if view.coupled and view.controls[row].params.temperature == 0
        }
        others = [Budget(0, 0) if row in likeliest else budget for row, budget in enumerate(budgets)]
        return [likeliest.get(row, tree) for row, tree in enumerate(super().propose(view, others))]

    def _likeliest(self, view: View, row: int, budget: Budget) -> Tree:
        """The likeliest paths, as many nodes as the budget holds: fixed tokens, for nothing is drawn."""
        ending, adjusts = view.controls[row].ending, view.controls[row].adjusts
        found: dict[object, list[tuple[int, float]]] = {}

        def followers(state: tuple[Path, float]) -> Iterator[tuple[int, float, tuple[Path, float]]]:
            path, reached = state
            if (path and path[-1] in ending) or not self._trusts(view, row, path):
                return
            # Controls that look at the answer bend the laws of different paths in different ways.
            key = path if adjusts else self._blocks.key(path)
            if key not in found:
                found[key] = self._ranked(view, row, path)
            for token, probability in found[key]:
                if reached * probability > self._growth.min_probability:
                    yield token, probability, ((*path, token), reached * probability)

        root: tuple[Path, float] = (), 1.0
        return best_first(root, followers, *budget, 0.0)

    def _ranked(self, view: View, row: int, path: Path) -> list[tuple[int, float]]:
        """The likeliest tokens behind a path, and their probabilities."""
        assert self._subset is not None
        logits = self._blocks.score(view.slots, view.histories, [(row, path)])[0]
        weights = warped(view, row, path, logits, self._subset)
        places = np.flatnonzero(weights)  # of a selector's all others are 0, and ties take long to part
        if len(places) > self._candidates:
            places = places[np.argpartition(weights[places], -self._candidates)[-self._candidates :]]
        places = places[np.argsort(-weights[places], kind="stable")]
        law = weights[places] / weights.sum()
        return list(zip(self._subset.ids[places].tolist(), law.tolist(), strict=True))


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
    """A trained DFlash drafter.

    model            its folder, in the form of the speculators library or the native one
    candidates       at temperature 0, under a rule that compares tokens: of each place so many of the
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
    growth = parse_growth("dflash", widths, min_probability, drawn)
    check_candidates("dflash", candidates)
    blocks = BlockScorer(load_folder("dflash", model, load_trained))
    return DFlash(blocks, growth, info.vocab_size, candidates)


def check_candidates(drafter: str, candidates: int) -> None:
    """Raise ConfigError for a number out of range."""
    if not 1 <= candidates <= MAX_WIDTH:
        raise ConfigError(f"{drafter}:candidates must be from 1 to {MAX_WIDTH}, got {candidates}")
