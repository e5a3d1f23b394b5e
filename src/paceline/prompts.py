"""What users may give as a prompt, and its token ids."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import numpy as np

from paceline.errors import ConfigError
from paceline.transcript import Tokenizer

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""Text, token ids, or chat messages such as {"role": "user", "content": "Hello"}."""

T = TypeVar("T")


def prompt_tokens(prompt: Prompt, vocab_size: int, tokenizer: Tokenizer | None) -> list[int]:
    """The prompt as token ids, all in the vocabulary. Raises ConfigError."""
    tokens = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
    if isinstance(tokens, str) or (tokens and isinstance(tokens[0], Mapping)):
        if tokenizer is None:
            raise ConfigError("this engine has no tokenizer; give the prompt as token ids")
        if isinstance(tokens, str):
            return tokenizer.encode(tokens)
        return tokenizer.apply_chat_template(cast(Sequence[Mapping[str, str]], tokens))
    return _checked("prompt", cast(Sequence[int], tokens), vocab_size)


def _checked(what: str, tokens: Sequence[int], vocab_size: int) -> list[int]:
    last = vocab_size - 1
    for token in tokens:
        if type(token) is not int or not 0 <= token <= last:
            raise ConfigError(f"a {what}'s token ids are whole numbers from 0 to {last}, got {token!r}")
    return cast(list[int], tokens)


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """A list of prompts, from one prompt or several."""
    if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], numbers.Number | Mapping)):
        return [cast(Prompt, prompts)]
    return cast(Sequence[Prompt], prompts)


Prediction = str | Sequence[int]
"""What the caller expects the answer to be: text or token ids."""


def prediction_tokens(
    prediction: Prediction | None, vocab_size: int, tokenizer: Tokenizer | None
) -> Sequence[int]:
    """A predicted answer as token ids, none if there is no prediction. Raises ConfigError."""
    if prediction is None:
        return ()
    if isinstance(prediction, str):
        if tokenizer is None:
            raise ConfigError("this engine has no tokenizer; give the prediction as token ids")
        return tokenizer.encode_part(prediction)
    tokens = prediction.tolist() if isinstance(prediction, np.ndarray) else prediction
    return _checked("prediction", tokens, vocab_size)


def predictions_per_prompt(
    value: Prediction | Sequence[Prediction | None] | None, count: int
) -> Sequence[Prediction | None]:
    """The prediction for each of `count` prompts, from one for all or one per prompt. Raises ConfigError if
    there are more or fewer."""
    if value is None or isinstance(value, str) or not len(value) or isinstance(value[0], numbers.Number):
        return [cast(Prediction | None, value)] * count
    if len(value) != count:
        raise ConfigError(f"prediction: give one or one per prompt; got {len(value)}, prompts are {count}")
    return cast(Sequence[Prediction | None], value)


def per_prompt(name: str, value: T | Sequence[T] | None, kind: type[T], count: int) -> Sequence[T | None]:
    """The value for each of `count` prompts, from one for all or one per prompt.

    Raises ConfigError naming the parameter if there are more or fewer.
    """
    if value is None or isinstance(value, kind):
        return [value] * count
    values = cast(Sequence[T], value)
    if len(values) != count:
        raise ConfigError(f"{name}: give one or one per prompt; got {len(values)}, prompts are {count}")
    return values
