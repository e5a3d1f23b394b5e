"""Packing rows into a draft, and taking rows out of a step."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.core import NOTHING, Draft, Scores, Step, Tree, Verdict, View


def view(*rows: tuple[int, list[int], int, int]) -> View:
    """Rows of (slot, history, start, end)."""
    slots, histories, starts, ends = zip(*rows, strict=True)
    nothing = [None] * len(rows)
    return View(slots, histories, starts, ends, nothing, [7] * len(rows), [1] * len(rows), ["d"] * len(rows))


ROWS = view((4, [10, 11, 12], 2, 3), (2, [20, 21, 22, 23, 24], 1, 3), (9, [30, 31], 0, 2))
TREES = [Tree([13, 14, 15], [-1, 0, -1]), NOTHING, Tree([32], [-1])]


def test_pack_puts_known_tokens_and_trees_behind_one_another() -> None:
    draft = Draft.pack(ROWS, TREES)
    assert draft.slots.tolist() == [4, 2, 9]
    assert draft.offsets.tolist() == [0, 4, 6, 9]
    assert draft.starts.tolist() == [2, 1, 0]
    assert draft.tokens.tolist() == [12, 13, 14, 15, 21, 22, 30, 31, 32]
    assert draft.parents.tolist() == [-1, 0, 1, 0, -1, 4, -1, 6, 7]
    assert draft.positions.tolist() == [2, 3, 4, 3, 1, 2, 0, 1, 2]
    assert list(draft.roots) == [0, -1, 7]
    assert draft.scored.tolist() == [0, 1, 2, 3, 7, 8]


def test_a_tree_on_a_row_that_still_reads_its_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 is still reading"):
        Draft.pack(ROWS, [NOTHING, Tree([1], [-1]), NOTHING])


@pytest.mark.parametrize("parents", [[0], [-2], [-1, 1], [-1, 5]])
def test_a_parent_that_does_not_come_first_is_refused(parents: list[int]) -> None:
    with pytest.raises(ValueError, match="row 0: parent"):
        Draft.pack(ROWS, [Tree([1] * len(parents), parents), NOTHING, NOTHING])


@pytest.mark.parametrize("rows", [[0], [1], [2], [0, 2], [2, 1], [2, 0, 1]])
def test_rows_of_a_step_are_the_step_of_these_rows(rows: list[int]) -> None:
    draft = Draft.pack(ROWS, TREES)
    logits = np.arange(6)[:, None] + np.zeros(3)
    features = {"last": np.arange(9)[:, None] + np.zeros(2)}
    step = Step(ROWS, draft, Scores(logits, features), Verdict([[1, 2], [], [8]], [1, -1, 3]))
    part = step.rows(rows)
    alone = Draft.pack(ROWS.rows(rows), [TREES[row] for row in rows])
    for name in ("slots", "offsets", "starts", "tokens", "parents", "positions", "scored"):
        assert getattr(part.draft, name).tolist() == getattr(alone, name).tolist(), name
        assert getattr(part.draft, name).dtype == np.int32
    assert list(part.draft.roots) == list(alone.roots)
    assert part.verdict.next_tokens == [[1, -1, 3][row] for row in rows]
    accepted = [[12 + n for n in (1, 2)], [], [32]]
    paths = [part.draft.tokens[path].tolist() for path in map(np.array, part.verdict.paths) if len(path)]
    assert paths == [accepted[row] for row in rows if accepted[row]]
    of_tokens = {token: node for node, token in enumerate(draft.tokens.tolist())}
    assert [of_tokens[t] for t in part.draft.tokens.tolist()] == part.scores.features["last"][:, 0].tolist()
    scored = part.draft.tokens[part.draft.scored].tolist()
    places = draft.scored.tolist()
    assert [places.index(of_tokens[t]) for t in scored] == part.scores.logits[:, 0].tolist()
