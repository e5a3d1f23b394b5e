"""Prompts to measure with: those that come along, or a file in the format of Spec-Bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from paceline.errors import ConfigError

SHIPPED = Path(__file__).with_name("prompts.jsonl")


class Prompt(NamedTuple):
    """One question. id: its question_id, or the line it stands on; category: what kind it is."""

    id: str
    category: str
    text: str


def load(path: Path = SHIPPED) -> list[Prompt]:
    """The prompts of a file of JSON lines, {"question_id": ..., "category": text, "turns": [text, ...]}.

    Of several turns the first is taken; question_id may be missing; other keys are left alone. Of prompts
    with the same text only the first is kept: a drafter that learns from its answers would know the
    second's. Raises ConfigError naming file, line, what was found and what is expected.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"prompts {path}: {error.strerror or error}") from None
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            prompt = _read(line, f"prompts {path}, line {number}", str(number))
            prompts.setdefault(prompt.text, prompt)
    if not prompts:
        raise ConfigError(f'prompts {path}: is empty, expected JSON lines with "category" and "turns"')
    return list(prompts.values())


def _read(line: bytes, where: str, number: str) -> Prompt:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: found {_short(record)}, expected an object with category and turns")
    category, turns = record.get("category"), record.get("turns")
    if not (isinstance(category, str) and category.strip()):
        raise ConfigError(f'{where}: "category" is {_short(category)}, expected a name')
    if not (isinstance(turns, list) and turns and isinstance(turns[0], str) and turns[0].strip()):
        raise ConfigError(f'{where}: "turns" is {_short(turns)}, expected a list that starts with a text')
    return Prompt(str(record.get("question_id", number)), category, turns[0])


def _short(value: Any) -> str:
    text = "missing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
