"""What the target itself says about a finished answer, worked out apart from the engine's loop.

The referee reads prompt and answer as one known text, scores every position, and evaluates the slow
reference `warp` with what stood before. It shares with the engine the target, `warp` and the definition of
the noise, and nothing else: no scheduler, no drafts, no rule, none of the fast paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.bad_words import spell
from paceline.core import Draft, Lane, Target, Verdict
from paceline.grammar import Grammars
from paceline.noise import Noise, gumbel
from paceline.results import Completion
from paceline.sampling import Context, SamplingParams, warp
from paceline.transcript import Tokenizer

CHUNK = 64
"""Tokens that are read in one pass."""

LOGPROB_TOLERANCE = 1e-9
"""Log-probabilities come from the same logits; only the order of a sum may differ."""


class Reckoning(NamedTuple):
    """The referee's draw at one position.

    drawn    the token that stands first
    gap      how far the token that was emitted stands behind it
    top_two  how far the second stands behind the first

    What is ordered: logits after penalties, bias and masks at temperature 0; log-probability plus the
    position's noise otherwise.
    """

    drawn: int
    gap: float
    top_two: float


class Referee:
    """Judges answers of one target, which no engine may be using at the same time."""

    def __init__(self, target: Target, eos_ids: frozenset[int], tokenizer: Tokenizer) -> None:
        self._target = target
        self._eos_ids = eos_ids
        self._tokenizer = tokenizer
        self._grammars = Grammars(tokenizer, target.info.vocab_size, eos_ids)

    def laws(
        self, prompt: Sequence[int], answer: Sequence[int], params: SamplingParams
    ) -> Iterator[NDArray[np.float64]]:
        """The law before every answer token: log-probabilities float64 [V], one after the other."""
        ending, words = self._ending(params), spell(params.bad_words, self._tokenizer)
        matcher = self._grammars.matcher(params.grammar) if params.grammar else None
        for place, logits in enumerate(self._logits(prompt, answer)):
            allowed = None
            if matcher is not None and (mask := matcher.after(())) is not None:
                allowed = mask.texts.copy()
                allowed[list(ending)] |= mask.complete
            context = Context(prompt, answer[:place], ending, words, allowed)
            law: NDArray[np.float64] = warp(logits, params, context)
            yield law
            if matcher is not None:
                matcher.advance(answer[place : place + 1])

    def reckon(
        self, prompt: Sequence[int], answer: Sequence[int], params: SamplingParams, seed: int
    ) -> Iterator[Reckoning]:
        """For every answer token, the one that the target draws there with the request's own noise."""
        # Log-probabilities at temperature 1 without truncation are the adjusted logits, but for a constant.
        scale = params
        if params.temperature == 0:
            scale = replace(params, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
        noise = Noise([seed])
        for place, x in enumerate(self.laws(prompt, answer, scale)):
            if params.temperature > 0:
                x = x + gumbel(noise.key(0, Lane.TARGET, len(prompt) + place), len(x))
            drawn = int(x.argmax())
            first = x[drawn]
            gap = float(first - x[answer[place]])
            x[drawn] = -np.inf
            yield Reckoning(drawn, gap, float(first - x.max()))

    def wrong_logprobs(self, prompt: Sequence[int], done: Completion) -> str | None:
        """What is wrong with the log-probabilities of this answer, in words; None if nothing is."""
        stated = done.logprobs or ()
        if done.logprobs is not None and len(stated) != len(done.token_ids):
            return f"has {len(stated)} log-probabilities for {len(done.token_ids)} tokens"
        for place, (said, logits) in enumerate(
            zip(stated, self._logits(prompt, done.token_ids), strict=False)
        ):
            x = logits.astype(np.float64)
            x -= x.max() + np.log(np.exp(x - x.max()).sum())
            for one in (said, *said.top):
                if not abs(x[one.token_id] - one.logprob) < LOGPROB_TOLERANCE:
                    return (
                        f"gives token {one.token_id} at position {place} the log-probability "
                        f"{one.logprob:.6g}, it has {x[one.token_id]:.6g}"
                    )
        return None

    def wrong_end(self, prompt: Sequence[int], done: Completion, params: SamplingParams) -> str | None:
        """What is wrong with where this answer ends, in words; None if nothing is.

        Ending tokens, stop strings and lengths are looked for one token at a time.
        """
        answer, ending = done.token_ids, self._ending(params)
        limit = min(params.max_tokens, self._target.info.max_positions - len(prompt))
        first = next((place for place, token in enumerate(answer, 1) if token in ending), None)
        if first is not None and first < len(answer):
            return f"goes on after the ending token at position {first - 1}"
        if len(answer) > limit:
            return f"has {len(answer)} tokens, allowed are {limit}"
        spoken = answer if first is None else answer[:-1]
        text, used, stop = self._read(spoken, params)
        if stop is not None and used < len(answer):
            return f"goes on after the stop string {stop!r} at position {used - 1}"
        complete = self._complete(spoken, params)
        if complete is not None and complete < len(answer):
            return f"goes on after its grammar was complete at position {complete - 1}"
        expected: tuple[str, str | int | None]
        if stop is not None:
            expected = ("stop", stop)
        elif first is not None:
            expected = ("stop", answer[-1])
        elif complete is not None:
            expected = ("stop", None)
        elif len(answer) == limit:
            expected = ("length", None)
        else:
            return f"ends after {len(answer)} of {limit} tokens without a reason"
        if (done.finish_reason, done.stop_reason) != expected:
            return f"says it ended by {done.finish_reason}, {done.stop_reason!r}; it did by {expected}"
        return (
            None if done.text == text else f"has the text {done.text[-40:]!r}, its tokens say {text[-40:]!r}"
        )

    def _read(self, tokens: Sequence[int], params: SamplingParams) -> tuple[str, int, str | None]:
        """The text up to the first stop string, the tokens read until it was complete (one more than there
        are if it was complete only at the answer's end), and the string."""
        detokenizer = self._tokenizer.detokenizer()
        text = ""
        for used in range(1, len(tokens) + 2):
            before = len(text)
            text += detokenizer.push(tokens[used - 1 : used]) if used <= len(tokens) else detokenizer.finish()
            found = [
                (start + len(stop), start, stop)
                for stop in params.stop
                if (start := text.find(stop, max(0, before - len(stop) + 1))) >= 0
            ]
            if found and min(used, len(tokens)) >= params.min_tokens:
                _, start, stop = min(found)
                return text[:start], used, stop
        return text, len(tokens), None

    def _complete(self, tokens: Sequence[int], params: SamplingParams) -> int | None:
        """After how many tokens the grammar allows nothing more; None if it always does."""
        if params.grammar is None:
            return None
        matcher = self._grammars.matcher(params.grammar)
        ends = (count for count, token in enumerate(tokens, 1) if matcher.advance([token])[1])
        return next(ends, None)

    def _ending(self, params: SamplingParams) -> frozenset[int]:
        return frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_ids)

    def _logits(self, prompt: Sequence[int], answer: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Raw logits [V] before every answer token. The target is free again when the iterator ends."""
        text = [*prompt, *answer][:-1]
        target, slot = self._target, 0
        try:
            for start in range(0, len(text), CHUNK):
                draft = _known(slot, text[start : start + CHUNK], start, len(prompt) - 1)
                logits = target.forward(draft, frozenset()).logits
                target.commit(draft, Verdict([[]], [-1]))
                yield from np.array(logits)
        finally:
            target.release([slot])


def _known(slot: int, tokens: Sequence[int], start: int, first: int) -> Draft:
    """A pass over the next tokens of a text that is known, scored from the position `first` on."""
    count = len(tokens)
    return Draft(
        np.array([slot], np.int32),
        np.array([0, count], np.int32),
        np.array([start], np.int32),
        np.array(tokens, np.int32),
        np.arange(-1, count - 1, dtype=np.int32),
        np.arange(start, start + count, dtype=np.int32),
        [-1],
        np.arange(max(0, first - start), count, dtype=np.int32),
    )
