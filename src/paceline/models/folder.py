"""A model's folder as the Hugging Face hub has it: what its tokenizer files say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from paceline.errors import ModelFileError
from paceline.models.vocabulary import Spec, TokenType

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def read_folder_tokenizer(folder: Path) -> Spec:
    """The specification of the tokenizer in tokenizer.json, with the texts around it.

    Raises ModelFileError for a file that is missing, damaged, or holds a tokenizer of a kind that does not
    say which bytes its tokens stand for.
    """
    path = folder / "tokenizer.json"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from None
    held = _json(path)
    try:
        return _spec(folder, text, held)
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path} is no tokenizer: {type(error).__name__}: {error}") from None


def _spec(folder: Path, text: str, held: dict[str, Any]) -> Spec:
    decoder = _kinds(held.get("decoder")) | _kinds(held.get("pre_tokenizer"))
    if "ByteLevel" in decoder:
        model = "gpt2"
    elif decoder & {"ByteFallback", "Metaspace"}:
        model = "llama"
    else:
        raise ModelFileError(
            f"{folder / 'tokenizer.json'}: only byte-level and SentencePiece tokenizers are supported, "
            f"this one has {', '.join(sorted(decoder)) or 'no decoder'}"
        )
    vocabulary = held["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score
        vocabulary = {token: id for id, (token, _) in enumerate(vocabulary)}
    added = held.get("added_tokens") or []
    ids = {**vocabulary, **{token["content"]: token["id"] for token in added}}
    tokens, types = [""] * (max(ids.values()) + 1), [int(TokenType.UNUSED)] * (max(ids.values()) + 1)
    for token, id in ids.items():
        tokens[id] = token
        types[id] = TokenType.BYTE if model == "llama" and _BYTE.fullmatch(token) else TokenType.NORMAL
    for token in added:
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    settings = _optional(folder / "tokenizer_config.json")
    configs = [_optional(folder / name) for name in ("generation_config.json", "config.json")]
    bos = _named(settings, "bos_token", ids)
    if bos is None:
        bos = next((one["bos_token_id"] for one in configs if one.get("bos_token_id") is not None), None)
    own = _named(settings, "eos_token", ids)
    ends = [] if own is None else [own]
    for config in configs:
        more = config.get("eos_token_id")
        ends += more if isinstance(more, list) else [] if more is None else [more]
    return {
        "json": text,
        "model": model,
        "pre": "",
        "tokens": tokens,
        "types": types,
        "merges": [],
        "bos": bos,
        "eos": list(dict.fromkeys(ends)),
        "add_bos": bos is not None and _starts_with(held, tokens[bos]),
        "add_space_prefix": text != without_prefix(text),
        "prefix_once": _once(held.get("pre_tokenizer")),
        "chat_template": _chat_template(folder, settings),
    }


def without_prefix(text: str) -> str:
    """A tokenizer.json that puts no space before a text."""
    held = json.loads(text)
    found = False

    def walk(part: Any) -> Any:
        nonlocal found
        if not isinstance(part, dict):
            return part
        kind = part.get("type")
        if kind == "Prepend":
            found = True
            return None
        if kind == "Metaspace" and part.get("prepend_scheme", "always") != "never":
            found = True
            return {**part, "prepend_scheme": "never"}
        if kind == "ByteLevel" and part.get("add_prefix_space"):
            found = True
            return {**part, "add_prefix_space": False}
        for key in ("normalizers", "pretokenizers"):
            if key in part:
                return {**part, key: [kept for one in part[key] if (kept := walk(one)) is not None]}
        return part

    changed = {**held, **{key: walk(held.get(key)) for key in ("normalizer", "pre_tokenizer")}}
    return json.dumps(changed) if found else text


def _kinds(part: Any) -> set[str]:
    """The types of a part of tokenizer.json and of the parts in it."""
    if not isinstance(part, dict):
        return set()
    inner = [*part.get("decoders", ()), *part.get("pretokenizers", ())]
    return {part["type"]}.union(*map(_kinds, inner)) - {"Sequence"}


def _once(part: Any) -> bool:
    """Whether only the very start of a text gets a space, and not what follows a control token."""
    if not isinstance(part, dict):
        return False
    return part.get("prepend_scheme") == "first" or any(map(_once, part.get("pretokenizers", ())))


def _starts_with(held: dict[str, Any], token: str) -> bool:
    """Whether texts get this token before them."""
    processor = held.get("post_processor") or {}
    parts = [processor, *processor.get("processors", ())]
    starts = [
        part["single"][0] for part in parts if part.get("type") == "TemplateProcessing" and part["single"]
    ]
    return any(start.get("SpecialToken", {}).get("id") == token for start in starts)


def _chat_template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several by name
        template = next((one["template"] for one in template if one["name"] == "default"), None)
    return template


def _named(settings: dict[str, Any], name: str, ids: dict[str, int]) -> int | None:
    token = settings.get(name)
    return ids.get(token["content"] if isinstance(token, dict) else token) if token else None


def _optional(path: Path) -> dict[str, Any]:
    return _json(path) if path.exists() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} is damaged: {error}") from None
    if not isinstance(held, dict):
        raise ModelFileError(f"{path} is damaged: expected an object, found {type(held).__name__}")
    return held
