"""Sampling controls: what a request asks for, and the reference that turns logits into a law.

The order of the controls, in every implementation:

1. on the raw logits: repetition, then frequency and presence penalty, logit bias, the caller's own
   `logits_processor`, and the masks: ending tokens before `min_tokens`, tokens that would complete a bad
   word, tokens that the grammar excludes;
2. x = float64(logit) / temperature;
3. top-k keeps the k largest x (of equal ones the lower ids);
4. top-p, on the softmax of those: sorted by x falling and id rising, the shortest prefix whose
   cumulative probability reaches top-p;
5. min-p keeps the tokens whose probability is at least min-p times the largest.

`warp` says so slowly and plainly, for any array library; `paceline.laws` evaluates it fast along the paths
of a draft.
"""

from __future__ import annotations

import math
import numbers
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from paceline.errors import ConfigError
from paceline.grammar import Grammar

Array = Any
"""An array of NumPy or of another array-API library."""

MAX_SEED = 2**63 - 1
MAX_TOKENS = 2**31 - 1
SMALLEST_TEMPERATURE = 1e-6  # below it logit / temperature may overflow; 0 means greedy
MAX_STOPS = 4
MAX_STOP_LENGTH = 1000
MAX_BIASES = 1024
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_LENGTH = 1000
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the tokens of one answer are drawn, and where it ends.

    temperature         0 always takes the likeliest token; 1 is the model's own law; at most 2
    top_k               keep the k likeliest tokens; 0 keeps all
    top_p               keep the likeliest tokens that together reach this probability, above 0, to 1
    min_p               drop tokens less likely than this fraction of the likeliest one, 0 to 1
    repetition_penalty  divides (negative: multiplies) logits of tokens in prompt or answer, above 0, to 10
    presence_penalty    taken off the logits of tokens that the answer holds, -2 to 2
    frequency_penalty   taken off once per occurrence in the answer, -2 to 2
    logit_bias          {token id: number from -100 to 100} added to logits, at most 1024 entries
    logits_processor    a function of the token ids so far (prompt and answer) and logits [V] that gives other
                        logits [V]: the same ones for the same tokens, however often it is asked
    bad_words           words that the answer must not hold: text, in its usual spellings with and without a
                        space before it, or sequences of token ids; at most 1024
    grammar             the answer is a text of this grammar, which ends it: paceline.Grammar
    min_tokens          no ending token and no stop string counts before so many tokens
    max_tokens          the answer's length at most; the end of the model's context cuts earlier
    stop                up to 4 strings that end the answer and are cut from its text
    stop_token_ids      tokens that end the answer, besides the model's own end-of-sequence tokens
    ignore_eos          go on past the model's end-of-sequence tokens
    logprobs            report every token's log-probability and this many of the likeliest tokens', 0 to 20:
                        the model's own, before all of the above. None reports none
    prompt_logprobs     the same for the tokens of the prompt, from the second on
    seed                0 to 2^63 - 1; the same seed gives the same answer. None takes a random one

    Raises ConfigError naming the field, its value and what is allowed. With a grammar, min_tokens and
    ignore_eos are refused: the grammar says where the answer may end. Stop strings, stop tokens and
    max_tokens stay in force and may cut the answer before it is complete.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logits_processor: Callable[[Sequence[int], Array], Array] | None = None
    bad_words: Sequence[str | Sequence[int]] = ()
    grammar: Grammar | None = None
    min_tokens: int = 0
    max_tokens: int = 256
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (_is_real(self.temperature) and self.temperature == 0):
            _real("temperature", self.temperature, SMALLEST_TEMPERATURE, 2, say="0 (greedy) or 1e-06 to 2")
        _real("top_p", self.top_p, 0, 1, open_below=True)
        _real("min_p", self.min_p, 0, 1)
        _real("repetition_penalty", self.repetition_penalty, 0, 10, open_below=True)
        _real("presence_penalty", self.presence_penalty, -2, 2)
        _real("frequency_penalty", self.frequency_penalty, -2, 2)
        _whole("top_k", self.top_k, 0, MAX_TOKENS)
        _whole("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        _whole("min_tokens", self.min_tokens, 0, self.max_tokens, say=f"0 to max_tokens ({self.max_tokens})")
        if self.seed is not None:
            _whole("seed", self.seed, 0, MAX_SEED, say="0 to 2^63 - 1, or None")
        if not isinstance(self.ignore_eos, bool):
            raise ConfigError(f"ignore_eos must be True or False, got {self.ignore_eos!r}")
        for name in ("logprobs", "prompt_logprobs"):
            if (count := getattr(self, name)) is not None:
                _whole(name, count, 0, MAX_LOGPROBS, say=f"0 to {MAX_LOGPROBS}, or None")
        if self.logits_processor is not None and not callable(self.logits_processor):
            raise ConfigError(f"logits_processor must be a function, got {self.logits_processor!r}")
        if self.grammar is not None:
            self._check_grammar()
        object.__setattr__(self, "bad_words", _bad_words(self.bad_words))
        object.__setattr__(self, "stop", _stops(self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))

    def _check_grammar(self) -> None:
        if not isinstance(self.grammar, Grammar):
            raise ConfigError(f"grammar must be a paceline.Grammar, got {self.grammar!r}")
        if self.min_tokens:
            raise ConfigError(
                f"min_tokens must be 0 with a grammar, which says where the answer may end; "
                f"got {self.min_tokens}"
            )
        if self.ignore_eos:
            raise ConfigError("ignore_eos must be False with a grammar, which says where the answer may end")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises ConfigError if a token id of this request is not in a vocabulary of this size."""
        named = [("stop_token_ids", self.stop_token_ids), ("logit_bias", list(self.logit_bias))]
        named += [("bad_words", tuple(word)) for word in self.bad_words if not isinstance(word, str)]
        for name, tokens in named:
            for token in tokens:
                if token >= vocab_size:
                    raise ConfigError(f"{name} holds token id {token}; this model has 0 to {vocab_size - 1}")

    @property
    def counts_tokens(self) -> bool:
        """Whether the law depends on which tokens came before, beyond what the model makes of them."""
        return not (
            self.repetition_penalty == 1 and self.presence_penalty == 0 and self.frequency_penalty == 0
        )


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def _real(
    name: str, value: Any, low: float, high: float, *, open_below: bool = False, say: str | None = None
) -> None:
    """Refuse anything but a finite number from low to high."""
    allowed = say or (f"above {low}, up to {high}" if open_below else f"{low} to {high}")
    fits = _is_real(value) and math.isfinite(value) and low <= value <= high
    if not fits or (open_below and value == low):
        raise ConfigError(f"{name} must be a number, {allowed}; got {value!r}")


def _whole(name: str, value: Any, low: int, high: int, *, say: str | None = None) -> None:
    """Refuse anything but a whole number from low to high."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)
    if not whole or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number, {say or f'{low} to {high}'}; got {value!r}")


def _stops(value: Any) -> tuple[str, ...]:
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, Sequence) or not all(isinstance(text, str) for text in stops):
        raise ConfigError(f"stop must be a list of strings, got {value!r}")
    if len(stops) > MAX_STOPS:
        raise ConfigError(f"stop may hold up to {MAX_STOPS} strings, got {len(stops)}")
    for text in stops:
        if not 1 <= len(text) <= MAX_STOP_LENGTH:
            raise ConfigError(f"a stop string has 1 to {MAX_STOP_LENGTH} characters, got one of {len(text)}")
    return tuple(stops)


