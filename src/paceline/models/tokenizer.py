"""Text to token ids and back, built from a model file's own tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from paceline.errors import ConfigError
from paceline.models.chat_template import ChatTemplate, Messages, control_pattern
from paceline.models.detokenizer import Detokenizer
from paceline.models.folder import without_prefix
from paceline.models.vocabulary import PRE_TOKENIZERS, Spec, TokenType

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Model

_SPACE = "\u2581"
"""How SentencePiece writes a space."""


class Tokenizer:
    """Byte-level BPE ("gpt2"), SentencePiece BPE with byte fallback ("llama"), or what a tokenizer.json says.

    Control tokens are not part of the vocabulary that text is cut into: no text can yield one, except
    through `encode(special=True)` and the chat template's own text. Text is not normalised.

    vocab_size  token ids are below this
    eos_ids     ids that end an answer
    bos_id      id that starts a text, or None
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._tokens: list[str] = spec["tokens"]
        self._types: list[int] = spec["types"]
        self._spaces = spec["model"] == "llama"
        self.vocab_size = len(self._tokens)
        self.eos_ids: frozenset[int] = frozenset(spec["eos"])
        self.bos_id: int | None = spec["bos"]
        self._json: str | None = spec.get("json")
        self._model = _build(spec)
        self._pieces: dict[int, bytes] = {}
        self._characters = {character: byte for byte, character in enumerate(byte_characters())}
        known = set(self._tokens)
        self._missing = bytes(
            byte
            for character, byte in self._characters.items()
            if not self._spaces and character not in known
        )
        self._substitute = "" if set("\ufffd".encode()) & set(self._missing) else "\ufffd"

    @staticmethod
    def from_json(text: str) -> Tokenizer:
        """The tokenizer of a specification stored by `to_json`."""
        return Tokenizer(json.loads(text))

    def to_json(self) -> str:
        """The specification as JSON."""
        return json.dumps(self._spec)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text, after the model's start token where it wants one.

        special: whether control tokens spelled out in the text become control tokens; they stay text
        otherwise. A character that the vocabulary has no bytes for, and a lone surrogate, becomes U+FFFD.
        """
        start = [self.bos_id] if self._spec["add_bos"] and self.bos_id is not None else []
        return start + self._join(self._any_control.split(text) if special else [text])

    def encode_part(self, text: str) -> list[int]:
        """The ids of a text inside another: no start token before it, and no space of the tokenizer's own."""
        if not text:
            return []
        cut = self._cut if self._json is None else self._cut_inside
        return cut(self._prepare(text, prefix=False))

    def apply_chat_template(self, messages: Messages, add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation in the model's own format, ready for the model's answer.

        messages: [{"role": "system" | "user" | "assistant" | "tool", "content": text}, ...]. Raises
        ConfigError if they are not that, if the template refuses them, or if the model has no template.
        """
        if self._template is None:
            raise ConfigError("this model has no chat template: give the prompt as raw text (--raw)")
        return self._join(self._template.render(messages, add_generation_prompt=add_generation_prompt))

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` can be used."""
        return self._spec["chat_template"] is not None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of all these tokens; control tokens have none."""
        whole = self.detokenizer(start_of_text=True)
        return whole.push(ids) + whole.finish()

    def detokenizer(self, *, start_of_text: bool = False) -> Detokenizer:
        """A detokenizer for tokens that arrive one by one.

        start_of_text: the tokens start a text and do not continue one, so that the space which
        SentencePiece puts before the first word is left out.
        """
        return Detokenizer(self.piece, skip_space=start_of_text and self._spec["add_space_prefix"])

    def piece(self, token_id: int) -> bytes:
        """The bytes that a token stands for, not necessarily whole characters."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._make_piece(token_id)
        return piece

    def _make_piece(self, token_id: int) -> bytes:
        token, kind = self._tokens[token_id], self._types[token_id]
        if kind == TokenType.BYTE:
            return bytes([int(token[3:5], 16)])
        if kind == TokenType.USER_DEFINED and not self._spaces:
            return token.encode()
        if kind not in (TokenType.NORMAL, TokenType.USER_DEFINED):
            return b""
        if self._spaces:
            return token.replace(_SPACE, " ").encode()
        known = self._characters
        return b"".join(bytes([known[c]]) if c in known else c.encode() for c in token)

    def _join(self, pieces: Iterable[str]) -> list[int]:
        """The ids of text, control token, text, control token, ..., text."""
        ids: list[int] = []
        for index, piece in enumerate(pieces):
            if index % 2:
                ids.append(self._controls[piece])
            elif piece:
                inside = index > 0 and self._spec.get("prefix_once", False)
                cut = self._cut_inside if inside else self._cut
                ids += cut(self._prepare(piece, prefix=self._spec["add_space_prefix"]))
        return ids

    def _cut(self, text: str) -> list[int]:
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def _cut_inside(self, text: str) -> list[int]:
        """As `_cut`, by a tokenizer.json without its space before the text."""
        ids: list[int] = self._inside.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _inside(self) -> Model:
        return _from_json(without_prefix(self._json or ""))

    def _prepare(self, text: str, *, prefix: bool) -> str:
        """The text as the model's tables spell it. prefix: whether a space goes before it."""
        try:
            data = text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            data = text.encode()
        if self._json is not None:
            return text
        if self._spaces:
            return (_SPACE if prefix else "") + text.replace(" ", _SPACE)
        if self._missing and len(data.translate(None, self._missing)) != len(data):
            gone = set(self._missing)
            text = "".join(c if gone.isdisjoint(c.encode()) else self._substitute for c in text)
        return text

    @cached_property
    def _controls(self) -> dict[str, int]:
        return {
            token: id
            for id, token in enumerate(self._tokens)
            if token and self._types[id] == TokenType.CONTROL
        }

    @cached_property
    def _any_control(self) -> re.Pattern[str]:
        return control_pattern(self._controls)

    @cached_property
    def _template(self) -> ChatTemplate | None:
        source = self._spec["chat_template"]
        if source is None:
            return None
        bos = "" if self.bos_id is None else self._tokens[self.bos_id]
        eos = self._tokens[self._spec["eos"][0]] if self.eos_ids else ""
        return ChatTemplate(source, list(self._controls), {"bos_token": bos, "eos_token": eos})


def byte_characters() -> str:
    """The 256 printable characters that stand for the bytes 0 to 255 in byte-level BPE.

    Printable bytes stand for themselves, the others for U+0100 onwards in order. Source: GPT-2.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


def _from_json(text: str) -> Model:
    """As a tokenizer.json says, but control tokens that a text spells out stay text."""
    from tokenizers import Tokenizer as Model

    model = Model.from_str(text)
    model.encode_special_tokens = True
    model.no_truncation()
    model.no_padding()
    return model


def _build(spec: Spec) -> Model:
    if "json" in spec:
        return _from_json(spec["json"])
    from tokenizers import AddedToken, Regex
    from tokenizers import Tokenizer as Model
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    types, pre, spaces = spec["types"], spec["pre"], spec["model"] == "llama"
    vocabulary = {token: id for id, token in enumerate(spec["tokens"]) if types[id] != TokenType.CONTROL}
    whole = [token for token, id in vocabulary.items() if token and types[id] == TokenType.USER_DEFINED]
    if spaces:
        # Files spell the spaces of these tokens as they are, the text arrives with all of them replaced.
        respelled = {token.replace(" ", _SPACE): vocabulary[token] for token in whole}
        vocabulary = respelled | vocabulary
        whole = [token for token in respelled if vocabulary[token] == respelled[token]]
    merges = [tuple(merge.split(" ")) for merge in spec["merges"]]
    model = Model(
        BPE(
            vocab=vocabulary,
            merges=merges,
            byte_fallback=spaces,
            # Files of this family take a word that is a token as it is, without merging up to it.
            ignore_merges=pre == "llama-bpe",
        )
    )
    if not spaces:
        cuts = [Split(Regex(expression), "isolated") for expression in PRE_TOKENIZERS[pre]]
        model.pre_tokenizer = Sequence([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])
    model.add_tokens([AddedToken(token, normalized=False) for token in whole])
    return model
