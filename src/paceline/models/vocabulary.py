"""The tokenizer specification that a model file's metadata hold, checked and JSON-able.

Source: the GGUF specification, and the vocabulary loader of llama.cpp for the meaning of the token types
and of `tokenizer.ggml.pre`.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import Any

from paceline.errors import ModelFileError
from paceline.models.metadata import Metadata

Spec = dict[str, Any]
"""json              a whole tokenizer.json, which then cuts the texts; only for folders of safetensors
model             "gpt2" (byte-level BPE) or "llama" (SentencePiece BPE with byte fallback)
pre               name of the pre-tokenizer of a "gpt2" model
tokens, types     one text and one TokenType per id
merges            "left right", best first; derived from the scores for a "llama" model
bos               id or None
eos               ids that end an answer, the file's own end token first
add_bos           whether a raw prompt starts with bos
add_space_prefix  whether a text gets a leading space ("llama" models)
prefix_once       whether only a text at the very start gets it; only with `json`
chat_template     Jinja source or None
"""


class TokenType(IntEnum):
    """What kind of token an id is, numbered as in GGUF."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL

PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "smollm": (r"\p{N}", _GPT2),
    "gpt-2": (_GPT2,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
}
"""Expressions that cut a text into words, each applied to the pieces that the one before left."""

_ENDINGS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "</s>"
)  # fmt: skip
"""Control tokens that end an answer even where the file does not list them as such."""


def read_tokenizer(metadata: Metadata) -> Spec:
    """The tokenizer specification of a model file.

    Raises ModelFileError for an unsupported kind of tokenizer and for tables that contradict each other.
    """
    model = metadata.text("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise ModelFileError(f"tokenizer {model[:60]!r} is not supported, expected 'gpt2' or 'llama'")
    tokens = metadata.texts("tokenizer.ggml.tokens")
    ids = {token: id for id, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        again = next(token for id, token in enumerate(tokens) if ids[token] != id)
        raise ModelFileError(f"tokenizer.ggml.tokens: {again[:60]!r} is listed twice")
    types = _types(metadata, len(tokens))
    plain = {token: id for token, id in ids.items() if types[id] != TokenType.CONTROL}
    pre = ""
    if model == "gpt2":
        if TokenType.BYTE in types:
            raise ModelFileError(f"tokenizer.ggml.token_type: found {TokenType.BYTE:d}, unknown to gpt2")
        pre = metadata.text("tokenizer.ggml.pre", "default")
        if pre not in PRE_TOKENIZERS:
            known = ", ".join(PRE_TOKENIZERS)
            raise ModelFileError(f"pre-tokenizer {pre[:60]!r} is not supported, expected one of {known}")
        merges = metadata.texts("tokenizer.ggml.merges")
        _check_merges(merges, plain)
    else:
        scores = metadata.numbers("tokenizer.ggml.scores", len(tokens), "floats")
        _check_bytes(tokens, types)
        merges = _merges_from_scores(tokens, types, scores)

    def token_id(key: str) -> int | None:
        full = f"tokenizer.ggml.{key}_token_id"
        return metadata.integer(full, 0, len(tokens) - 1) if full in metadata else None

    endings = [token_id(name) for name in ("eos", "eot", "eom")]
    endings += [ids[text] for text in _ENDINGS if text in ids and types[ids[text]] == TokenType.CONTROL]
    bos = token_id("bos")
    # Files from before the flag existed: these families were trained with a start token.
    starts = model == "llama" or pre == "llama-bpe"
    return {
        "model": model,
        "pre": pre,
        "tokens": tokens,
        "types": types,
        "merges": merges,
        "bos": bos,
        "eos": [id for id in dict.fromkeys(endings) if id is not None],
        "add_bos": bos is not None and metadata.flag("tokenizer.ggml.add_bos_token", starts),
        "add_space_prefix": model == "llama" and metadata.flag("tokenizer.ggml.add_space_prefix", True),
        "chat_template": metadata.text("tokenizer.chat_template", "") or None,
    }


def fingerprint(tokenizer_json: str) -> str:
    """A short name for all that a tokenizer's specification, as JSON, says."""
    return hashlib.sha256(tokenizer_json.encode()).hexdigest()[:32]


def _types(metadata: Metadata, count: int) -> list[int]:
    if "tokenizer.ggml.token_type" not in metadata:
        return [int(TokenType.NORMAL)] * count
    types: list[int] = metadata.numbers("tokenizer.ggml.token_type", count, "integers")
    if not set(types) <= set(TokenType):
        strange = next(kind for kind in types if kind not in set(TokenType))
        raise ModelFileError(f"tokenizer.ggml.token_type: found {strange}, expected 1 to 6")
    return types


def _check_merges(merges: list[str], ids: dict[str, int]) -> None:
    for rank, merge in enumerate(merges):
        left, space, right = merge.partition(" ")
        if not (space and left in ids and right in ids and left + right in ids):
            raise ModelFileError(
                f"tokenizer.ggml.merges: entry {rank} ({merge[:60]!r}) does not join two tokens to a third"
            )


def _check_bytes(tokens: list[str], types: list[int]) -> None:
    found = {token for token, kind in zip(tokens, types, strict=True) if kind == TokenType.BYTE}
    missing = [name for name in map("<0x{:02X}>".format, range(256)) if name not in found]
    if missing or len(found) != 256:
        lacking = missing[0] if missing else "no more than 256 of them"
        raise ModelFileError(f"tokenizer.ggml.tokens: expected byte tokens <0x00> to <0xFF>, lacks {lacking}")


def _merges_from_scores(tokens: list[str], types: list[int], scores: list[float]) -> list[str]:
    """SentencePiece joins the neighbours whose union scores highest; as a list of merges that is every way
    to cut a token into two others, by falling score of the token."""
    pieces = {
        token: scores[id]
        for id, token in enumerate(tokens)
        if types[id] == TokenType.NORMAL and " " not in token
    }
    cuts = [
        (-score, token[:at], token[at:])
        for token, score in pieces.items()
        for at in range(1, len(token))
        if token[:at] in pieces and token[at:] in pieces
    ]
    cuts.sort(key=lambda cut: cut[0])
    return [f"{left} {right}" for _, left, right in cuts]
