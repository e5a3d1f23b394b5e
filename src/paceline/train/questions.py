"""The prompts that a target answers for a data set: a file's, or such as it invents itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from paceline.engine import Engine
from paceline.errors import ConfigError, TrainingError
from paceline.models.cache import write_atomically
from paceline.models.tokenizer import Tokenizer
from paceline.noise import choice_seed
from paceline.sampling import SamplingParams
from paceline.train.in_order import Job, in_order

PROMPTS = "prompts.jsonl"
INVENTED_TOKENS = 256
"""A prompt that the model does not end within so many tokens is not used."""
TRIES = 10
"""Prompts that a model may fail to invent for each that it does."""
EXPECTED = '"prompt", a text, or "messages", a list of {"role": ..., "content": ...}'

Messages = Sequence[dict[str, str]]


def read_prompts(path: Path) -> list[Messages]:
    """The conversations of a file of JSON lines: each an object with "prompt", a text, or "messages"; other
    keys are left alone. Raises ConfigError naming file, line, what was found and what is expected."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"prompts {path}: {error.strerror or error}") from None
    prompts = [
        _read(line, f"prompts {path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not prompts:
        raise ConfigError(f"prompts {path}: is empty, expected JSON lines with {EXPECTED}")
    return prompts


def _read(line: bytes, where: str) -> Messages:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is not JSON ({error})") from None
    if not isinstance(record, dict) or len(record.keys() & {"prompt", "messages"}) != 1:
        raise ConfigError(f"{where}: expected an object with {EXPECTED}")
    messages = record.get("messages", [{"role": "user", "content": record.get("prompt")}])
    if not (isinstance(messages, list) and messages and all(map(_is_message, messages))):
        raise ConfigError(f"{where}: expected {EXPECTED}, none of them empty")
    return messages


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.keys() == {"role", "content"}
        and all(isinstance(text, str) and text.strip() for text in message.values())
    )


def prompt_ids(messages: Messages, tokenizer: Tokenizer) -> list[int]:
    """A conversation as the model is asked it: in its chat format, or as it stands where it has none."""
    if tokenizer.has_chat_template:
        return tokenizer.apply_chat_template(messages)
    return tokenizer.encode("\n".join(message["content"] for message in messages))


def invent(
    engine: Engine, count: int, seed: int, window: int, advance: Callable[[], object]
) -> Iterator[str]:
    """So many different prompts, each what the model itself says in the user's place.

    The model goes on from its chat format up to where a user's words begin, at temperature 1. advance:
    called for each that was found. Raises ConfigError for a model without a chat format, TrainingError if
    it invents too few.

    Source: Xu et al., "Magpie: Alignment Data Synthesis from Scratch by Prompting Aligned LLMs with Nothing",
    2024 (arXiv 2406.08464).
    """
    tokenizer = engine.tokenizer
    assert isinstance(tokenizer, Tokenizer), "models that are loaded by name have one"
    if not tokenizer.has_chat_template:
        raise ConfigError("this model has no chat format to invent prompts with; give a file with --prompts")
    start = _before_a_user_speaks(tokenizer)
    jobs = (
        Job(start, SamplingParams(temperature=1.0, max_tokens=INVENTED_TOKENS, seed=choice_seed(seed, index)))
        for index in range(TRIES * count)
    )
    found: set[str] = set()
    with closing(in_order(engine, jobs, window, "none")) as completions:
        for _, completion in completions:
            text = completion.text.strip()
            if completion.finish_reason == "stop" and text and text not in found:
                found.add(text)
                advance()
                yield text
                if len(found) == count:
                    return
    raise TrainingError(
        f"{engine.target.info.name} invented only {len(found)} prompts of {count}; give a file with --prompts"
    )


def _before_a_user_speaks(tokenizer: Tokenizer) -> list[int]:
    """The ids of the chat format up to the first word of a user."""
    said = [
        tokenizer.apply_chat_template([{"role": "user", "content": word}], add_generation_prompt=False)
        for word in ("a", "Z", "7", "?")
    ]
    length = 0
    while len({tuple(ids[: length + 1]) for ids in said}) == 1:
        length += 1
    return said[0][:length]


def write_prompts(path: Path, prompts: Sequence[str]) -> None:
    """Put prompts into a file that `read_prompts` reads. Raises TrainingError."""
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts]
    try:
        with write_atomically(path) as file:
            file.write("".join(lines).encode())
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror or error}") from None
