"""A tiny exact model that speaks nonsense: for trying out clients and loads without a download.

Its model is the table target, which looks its logits up by the last two tokens, over the printable
characters. `table:pace=0.1` lets passes follow each other no faster than that, in seconds, as those of a
large model would.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from paceline.core import Draft, Scores
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.models.tokenizer import Tokenizer
from paceline.models.vocabulary import TokenType
from paceline.plugins import Option, parse_settings
from paceline.rules import load as load_rule
from paceline.serve.wire import Build
from paceline.targets._options import refuse_rows
from paceline.targets.table import TableTarget

NAME = "table"
OPTIONS: Mapping[str, Option] = {"pace": 0.0, "spread": 2.0, "seed": 1, "context": 2048}
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
END, START = 0, 1


class PacedTable(TableTarget):
    """A table whose passes end at least `pace` seconds after each other."""

    def __init__(self, vocab_size: int, *, pace: float, **options: Any) -> None:
        super().__init__(vocab_size, **options)
        self._pace = pace
        self._due = 0.0

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        """See `Target.forward`."""
        scores = super().forward(draft, taps)
        if not self._pace:
            return scores
        now = time.perf_counter()
        self._due = max(self._due, now - self._pace) + self._pace  # an idle time is nothing to catch up with
        time.sleep(max(0.0, self._due - now))
        return scores


def is_stub(model: str) -> bool:
    """Whether a model's name means this one."""
    return model.partition(":")[0] == NAME


def tokenizer() -> Tokenizer:
    """Printable ASCII characters and the newline, a token each, and two control tokens."""
    characters = ["Ġ", "Ċ", *map(chr, range(0x21, 0x7F))]
    return Tokenizer(
        {
            "model": "gpt2",
            "pre": "smollm",
            "tokens": ["<|end|>", "<|start|>", *characters],
            "types": [TokenType.CONTROL] * 2 + [TokenType.NORMAL] * len(characters),
            "merges": [],
            "add_bos": False,
            "add_space_prefix": False,
            "bos": START,
            "eos": [END],
            "chat_template": TEMPLATE,
        }
    )


def build(wanted: Build) -> Engine:
    """The engine. Raises ConfigError for an option that the model does not have, and what drafters raise."""
    from paceline.drafters import load

    options: dict[str, Any] = {**OPTIONS, **parse_settings(NAME, wanted.model.partition(":")[2], OPTIONS)}
    if not 0 <= options["pace"] <= 10:
        raise ConfigError(f"table:pace must be 0 to 10 seconds, got {options['pace']}")
    refuse_rows(NAME, wanted.rows)
    letters = tokenizer()
    target = PacedTable(
        letters.vocab_size,
        pace=options["pace"],
        spread=options["spread"],
        seed=options["seed"],
        max_positions=wanted.context or options["context"],
        cache_tokens=wanted.cache_tokens or 1 << 20,
    )
    drafters = {name: load(name, target.info, tokenizer=letters) for name in wanted.drafters}
    return Engine(
        target,
        drafters,
        drafter=wanted.drafters[0],
        tokenizer=letters,
        rule=load_rule(wanted.rule, allow_lossy=wanted.allow_lossy),
        nodes=wanted.nodes,
        max_batch=wanted.max_batch,
    )
