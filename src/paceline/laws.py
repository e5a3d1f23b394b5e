"""The laws at the nodes of a draft, evaluated where and when a rule asks for them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.bad_words import BadWords
from paceline.core import Draft, Lane, Scores, View
from paceline.device import OnDevice, draw_all
from paceline.grammar import GrammarLimit, Matcher
from paceline.kernels import draw as fused_draw
from paceline.logprobs import logprobs
from paceline.noise import Noise, gumbel
from paceline.results import FinishReason, TokenLogprobs
from paceline.sampling import SamplingParams, log_law, truncate


class Failure(NamedTuple):
    """Why an answer ends before its next token, as `finish_reason` and `stop_reason` will say."""

    reason: FinishReason
    why: str


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
    """One request's sampling parameters, resolved for its model, with what they need to remember.

    bad_words: the request's bad words as token sequences; matcher: follows the answer through its grammar.

    failures: {drafted tokens behind the committed history: why no token may follow them}. What was drawn
    there is void; the answer ends before it.
    """

    __slots__ = (
        "_bad_words",
        "_bias_tokens",
        "_biases",
        "_ending_tokens",
        "_masks",
        "_tally",
        "_tokens",
        "adjusts",
        "ending",
        "failures",
        "matcher",
        "params",
    )

    def __init__(
        self,
        params: SamplingParams,
        eos_ids: Iterable[int],
        prompt: Sequence[int],
        bad_words: Sequence[Sequence[int]] = (),
        matcher: Matcher | None = None,
    ) -> None:
        self.params = params
        self.ending = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else eos_ids)
        self.matcher = matcher
        self.failures: dict[tuple[int, ...], Failure] = {}
        self._bad_words = BadWords(bad_words) if bad_words else None
        self._masks = bool(params.min_tokens or bad_words or matcher or params.logits_processor)
        self.adjusts = bool(self._masks or params.counts_tokens or params.logit_bias)
        self._bias_tokens = np.array(list(params.logit_bias.keys()), np.int64)
        self._biases = np.array(list(params.logit_bias.values()), np.float64)
        self._ending_tokens = np.array(sorted(self.ending), np.int64)
        self._tokens = list(prompt) if params.logits_processor else []  # which it is told
        self._tally = Tally() if params.counts_tokens else None
        if self._tally is not None:
            for token in prompt:
                self._tally.add(token, 0)

    def answered(self, tokens: Sequence[int]) -> None:
        """These tokens were added to the answer. The matcher, which may cut them, has them already."""
        if self.params.logits_processor is not None:
            self._tokens.extend(tokens)
        if self._tally is not None:
            for token in tokens:
                self._tally.add(token, 1)
        if self._bad_words is not None:
            self._bad_words.answered(tokens)

    def adjust(self, logits: NDArray[Any], answered: int, path: Sequence[int]) -> NDArray[Any]:
        """A copy of the logits [V] after penalties, bias and masks.

        answered: tokens of the answer before the one to draw, `path` included; path: drafted tokens
        behind the committed history. Where the masks leave no token, or the caller's processor fails, that
        is noted in `failures`, and the logits come back as they are.
        """
        adjusted, failure = self._adjusted(logits, answered, path)
        if failure is None:
            return adjusted
        self.failures[tuple(path)] = failure
        return logits.copy()

    def attempt(self, logits: NDArray[Any], answered: int, path: Sequence[int]) -> NDArray[Any]:
        """As `adjust`, for the logits of a drafter: where no token is left all are -inf, and nothing is
        noted, for the target may see more tokens."""
        adjusted, failure = self._adjusted(logits, answered, path)
        return adjusted if failure is None else np.full_like(logits, -np.inf)

    def _adjusted(
        self, logits: NDArray[Any], answered: int, path: Sequence[int]
    ) -> tuple[NDArray[Any], Failure | None]:
        """A copy of the logits [V] after all controls, and why no token is left, if none is."""
        adjusted = logits.copy()
        if self._tally is not None:
            self._tally.penalise(adjusted, self.params, path)
        if len(self._biases):
            adjusted[self._bias_tokens] += self._biases.astype(logits.dtype)
        if self.params.logits_processor is not None:
            try:
                processed = self.params.logits_processor([*self._tokens, *path], adjusted)
                adjusted = np.array(processed, logits.dtype).reshape(logits.shape)
            except Exception as error:  # of the caller's own code: it ends this answer and no other
                said = " ".join(f"{type(error).__name__}: {error}".split())
                return adjusted, Failure("error", f"the logits_processor failed: {said}")
        why = self._mask(adjusted, answered, path) if self._masks else None
        return adjusted, None if why is None else Failure("cancelled", why)

    def _mask(self, logits: NDArray[Any], answered: int, path: Sequence[int]) -> str | None:
        """Apply the masks in place; why they leave no token, if they leave none."""
        if answered < self.params.min_tokens:
            logits[self._ending_tokens] = -np.inf
        if self._bad_words is not None:
            logits[self._bad_words.after(path)] = -np.inf
        if self.matcher is not None and self.ending.isdisjoint(path):
            try:
                mask = self.matcher.after(path)
            except GrammarLimit as error:
                return f"the grammar is too complex to go on: {error}"
            if mask is not None:
                allowed = mask.texts.copy()
                allowed[self._ending_tokens] |= mask.complete
                logits[~allowed] = -np.inf
        if logits.max() > -np.inf:
            return None
        return "the controls together leave no token: logits_processor, min_tokens, bad_words, grammar"


class Laws:
    """The target's law after every scored node of a draft, along the node's own path.

    Nothing is computed before it is asked for: a rule that leaves a branch pays nothing for it.
    """

    __slots__ = ("_draft", "_drawn", "_logits", "_offsets", "_parents", "_scored", "_view", "sound")

    def __init__(self, scores: Scores, draft: Draft, view: View) -> None:
        self.sound = True  # until logits are asked for that are not finite
        self._logits = scores.logits
        self._draft = draft
        self._view = view
        self._offsets = draft.offsets.tolist()
        self._parents = draft.parents.tolist()
        self._scored = {node: place for place, node in enumerate(draft.scored.tolist())}
        self._drawn: dict[int, int] | None = None  # {node: token} of what was drawn on the device

    def draw(self, node: int, noise: Noise, lane: Lane = Lane.TARGET) -> int:
        """The token that the target draws after `node`. At temperature 0 the likeliest, lowest id first.

        Raises KeyError if the node was not scored.
        """
        if isinstance(self._logits, OnDevice) and lane is Lane.TARGET:
            if self._drawn is None:
                self._drawn = self._draw_there(self._logits, noise)
            if node in self._drawn:
                return self._drawn[node]
        row = bisect_right(self._offsets, node) - 1
        params = self._view.controls[row].params
        position = int(self._draft.positions[node]) + 1
        logits = self._adjusted(row, node, position)
        if params.temperature == 0:
            return int(logits.argmax())
        key = noise.key(row, lane, position)
        if fused_draw is not None and logits.dtype == np.float32:
            token: int = fused_draw(logits, params.temperature, params.top_k, params.top_p, params.min_p, key)
            return token
        return int((truncate(logits, params) + gumbel(key, len(logits))).argmax())

    def _draw_there(self, logits: OnDevice, noise: Noise) -> dict[int, int]:
        """The token after every node that may be asked for, drawn on the device; not for rows whose logits
        the host adjusts, nor where logits are not finite."""
        nodes, keys, params = [], [], []
        for node in self._scored:
            row = bisect_right(self._offsets, node) - 1
            controls = self._view.controls[row]
            if node >= self._draft.roots[row] >= 0 and not controls.adjusts:
                nodes.append(node)
                params.append(controls.params)
                keys.append(noise.key(row, Lane.TARGET, int(self._draft.positions[node]) + 1))
        if not nodes:
            return {}
        if len(nodes) < len(logits):
            logits = logits[[self._scored[node] for node in nodes]]
        tokens, sound = draw_all(logits.values, params, keys)
        return {node: token for node, token, fine in zip(nodes, tokens, sound, strict=True) if fine}

    def law(self, node: int) -> NDArray[np.float64]:
        """The law after `node`: probabilities float64 [V]. Raises KeyError if the node was not scored."""
        return np.exp(self.log_law(node))

    def log_law(self, node: int) -> NDArray[np.float64]:
        """The whole law after `node`: log-probabilities float64 [V], -inf = impossible.

        Raises KeyError if the node was not scored.
        """
        row = bisect_right(self._offsets, node) - 1
        logits = self._adjusted(row, node, int(self._draft.positions[node]) + 1)
        law: NDArray[np.float64] = log_law(logits, self._view.controls[row].params)
        return law

    def logprobs(self, node: int, token: int, top: int) -> TokenLogprobs:
        """What a request that asks for log-probabilities is told of the token after `node`: its own, and
        those of the `top` likeliest. NaN where the logits are not finite."""
        return logprobs(self._logits[self._scored[node]], token, top)

    def _adjusted(self, row: int, node: int, position: int) -> NDArray[Any]:
        """The logits [V] after `node`, with penalties, bias and masks; position: of the token to draw.

        Where the target gave NaN, +inf or nothing but -inf, the answer will end before this token, and what
        comes back only serves to finish the step."""
        logits: NDArray[Any] = self._logits[self._scored[node]]
        controls = self._view.controls[row]
        if not isfinite(logits.max()):
            why = f"the target gave logits that are not finite, for the token at position {position}"
            controls.failures[tuple(self._path(row, node))] = Failure("error", why)
            self.sound = False
            return np.zeros_like(logits)
        if not controls.adjusts:
            return logits
        return controls.adjust(logits, position - self._view.prompts[row], self._path(row, node))

    def _path(self, row: int, node: int) -> list[int]:
        """The drafted tokens from below the row's root down to `node`."""
        path, root = [], self._draft.roots[row]
        while node != root:
            path.append(int(self._draft.tokens[node]))
            node = self._parents[node]
        return path[::-1]
