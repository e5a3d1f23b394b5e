"""Prompts to measure with: those that come along, or a file of Spec-Bench, MT-bench, HumanEval or GSM8K."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from paceline.errors import ConfigError

SHIPPED = Path(__file__).with_name("prompts.jsonl")
OF_EACH = 2
"""Prompts of each category that are taken of those that come along, unless more are asked for."""
EXPECTED = (
    '"category" and "turns" (Spec-Bench, MT-bench), "task_id" and "prompt" (HumanEval), '
    'or "question" and "answer" (GSM8K)'
)


class Prompt(NamedTuple):
    """A conversation's user turns. id: its name in the file, or the line it stands on; category: what kind
    it is; turns: what the user says, one turn after the other, each but the first after an answer."""

    id: str
    category: str
    turns: tuple[str, ...]

    @property
    def text(self) -> str:
        """The first turn."""
        return self.turns[0]


def choose(path: Path | None, limit: int | None) -> list[Prompt]:
    """The prompts to measure with: so many of a file (None: of those that come along), spread over its
    categories. Without a limit all of a file, and `OF_EACH` per category of those that come along.

    Raises ConfigError.
    """
    prompts = load(path or SHIPPED)
    if limit is None:
        if path is not None:
            return prompts
        limit = OF_EACH * len({prompt.category for prompt in prompts})
    return spread(prompts, limit)


def spread(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """At most so many prompts, of each category about as many, the first ones of each; in their order."""
    by_category: dict[str, list[int]] = {}
    for place, prompt in enumerate(prompts):
        by_category.setdefault(prompt.category, []).append(place)
    in_turn = [place for place in chain(*zip_longest(*by_category.values())) if place is not None]
    return [prompts[place] for place in sorted(in_turn[:limit])]


def load(path: Path = SHIPPED) -> list[Prompt]:
    """The prompts of a file of JSON lines, each recognised by its fields:

    - "category" and "turns", a list of texts, as in Spec-Bench and MT-bench; "question_id" may be missing
    - "task_id" and "prompt", as in HumanEval: category humaneval; the prompt is given as it stands
    - "question" and "answer", as in GSM8K: category gsm8k; the answer is not used

    Other keys are left alone. Of conversations with the same turns only the first is kept: a drafter that
    learns from its answers would know the second's. Raises ConfigError naming file, line, what was found
    and what is expected.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"prompts {path}: {error.strerror or error}") from None
    prompts: dict[tuple[str, ...], Prompt] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            prompt = _read(line, f"prompts {path}, line {number}", str(number))
            prompts.setdefault(prompt.turns, prompt)
    if not prompts:
        raise ConfigError(f"prompts {path}: is empty, expected JSON lines with {EXPECTED}")
    return list(prompts.values())


def _read(line: bytes, where: str, number: str) -> Prompt:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: found {_short(record)}, expected an object with {EXPECTED}")
    if record.keys() & {"category", "turns"}:
        category, turns = record.get("category"), record.get("turns")
        if not (isinstance(category, str) and category.strip()):
            raise ConfigError(f'{where}: "category" is {_short(category)}, expected a name')
        if not (isinstance(turns, list) and turns and all(map(_is_text, turns))):
            raise ConfigError(f'{where}: "turns" is {_short(turns)}, expected a list of texts')
        return Prompt(str(record.get("question_id", number)), category, tuple(turns))
    if record.keys() >= {"task_id", "prompt"}:
        return Prompt(str(record["task_id"]), "humaneval", (_text(record, "prompt", where),))
    if record.keys() >= {"question", "answer"}:
        return Prompt(number, "gsm8k", (_text(record, "question", where),))
    raise ConfigError(f"{where}: found the fields {_short(sorted(record))}, expected {EXPECTED}")


def _text(record: dict[str, Any], field: str, where: str) -> str:
    value = record[field]
    if not _is_text(value):
        raise ConfigError(f'{where}: "{field}" is {_short(value)}, expected a text')
    return str(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _short(value: Any) -> str:
    text = "missing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
