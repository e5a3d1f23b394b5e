"""Answers that keep to a grammar: what a request asks for, and the matcher that follows its answer.

The work is done by llguidance (https://github.com/guidance-ai/llguidance), which is imported when a grammar
is first used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.errors import ConfigError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MAX_BYTES = 65536
MAX_DEPTH = 32

_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One space behind commas and colons and no other: where blanks are free, a model may write them for ever."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """The texts that an answer may be. Made by one of the functions below, which raise ConfigError for a
    text that is none of its kind, larger than 64 KiB or nested deeper than 32 levels.

    kind    "json_schema", "json_object", "regex" or "lark"
    source  the schema as JSON, the pattern, or the grammar
    """

    kind: Literal["json_schema", "json_object", "regex", "lark"]
    source: str

    @staticmethod
    def json_schema(schema: str | Mapping[str, Any]) -> Grammar:
        """JSON that a schema describes, with one space behind commas and colons. schema: JSON or a dict."""
        try:
            text = schema if isinstance(schema, str) else json.dumps(schema)
            parsed = json.loads(text) if len(text) <= MAX_BYTES else {}  # too large: refused below
        except RecursionError:
            raise ConfigError(f"the JSON schema is nested too deep, allowed are {MAX_DEPTH}") from None
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the JSON schema is not JSON: {_line(str(error))}") from None
        if not isinstance(parsed, dict):
            raise ConfigError(f"the JSON schema must be an object, got {text[:60]!r}")
        if _depth(parsed) > MAX_DEPTH:
            raise ConfigError(f"the JSON schema is nested {_depth(parsed)} deep, allowed are {MAX_DEPTH}")
        return Grammar("json_schema", text)._checked()

    @staticmethod
    def json_object() -> Grammar:
        """Any JSON object, with one space behind commas and colons."""
        return Grammar("json_object", '{"type": "object"}')._checked()

    @staticmethod
    def regex(pattern: str) -> Grammar:
        """Texts that a regular expression matches as a whole (the syntax of Rust's regex crate)."""
        return Grammar("regex", pattern)._checked()

    @staticmethod
    def lark(text: str) -> Grammar:
        """Texts of a context-free grammar in llguidance's variant of Lark's notation."""
        return Grammar("lark", text)._checked()

    def _checked(self) -> Grammar:
        what = {"regex": "the regular expression", "lark": "the grammar"}.get(self.kind, "the JSON schema")
        if not isinstance(self.source, str):
            raise ConfigError(f"{what} must be text, got {self.source!r}")
        if (size := len(self.source.encode("utf-8", "replace"))) > MAX_BYTES:
            raise ConfigError(f"{what} has {size} bytes, allowed are {MAX_BYTES}")
        try:
            error = _llguidance().LLMatcher.validate_grammar(self.compile(), limits=_limits())
        except ValueError as refused:  # what is no JSON to it, or no Unicode
            error = str(refused)
        if error:
            raise ConfigError(f"{what} cannot be used: {_line(error)}")
        return self

    def compile(self) -> str:
        """The grammar as llguidance takes it."""
        matcher = _llguidance().LLMatcher
        if self.kind == "regex":
            text: str = matcher.grammar_from_regex(self.source)
        elif self.kind == "lark":
            text = matcher.grammar_from_lark(self.source)
        else:
            text = matcher.grammar_from_json_schema(self.source, overrides=_JSON_STYLE)
        return text


class Vocabulary(Protocol):
    """What grammars ask of a tokenizer."""

    vocab_size: int

    def piece(self, token_id: int) -> bytes: ...

    def encode_part(self, text: str) -> list[int]: ...


class GrammarLimit(Exception):
    """The grammar is too complex to follow. The message is one line."""


class Mask(NamedTuple):
    """What the grammar allows at one place.

    texts: the tokens that go on with a text of the grammar, bool [V]; complete: whether the answer so far
    is one, so that it may end.
    """

    texts: NDArray[np.bool_]
    complete: bool


class Grammars:
    """Makes matchers for one model.

    vocab_size: V of the target, which may have more logits than the tokenizer has tokens. eos_ids: tokens
    that end an answer.
    """

    def __init__(self, tokenizer: Vocabulary, vocab_size: int, eos_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = sorted(eos_ids)
        self._compiled = lru_cache(maxsize=16)(self._compile)

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of an answer.

        Raises ConfigError if this model cannot write or cannot end such an answer.
        """
        if not self._eos_ids:
            raise ConfigError("a grammar needs a model with an end-of-sequence token; this engine has none")
        matcher = Matcher(self._compiled(grammar).deep_copy, self._spoken)
        try:
            first = matcher.after(())
        except GrammarLimit:
            first = None
        if first is None or not (first.complete or first.texts.any()):
            raise ConfigError("the grammar cannot be used: no token of this model begins such a text")
        return matcher

    def _compile(self, grammar: Grammar) -> LLMatcher:
        matcher: LLMatcher = _llguidance().LLMatcher(
            self._tokens, grammar.compile(), limits=_limits(), log_level=0
        )
        return matcher

    @cached_property
    def _pieces(self) -> list[bytes]:
        tokenizer = self._tokenizer
        return [
            tokenizer.piece(token) if token < tokenizer.vocab_size else b""
            for token in range(self._vocab_size)
        ]

    @cached_property
    def _spoken(self) -> NDArray[np.bool_]:
        """Tokens that stand for text: bool [V]."""
        spoken = np.array([bool(piece) for piece in self._pieces])
        spoken[self._eos_ids] = False
        return spoken

    @cached_property
    def _tokens(self) -> LLTokenizer:
        wrapped = _Wrapped(self._tokenizer, self._pieces, self._spoken, self._eos_ids[0])
        tokenizer: LLTokenizer = _llguidance().LLTokenizer(wrapped, eos_token=self._eos_ids)
        return tokenizer


class _Wrapped:
    """A tokenizer as llguidance asks for it. To it, bytes that start with 255 are no text."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: Sequence[int] = ()

    def __init__(
        self, tokenizer: Vocabulary, pieces: Sequence[bytes], spoken: NDArray[np.bool_], eos_id: int
    ) -> None:
        self._encode = tokenizer.encode_part
        self.eos_token_id = eos_id
        self.tokens = [
            piece if text else b"\xff[%d]" % token
            for token, (piece, text) in enumerate(zip(pieces, spoken, strict=True))
        ]

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


class Matcher:
    """Follows one answer through its grammar. Only committed tokens move it; a look down a draft's path is
    undone at once.

    failure: why the grammar could be followed no further: a token was committed that it does not allow, or
    that exceeds its limits. Else None.
    """

    def __init__(self, begin: Callable[[], LLMatcher], spoken: NDArray[np.bool_]) -> None:
        self._begin = begin
        self._spoken = spoken
        self._state = begin()
        self._taken: list[int] = []
        self._here: Mask | None = None  # what may follow the committed tokens, once it was asked for
        self.failure: str | None = None

    def after(self, path: Sequence[int]) -> Mask | None:
        """What may follow the committed tokens and a path of drafted ones; None where the path leaves the
        grammar, so that no token is ever drawn there. Raises GrammarLimit."""
        if not path and self._here is not None:
            return self._here
        state = self._state
        taken = state.try_consume_tokens(list(path)) if path else 0
        mask = self._mask(state) if taken == len(path) else None
        state.rollback(taken)
        if state.is_error():  # for ever; other paths deserve a sound one
            self._state = self._begin()
            self._state.consume_tokens(self._taken)
            raise GrammarLimit(_line(state.get_error()))
        if not path:
            self._here = mask
        return mask

    def advance(self, tokens: Sequence[int]) -> tuple[int, bool]:
        """Take committed tokens. Returns how many of them were taken, and whether the answer is complete
        with the last of these: the grammar accepts it and allows no other token."""
        for count, token in enumerate(tokens):
            if not self._state.consume_token(token):
                self.failure = _line(self._state.get_error())
                return count, False
            self._taken.append(token)
            self._here = None
            if self._state.is_accepting() and self._ends_here():
                return count + 1, True
        return len(tokens), False

    def forced(self) -> list[int]:
        """The tokens that spell what the grammar leaves no choice about, in the tokenizer's usual way."""
        forced: list[int] = self._state.compute_ff_tokens()
        return forced

    def _ends_here(self) -> bool:
        try:
            mask = self.after(())
        except GrammarLimit:
            return False
        return mask is not None and not mask.texts.any()

    def _mask(self, state: LLMatcher) -> Mask:
        bits = np.frombuffer(state.compute_bitmask(), np.uint8)
        texts = np.unpackbits(bits, count=len(self._spoken), bitorder="little").view(np.bool_)
        return Mask(texts & self._spoken, state.is_accepting())


def _llguidance() -> ModuleType:
    try:
        import llguidance
    except ModuleNotFoundError:
        raise ConfigError('grammars need the package llguidance: pip install "paceline[grammar]"') from None
    return llguidance


def _limits() -> LLParserLimits:
    """llguidance's own limits, which hold a step to some ten milliseconds, without its long messages."""
    limits: LLParserLimits = _llguidance().LLParserLimits(verbose_errors=False)
    return limits


def _line(message: str) -> str:
    """A message of llguidance on one line: the reason without the sketch of its place, where it has one."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["unknown error"]
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (reasons or lines)[0][:300]


def _depth(value: Any) -> int:
    """How deep JSON is nested: 1 for an object without one inside."""
    depth, level = 0, [value]
    while nests := [inner for inner in level if isinstance(inner, dict | list)]:
        depth += 1
        level = [inner for nest in nests for inner in (nest.values() if isinstance(nest, dict) else nest)]
    return depth
