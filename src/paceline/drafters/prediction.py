"""Propose what the caller said the answer will be, and find the place again where the answer left it.

For edits: the text to be changed is a prediction of the changed text. As long as the answer keeps to the
prediction, what comes next there is proposed. Where it leaves it, the answer's last tokens are looked for in
the prediction, near where they should stand.

Source: the idea is that of OpenAI's predicted outputs (platform.openai.com/docs/guides/predicted-outputs);
how the place is found is our own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from paceline.core import NOTHING, Budget, Drawn, Step, TargetInfo, Tree, View
from paceline.drafters._promises import Promises
from paceline.errors import ConfigError
from paceline.lookups import Continuations, Text

COMPARED = 12  # tokens compared at most at each place where the last token stands
LOOKED_AT = 16  # such places before and behind the expected one, nearest first: bounds the time of a step
NEAR = 16  # a place so many tokens off counts half
DECAY = 2.0  # a place where one more token agrees weighs so many times as much
SURE = 4  # from so many agreeing tokens on, no other place is considered
TRUST = 6  # a prediction is believed at first as if so many tokens had agreed


class Follower:
    """Follows one answer through its prediction, token by token."""

    __slots__ = ("_agreed", "_expected", "_places", "_prediction", "_read", "_text")

    def __init__(self, prediction: Sequence[int]) -> None:
        self._prediction = prediction
        self._text = Text(prediction)
        self._places: dict[int, list[int]] = {}  # of each token, the places behind it, ascending
        for place, token in enumerate(prediction, 1):
            self._places.setdefault(token, []).append(place)
        self._read = 0  # tokens of the answer
        self._expected = 0  # the place in the prediction where the answer should go on
        self._agreed = TRUST  # tokens in front of it that agree

    def read(self, history: Sequence[int], prompt: int) -> None:
        """Take in the answer's tokens since the last call; the answer is history[prompt:]."""
        for end in range(prompt + self._read + 1, len(history) + 1):
            token = history[end - 1]
            if self._expected < len(self._prediction) and self._prediction[self._expected] == token:
                self._agreed += 1
            else:
                self._agreed = 0
            self._expected += 1
            if self._agreed < SURE:
                likeliest = max(self._candidates(history, prompt, end), default=None)
                if likeliest:
                    _, self._expected, self._agreed = likeliest
        self._read = len(history) - prompt

    def continuations(self, history: Sequence[int], prompt: int) -> Continuations:
        """Where the answer may go on."""
        found = {self._expected: 1.0}
        if self._agreed < SURE:
            found |= {place: weight for weight, place, _ in self._candidates(history, prompt, len(history))}
        continuations = Continuations(history[-1:])
        for place, weight in found.items():
            continuations.add(self._text, place, self._agreed, weight)
        return continuations

    def _candidates(self, history: Sequence[int], prompt: int, end: int) -> Iterator[tuple[float, int, int]]:
        """(weight, place, agreeing tokens) where the answer up to history[end - 1] may go on."""
        prediction, expected = self._prediction, self._expected
        places = self._places.get(history[end - 1], ()) if end > prompt else ()
        middle = bisect_left(places, expected)
        for place in places[max(0, middle - LOOKED_AT) : middle + LOOKED_AT]:
            agreed = 1
            while (
                agreed < min(COMPARED, place, end - prompt)
                and prediction[place - 1 - agreed] == history[end - 1 - agreed]
            ):
                agreed += 1
            yield DECAY**agreed / (1 + abs(place - expected) / NEAR), place, agreed


class Prediction:
    """Proposes a tree for every row whose caller gave a prediction."""

    needs: frozenset[str] = frozenset()
    whole = False
    drawn = frozenset({Drawn.FIXED})
    branches = True

    def __init__(self, max_nodes: int, min_probability: float) -> None:
        self._max_nodes = max_nodes
        self._min_probability = min_probability
        self._followers: dict[int, Follower] = {}
        self._promises: dict[int, Promises] = {}

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        """A tree for each row that has a prediction."""
        trees = []
        for row, budget in enumerate(budgets):
            slot = view.slots[row]
            tree = NOTHING
            if min(budget) > 0 and slot in view.predictions:
                follower = self._followers.get(slot)
                if follower is None:
                    follower = self._followers[slot] = Follower(view.predictions[slot])
                    self._promises[slot] = Promises(weight=1)
                history, prompt = view.histories[row], view.prompts[row]
                follower.read(history, prompt)
                found = follower.continuations(history, prompt)
                promises = self._promises[slot]
                promises.expect(slot, history, found)
                nodes = min(self._max_nodes, budget.nodes)
                tokens, parents, confidences = found.tree(
                    nodes, budget.depth, self._min_probability, promises.scales
                )
                tree = Tree(tokens, parents, confidences=confidences)
            trees.append(tree)
        return trees

    def observe(self, step: Step) -> None:
        """The histories say all there is to know."""

    def release(self, slots: Sequence[int]) -> None:
        """Forget where these answers are in their predictions."""
        for slot in slots:
            self._followers.pop(slot, None)
            self._promises.pop(slot, None)


def build(info: TargetInfo, *, max_nodes: int = 15, min_probability: float = 0.03) -> Prediction:
    """Predictions given with the request.

    max_nodes        drafted tokens per request and step at most
    min_probability  what the first drafted token's estimated probability must be; the i-th token needs
                     i times as much

    Raises ConfigError for a value out of range.
    """
    if max_nodes < 1:
        raise ConfigError(f"prediction:max_nodes must be at least 1, got {max_nodes}")
    if not 0 < min_probability <= 1:
        raise ConfigError(f"prediction:min_probability must be above 0, up to 1, got {min_probability}")
    return Prediction(max_nodes, min_probability)
