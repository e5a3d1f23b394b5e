"""An EAGLE-3 drafter with adapters for several tasks: each request is drafted for by the adapters of its
task.

Which task that is a linear classifier says, from the mean of the embeddings of the prompt's tokens, once,
before the prompt is read; where it is unsure, the drafter without adapters drafts. All of them read the same
hidden states.

Source: Ge et al., "Automatic Task Detection and Heterogeneous LLM Speculative Decoding", 2025 (arXiv
2505.08600). There a sentence encoder makes the classifier's features; embeddings of the target are at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from paceline.core import NOTHING, Budget, Step, TargetInfo, Tree, View
from paceline.drafters._features import FeatureModel, FeatureScorer
from paceline.drafters._options import parse_growth
from paceline.drafters._trained import LoadTrained, TrainedDrafter, load_folder


class TaskModels(Protocol):
    """Models of the same shape that read the same hidden states.

    models  the first is for all that is of no task
    """

    models: Sequence[Any]

    def choose(self, prompt: Sequence[int]) -> int:
        """Which of them drafts behind a prompt."""
        ...


class Tasks:
    """Hands each request to the drafter of its task."""

    def __init__(self, tasks: TaskModels, drafter: Callable[[FeatureModel], TrainedDrafter]) -> None:
        """drafter: makes one of a model."""
        self._parts = [drafter(model) for model in tasks.models]
        self._choose = tasks.choose
        self._chosen: dict[int, int] = {}  # by slot
        first = self._parts[0]
        self.needs, self.drawn, self.branches = first.needs, first.drawn, first.branches
        self.whole = first.whole

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """What the drafter of each row's task proposes."""
        trees = [NOTHING] * len(budgets)
        for part, rows in self._rows(view).items():
            proposed = self._parts[part].propose(view.rows(rows), [budgets[row] for row in rows])
            for row, tree in zip(rows, proposed, strict=True):
                trees[row] = tree
        return trees

    def observe(self, step: Step) -> None:
        """Each drafter sees what happened to its rows."""
        for part, rows in self._rows(step.view).items():
            self._parts[part].observe(step.rows(rows))

    def _rows(self, view: View) -> dict[int, list[int]]:
        rows: dict[int, list[int]] = {}
        for row, slot in enumerate(view.slots):
            if slot not in self._chosen:
                self._chosen[slot] = self._choose(view.histories[row][: view.prompts[row]])
            rows.setdefault(self._chosen[slot], []).append(row)
        return rows

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences."""
        for slot in slots:
            part = self._chosen.pop(slot, None)
            if part is not None:
                self._parts[part].release([slot])


def build(
    info: TargetInfo,
    load_trained: LoadTrained,
    *,
    model: str = "",
    widths: str = "1x1x1x1",
    frontier: int = 0,
    min_probability: float = 0.3,
    drawn: str = "iid",
) -> Tasks:
    """A trained EAGLE-3 drafter with adapters for tasks.

    model            its folder
    widths           children of a node on each level: 1x1x1 is a chain of three tokens, 2x2x1 a tree
    frontier         under a rule that compares tokens only so many nodes of a level have children, the
                     likeliest, and of all tokens the likeliest are proposed (EAGLE-2); 0: all have
    min_probability  a token is drafted only where the likeliest path through it is likelier than this
    drawn            how siblings are drawn under a rule that compares laws: "iid" (independently) or
                     "without_replacement"

    Raises ConfigError for a value out of range, ModelFileError for the folder, IncompatibleDrafter for a
    drafter that was trained for another target.
    """
    growth = parse_growth("tasks", widths, min_probability, drawn, frontier)
    return Tasks(
        load_folder("tasks", model, load_trained),
        lambda one: TrainedDrafter(FeatureScorer(one), growth, info.vocab_size),
    )