def _bad_words(value: Any) -> tuple[str | tuple[int, ...], ...]:
    words = (value,) if isinstance(value, str) else value
    if not isinstance(words, Sequence):
        raise ConfigError(f"bad_words must be a list of words, got {value!r}")
    if len(words) > MAX_BAD_WORDS:
        raise ConfigError(f"bad_words may hold up to {MAX_BAD_WORDS} words, got {len(words)}")
    checked = tuple(word if isinstance(word, str) else _token_ids("bad_words", word) for word in words)
    for word in checked:
        if not 1 <= len(word) <= MAX_BAD_WORD_LENGTH:
            raise ConfigError(
                f"a word in bad_words has 1 to {MAX_BAD_WORD_LENGTH} characters or tokens, got {len(word)}"
            )
    return checked


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{name} must be a list of token ids, got {value!r}")
    for token in value:
        _whole(f"a token id in {name}", token, 0, MAX_TOKENS)
    return tuple(int(token) for token in value)


def _biases(value: Any) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"logit_bias must map token ids to numbers, got {value!r}")
    if len(value) > MAX_BIASES:
        raise ConfigError(f"logit_bias may hold up to {MAX_BIASES} entries, got {len(value)}")
    _token_ids("logit_bias", list(value))
    for token, bias in value.items():
        _real(f"logit_bias[{token}]", bias, -100, 100)
    return {int(token): float(bias) for token, bias in value.items()}


