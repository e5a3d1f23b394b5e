"""Prompts of several turns: what the model reads before it answers each.

Every turn is put with the answers to the turns before it, and these are plain decoding's own, for everyone:
all contenders answer the very same question, whatever rule they run under.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paceline.bench.prompts import Prompt
from paceline.errors import ConfigError

if TYPE_CHECKING:
    from paceline.core import TargetInfo
    from paceline.models.tokenizer import Tokenizer


def question(turns: Sequence[str], answers: Sequence[str], tokenizer: Tokenizer) -> list[int]:
    """Token ids of a conversation that waits for its next answer; there is one answer less than turns.
    A tokenizer without a chat template takes the texts one behind the other."""
    said = [text for pair in zip(turns, answers, strict=False) for text in pair] + [turns[len(answers)]]
    if not tokenizer.has_chat_template:
        return tokenizer.encode("\n\n".join(said))
    roles = ("user", "assistant")
    return tokenizer.apply_chat_template(
        [{"role": roles[place % 2], "content": text} for place, text in enumerate(said)]
    )


def check(prompts: Sequence[Prompt], max_tokens: int, tokenizer: Tokenizer, info: TargetInfo) -> None:
    """Raises ConfigError for a prompt that the model cannot take, its earlier answers at their longest."""
    for prompt in prompts:
        answered = len(prompt.turns) - 1
        tokens = len(question(prompt.turns, [""] * answered, tokenizer)) + answered * max_tokens
        if tokens >= info.max_positions:
            answers = f" with the answers in between, {max_tokens} each" if answered else ""
            raise ConfigError(
                f"prompt {prompt.id} has {tokens} tokens{answers}; {info.name} takes up to "
                f"{info.max_positions - 1}"
            )
