"""The laws at the nodes of a draft, evaluated where and when a rule asks for them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.core import Draft, Lane, Scores, View
from paceline.kernels import draw as fused_draw
from paceline.noise import Noise, gumbel
from paceline.sampling import Context, SamplingParams, truncate, warp


class Tally:
    """How often each token stands in the prompt and answer so far, kept up to date token by token.

    A penalty then costs one pass over the distinct tokens, never one over the history.
    """

    __slots__ = ("_answer_counts", "_places", "_tokens")

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._tokens = np.empty(256, np.int64)
        self._answer_counts = np.empty(256, np.float64)

    def add(self, token: int, count: int) -> None:
        """Note a token. count: 1 if it belongs to the answer, 0 if to the prompt."""
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = len(self._places)
            if place == len(self._tokens):
                self._tokens = np.resize(self._tokens, 2 * place)
                self._answer_counts = np.resize(self._answer_counts, 2 * place)
            self._tokens[place] = token
            self._answer_counts[place] = 0
        self._answer_counts[place] += count

    def penalise(self, logits: NDArray[Any], params: SamplingParams, path: Sequence[int]) -> None:
        """Apply the penalties in place, as if the tokens of `path` stood behind the answer."""
        before = len(self._places)
        for token in path:
            self.add(token, 1)
        distinct = len(self._places)
        tokens, counts = self._tokens[:distinct], self._answer_counts[:distinct]
        if params.repetition_penalty != 1:
            x, r = logits[tokens], params.repetition_penalty
            logits[tokens] = np.where(x > 0, x / r, x * r)
        if params.presence_penalty or params.frequency_penalty:
            penalty = params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
            logits[tokens] -= penalty.astype(logits.dtype)
        for token in path:
            self._answer_counts[self._places[token]] -= 1
        while len(self._places) > before:
            self._places.popitem()


class Controls:
    """One request's sampling parameters, resolved for its model, with what they need to remember."""

    __slots__ = ("_bias_tokens", "_biases", "_ending_tokens", "_tally", "adjusts", "ending", "params")

    def __init__(self, params: SamplingParams, eos_ids: Iterable[int], prompt: Sequence[int]) -> None:
        self.params = params
        self.ending = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else eos_ids)
        self.adjusts = bool(params.counts_tokens or params.logit_bias or params.min_tokens)
        self._bias_tokens = np.array(list(params.logit_bias.keys()), np.int64)
        self._biases = np.array(list(params.logit_bias.values()), np.float64)
        self._ending_tokens = np.array(sorted(self.ending), np.int64)
        self._tally = Tally() if params.counts_tokens else None
        if self._tally is not None:
            for token in prompt:
                self._tally.add(token, 0)

    def answered(self, tokens: Iterable[int]) -> None:
        """These tokens were added to the answer."""
        if self._tally is not None:
            for token in tokens:
                self._tally.add(token, 1)

    def adjust(self, logits: NDArray[Any], answered: int, path: Sequence[int]) -> NDArray[Any]:
        """A copy of the logits [V] after penalties, bias and masks.

        answered: tokens of the answer before the one to draw, `path` included; path: drafted tokens
        behind the committed history.
        """
        adjusted = logits.copy()
        if self._tally is not None:
            self._tally.penalise(adjusted, self.params, path)
        if len(self._biases):
            adjusted[self._bias_tokens] += self._biases.astype(logits.dtype)
        if answered < self.params.min_tokens:
            adjusted[self._ending_tokens] = -np.inf
        return adjusted


class Laws:
    """The target's law after every scored node of a draft, along the node's own path.

    Nothing is computed before it is asked for: a rule that leaves a branch pays nothing for it.
    """

    __slots__ = ("_draft", "_logits", "_offsets", "_parents", "_scored", "_view")

    def __init__(self, scores: Scores, draft: Draft, view: View) -> None:
        self._logits = scores.logits
        self._draft = draft
        self._view = view
        self._offsets = draft.offsets.tolist()
        self._parents = draft.parents.tolist()
        self._scored = {node: place for place, node in enumerate(draft.scored.tolist())}

    def draw(self, node: int, noise: Noise, lane: Lane = Lane.TARGET) -> int:
        """The token that the target draws after `node`. At temperature 0 the likeliest, lowest id first.

        Raises KeyError if the node was not scored.
        """
        row = bisect_right(self._offsets, node) - 1
        logits = self._logits[self._scored[node]]
        controls = self._view.controls[row]
        params = controls.params
        position = int(self._draft.positions[node]) + 1
        if controls.adjusts:
            logits = controls.adjust(logits, position - self._view.prompts[row], self._path(row, node))
        if params.temperature == 0:
            return int(logits.argmax())
        key = noise.key(row, lane, position)
        if fused_draw is not None and logits.dtype == np.float32:
            token: int = fused_draw(logits, params.temperature, params.top_k, params.top_p, params.min_p, key)
            return token
        return int((truncate(logits, params) + gumbel(key, len(logits))).argmax())

    def law(self, node: int) -> NDArray[np.float64]:
        """The law after `node`: probabilities float64 [V]. Raises KeyError if the node was not scored."""
        return np.exp(self.log_law(node))

    def log_law(self, node: int) -> NDArray[np.float64]:
        """The whole law after `node`: log-probabilities float64 [V], -inf = impossible.

        Raises KeyError if the node was not scored.
        """
        row = bisect_right(self._offsets, node) - 1
        controls, prompt = self._view.controls[row], self._view.prompts[row]
        history = [*self._view.histories[row], *self._path(row, node)]
        context = Context(history[:prompt], history[prompt:], controls.ending)
        return warp(self._logits[self._scored[node]], controls.params, context)

    def _path(self, row: int, node: int) -> list[int]:
        """The drafted tokens from below the row's root down to `node`."""
        path, root = [], self._draft.roots[row]
        while node != root:
            path.append(int(self._draft.tokens[node]))
            node = self._parents[node]
        return path[::-1]