class Context(NamedTuple):
    """What stands before the token that is drawn, and what it must not be.

    prompt, answer  token ids
    ending          tokens that would end the answer
    bad_words       token sequences that the answer must not hold
    allowed         the tokens that the grammar allows here, bool [V]; None allows all
    """

    prompt: Sequence[int]
    answer: Sequence[int]
    ending: frozenset[int]
    bad_words: Sequence[Sequence[int]] = ()
    allowed: Array | None = None


def warp(logits: Array, params: SamplingParams, context: Context) -> Array:
    """The law of the next token after all controls: log-probabilities float64 [V], -inf = impossible.

    logits: raw, float [V], of any array-API library; at least one token must be left possible. The
    readable reference that every faster path is tested against.
    """
    xp = array_namespace(logits)
    tokens = range(logits.shape[0])

    def per_token(values: list[Any], dtype: Any) -> Array:
        return xp.asarray(values, dtype=dtype, device=device(logits))

    answer = list(context.answer)
    occurrences, seen = Counter(answer), {*context.prompt, *answer}
    counts = per_token([occurrences[token] for token in tokens], xp.float64)
    r = params.repetition_penalty
    x = xp.where(
        per_token([token in seen for token in tokens], xp.bool),
        xp.where(logits > 0, logits / r, logits * r),
        logits,
    )
    penalty = params.frequency_penalty * counts
    penalty = penalty + params.presence_penalty * xp.astype(counts > 0, xp.float64)
    x = x - xp.astype(penalty, x.dtype)
    x = x + per_token([params.logit_bias.get(token, 0.0) for token in tokens], x.dtype)
    if params.logits_processor is not None:
        x = xp.asarray(params.logits_processor([*context.prompt, *answer], x), dtype=x.dtype)

    forbidden = {
        word[-1] for word in context.bad_words if answer[len(answer) - len(word) + 1 :] == list(word[:-1])
    }
    if len(answer) < params.min_tokens:
        forbidden |= context.ending
    x = xp.where(per_token([token in forbidden for token in tokens], xp.bool), -xp.inf, x)
    if context.allowed is not None:
        x = xp.where(context.allowed, x, -xp.inf)
    return log_law(x, params)


def log_law(adjusted: Array, params: SamplingParams) -> Array:
    """The law of logits [V] with penalties, bias and masks applied: log-probabilities float64 [V].

    At temperature 0 the likeliest token, of equal ones the lowest id, has probability 1.
    """
    xp = array_namespace(adjusted)
    if params.temperature == 0:
        ids = xp.arange(adjusted.shape[0], device=device(adjusted))
        return xp.where(ids == xp.argmax(adjusted), xp.asarray(0.0, dtype=xp.float64), -xp.inf)
    x = truncate(adjusted, params)
    x = x - xp.max(x)
    return x - xp.log(xp.sum(xp.exp(x)))


def truncate(logits: Array, params: SamplingParams) -> Array:
    """Logits over the temperature, float64 [V], with -inf for the tokens that top-k, top-p or min-p drop.

    logits: float [V] with penalties, bias and masks already applied; the temperature is not 0.
    """
    xp = array_namespace(logits)
    x = xp.astype(logits, xp.float64) / params.temperature
    if params.top_k or params.top_p < 1:
        order = xp.argsort(-x, stable=True)
        kept = min(params.top_k or x.shape[0], x.shape[0])
        if params.top_p < 1:
            ranked = xp.take(x, order[:kept])
            cumulative = xp.cumulative_sum(xp.exp(ranked - ranked[0]))
            kept = int(xp.sum(xp.astype(cumulative < params.top_p * cumulative[-1], xp.int64))) + 1
        rank = xp.argsort(order)
        x = xp.where(rank < kept, x, -xp.inf)
    if params.min_p > 0:
        x = xp.where(xp.exp(x - xp.max(x)) < params.min_p, -xp.inf, x)
    return x
