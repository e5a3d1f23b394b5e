"""Heads that were trained for the target: each guesses one further token from the target's last hidden state.

No head knows what the others guess, so one pass gives all levels of a tree, and any of a level's tokens may
follow any of the level above. Under a rule that compares tokens the tree holds those paths that are likeliest
to be accepted: the product of what was learned of each level, by a token's rank and its probability. What a
head says is warped by the request's own controls and, at a temperature, ranked with the target's own noise.

Source: Cai et al., "Medusa", 2024 (arXiv 2401.10774); there the tree has one shape, chosen beforehand by
measured accuracies. Accuracies learned while drafting and the coupling by noise of positions are our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from paceline.core import Array, Budget, Step, TargetInfo, Tree, View
from paceline.drafters._acceptance import Successors
from paceline.drafters._heads import Heads, HeadScorer
from paceline.drafters._model import Path
from paceline.drafters._options import Growth, parse_growth
from paceline.drafters._trained import LoadTrained, TrainedDrafter, load_folder
from paceline.drafting import Paths, Subset, foremost, warped
from paceline.lookups.best_first import best_first

Reached = tuple[Path, float]
"""A drafted path, and the estimated probability that all of it is accepted."""
Place = Path | int
"""What the tokens that may follow a path hang on: its length, or all of it where controls look at its
tokens."""


class LevelScorer(HeadScorer):
    """Runs all heads at once, and keeps what they said until the sequence has gone on."""

    def __init__(self, heads: Heads, most: int) -> None:
        """most: heads that are run at most."""
        super().__init__(heads)
        self._depths = min(heads.depths, most)
        self._levels: dict[int, Sequence[Array]] = {}

    def observe(self, step: Step) -> None:
        """See `HeadScorer.observe`."""
        for slot in step.view.slots:
            self._levels.pop(slot, None)
        super().observe(step)

    def score(self, slots: Sequence[int], histories: Sequence[Sequence[int]], paths: Paths) -> list[Array]:
        """Logits [D] after each path, of which only its length counts."""
        fresh = sorted({row for row, _ in paths if slots[row] not in self._levels})
        if fresh:
            every = [(row, (0,) * depth) for row in fresh for depth in range(self._depths)]
            logits = super().score(slots, histories, every)
            for at, row in enumerate(fresh):
                self._levels[slots[row]] = logits[at * self._depths : (at + 1) * self._depths]
        return [self._levels[slots[row]][len(path)] for row, path in paths]

    def release(self, slots: Sequence[int]) -> None:
        """See `HeadScorer.release`."""
        super().release(slots)
        for slot in slots:
            self._levels.pop(slot, None)


class Medusa(TrainedDrafter):
    """Proposes trees of what heads say. growth: of its `widths`, the likeliest tokens of each level may have
    children or be proposed under a coupled rule."""

    def __init__(
        self,
        heads: Heads,
        growth: Growth,
        vocab_size: int,
    ) -> None:
        self._levels = LevelScorer(heads, len(growth.widths))
        self._tokens = Subset(heads.token_ids, vocab_size)
        super().__init__(self._levels, growth, vocab_size)

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """A tree for each row that decodes and whose last state is known."""
        if not view.coupled:
            return super().propose(view, budgets)
        budgets = [
            self._within_room(slot, history, budget)
            for slot, history, budget in zip(view.slots, view.histories, budgets, strict=True)
        ]
        drafted = [(row, ()) for row, budget in enumerate(budgets) if min(budget)]
        if drafted:
            self._levels.score(view.slots, view.histories, drafted)  # all rows in one pass
        return [self._likeliest(view, row, budget) for row, budget in enumerate(budgets)]

    def _likeliest(self, view: View, row: int, budget: Budget) -> Tree:
        """The likeliest paths through the levels."""
        controls = view.controls[row]
        greedy = controls.params.temperature == 0
        self._siblings.release([view.slots[row]])
        proposed: dict[Place, Successors] = {}

        def followers(reached: Reached) -> Iterator[tuple[int, float, Reached]]:
            path, probability = reached
            if path and path[-1] in controls.ending:
                return
            place = self._place(view, row, path)
            if place not in proposed:
                drawn = self._candidates(view, row, path)
                proposed[place] = self._siblings.add(view.slots[row], place, drawn)
            for rank, (token, share) in enumerate(proposed[place]):
                confidence = self._siblings.estimates(greedy, len(path))[rank][share]
                if probability * confidence > self._growth.min_probability:
                    yield token, confidence, ((*path, token), probability * confidence)

        root: Reached = ((), 1.0)
        return best_first(root, followers, *budget, min_probability=0)

    def _candidates(self, view: View, row: int, path: Path) -> Sequence[tuple[int, float]]:
        """The tokens that may follow a path with their probabilities, the likeliest first."""
        (logits,) = self._levels.score(view.slots, view.histories, [(row, path)])
        weights = warped(view, row, path, logits, self._tokens)
        total, width = float(weights.sum()), self._growth.widths[len(path)]
        if not total:
            return ()
        places = foremost(view, row, len(path), weights, width, self._tokens)
        return tuple(
            (int(self._tokens.ids[place]), float(weights[place]) / total)
            for place in places
            if weights[place]
        )

    def _place(self, view: View, row: int, path: Path) -> Place:
        return path if view.controls[row].adjusts else len(path)


def build(
    info: TargetInfo,
    load_trained: LoadTrained,
    *,
    model: str = "",
    widths: str = "1x1x1x1",
    min_probability: float = 0.3,
    drawn: str = "iid",
) -> Medusa:
    """Trained Medusa heads.

    model            their folder, in the form that vLLM loads
    widths           tokens of each level: 1x1x1 is a chain of three tokens, 2x2x1 a tree. Under a rule that
                     compares tokens the likeliest paths are proposed, under others all of them
    min_probability  a token is drafted only where the likeliest path through it is likelier than this
    drawn            how siblings are drawn under a rule that compares laws: "iid" (independently) or
                     "without_replacement"

    Raises ConfigError for a value out of range, ModelFileError for the folder, IncompatibleDrafter for heads
    that were trained for another target.
    """
    growth = parse_growth("medusa", widths, min_probability, drawn)
    return Medusa(load_folder("medusa", model, load_trained), growth, info.vocab_size)
