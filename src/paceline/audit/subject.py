"""What an audit is about: a model by name, or the tiny exact model `table` that needs no download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.bench import prompts as prompt_files
from paceline.core import Target
from paceline.errors import ConfigError
from paceline.grammar import Grammar
from paceline.plugins import Option, parse_settings
from paceline.sampling import SamplingParams
from paceline.targets._options import refuse_rows
from paceline.transcript import Tokenizer

TABLE = "table"
TABLE_OPTIONS: Mapping[str, Option] = {"vocab_size": 8, "spread": 1.5, "seed": 0}
TABLE_PROMPTS = 80
CONTEXT = 160
"""Positions of the table model: few, so that answers also end where the context does."""
MAX_VOCABULARY = 26
EOS = 0


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt as token ids, with a name for reports."""

    id: str
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is audited.

    engine  options for every engine that is made for the audit
    """

    name: str
    target: Target
    tokenizer: Tokenizer
    questions: Sequence[Question]
    engine: Mapping[str, Any] = field(default_factory=dict)

    def spell(self, token: int) -> str:
        """A token as text, for people."""
        detokenizer = self.tokenizer.detokenizer()
        return detokenizer.push([token]) + detokenizer.finish()


def is_table(model: str) -> bool:
    """Whether the model is the tiny exact one."""
    return model.partition(":")[0] == TABLE


def resolve(
    model: str, prompts: Path | None, limit: int | None, threads: int | None, rows: int | None = None
) -> Subject:
    """The subject that a user names: "table", "table:vocab_size=8,spread=2,seed=1", a known model, a file.

    prompts: a file, None for those that come along; the table model makes its own. Raises ConfigError and
    ModelFileError.
    """
    if is_table(model):
        if prompts is not None:
            raise ConfigError("--prompts: the table model makes its own prompts; leave the option out")
        refuse_rows(model, rows)
        return _table(model, limit)
    from paceline.pretrained import load_model

    texts = prompt_files.choose(prompts, limit)
    target, tokenizer = load_model(model, threads=threads, rows=rows)
    questions = []
    for prompt in texts:
        if tokenizer.has_chat_template:
            tokens = tokenizer.apply_chat_template([{"role": "user", "content": prompt.text}])
        else:
            tokens = tokenizer.encode(prompt.text)
        if len(tokens) >= target.info.max_positions:
            raise ConfigError(
                f"prompt {prompt.id} has {len(tokens)} tokens; {target.info.name} takes up to "
                f"{target.info.max_positions - 1}"
            )
        questions.append(Question(prompt.id, tokens))
    return Subject(target.info.name, target, tokenizer, questions)


def _table(model: str, limit: int | None) -> Subject:
    from paceline.targets.table import TableTarget

    chosen = {**TABLE_OPTIONS, **parse_settings(TABLE, model.partition(":")[2], TABLE_OPTIONS)}
    size, spread, seed = int(chosen["vocab_size"]), float(chosen["spread"]), int(chosen["seed"])
    if not 4 <= size <= MAX_VOCABULARY:
        raise ConfigError(f"table:vocab_size must be 4 to {MAX_VOCABULARY}, got {size}")
    if not 0 < spread <= 20:
        raise ConfigError(f"table:spread must be above 0, up to 20, got {spread:g}")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"table:seed must be 0 to 2^32 - 1, got {seed}")
    target = TableTarget(size, seed=seed, spread=spread, max_positions=CONTEXT)
    rng = np.random.default_rng(seed)
    questions = []
    for number in range(limit or TABLE_PROMPTS):
        # Every eighth one leaves so little room that its answer ends with the context.
        low, high = (CONTEXT - 24, CONTEXT - 1) if number % 8 == 7 else (1, CONTEXT - 64)
        questions.append(Question(str(number), _text(target.table, int(rng.integers(low, high)), rng)))
    return Subject(TABLE, target, Letters(size), questions, {"chunk_tokens": 16, "nodes": 24})


def _text(table: NDArray[np.float64], length: int, rng: np.random.Generator) -> list[int]:
    """A text of the model's own, without ending tokens: drafters that learn from the prompt then have
    something to learn."""
    text = [0, int(rng.integers(1, len(table)))]
    while len(text) <= length:
        weights = np.exp(table[text[-2], text[-1]])
        weights[EOS] = 0
        text.append(int(rng.choice(len(weights), p=weights / weights.sum())))
    return text[1:]


def self_check_settings(max_tokens: int) -> list[SamplingParams]:
    """Every kind of control, each so strong that ignoring it, or applying it in the wrong place, shows."""
    settings: list[dict[str, Any]] = [
        {},
        {"temperature": 0.7, "top_k": 4},
        {"temperature": 1.3, "top_p": 0.8},
        {"min_p": 0.15},
        {"repetition_penalty": 1.6},
        {"presence_penalty": 1.2, "frequency_penalty": 0.5},
        {"min_tokens": 6, "logit_bias": {EOS: 4.0}},
        {"stop_token_ids": [3], "min_tokens": 4},
        {"stop": ["bc", "dab", "h"]},
        {"stop": ["cb", "gd"], "min_tokens": 5, "frequency_penalty": 1.0},
        {"ignore_eos": True, "logit_bias": {1: 1.5, 2: -100.0}, "temperature": 1.6},
        {"bad_words": ["bc", "ddb", "h"], "presence_penalty": -0.5},
    ]
    if find_spec("llguidance") is not None:
        settings.append({"grammar": Grammar.regex("(b|cd|e[bcd])*g?h")})
    return [
        SamplingParams(
            max_tokens=max_tokens,
            logprobs=1,
            **{**one, "min_tokens": min(one.get("min_tokens", 0), max_tokens)},
        )
        for one in settings
    ]


class Letters:
    """A tokenizer for the table model: one letter a token. Token 5 waits for the next one, as the first
    half of a character does."""

    eos_ids = frozenset({EOS})

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        """Token ids of a text of such letters."""
        return [ord(letter) - ord("a") for letter in text]

    def encode_part(self, text: str) -> list[int]:
        """Token ids of such letters in the middle of a text; others have none."""
        return [token for token in self.encode(text) if 0 <= token < self.vocab_size]

    def piece(self, token_id: int) -> bytes:
        """The token's letter."""
        return b"" if token_id in self.eos_ids else bytes([ord("a") + token_id])

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The messages one after the other."""
        return [token for message in messages for token in self.encode(message["content"])]

    def detokenizer(self) -> LetterByLetter:
        """Turns tokens into letters."""
        return LetterByLetter()


class LetterByLetter:
    """The detokenizer of `Letters`."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, token_ids: Sequence[int]) -> str:
        """The letters that are final."""
        text = ""
        for token in token_ids:
            self._held += chr(ord("a") + token)
            if token != 5:
                text, self._held = text + self._held, ""
        return text

    def finish(self) -> str:
        """A letter still waiting."""
        text, self._held = self._held, ""
        return text
