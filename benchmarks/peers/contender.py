"""What takes part in the comparison: the records that adapters make and the runner measures.

An adapter is a file in adapters/ with

    ENGINE, VERSION    as the results call it
    contenders(plan)   yields the Contenders it has for this plan; runs in Paceline's own Python, so it
                       imports nothing of the rival. Raises PeerError if the rival cannot be had at all.

and a file of the same name in workers/, which runs in the rival's Python and speaks protocol.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class PeerError(Exception):
    """A rival, or one of its ways to run, cannot be measured. Its text is one line, for the results."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One process: which Python runs which file of workers/, with which settings."""

    python: Path
    worker: str
    settings: Mapping[str, Any]

    def with_settings(self, **changes: Any) -> Launch:
        """The same process with some settings changed."""
        return Launch(self.python, self.worker, {**self.settings, **changes})


@dataclass(frozen=True, slots=True)
class Contender:
    """One row of the results: an engine with certain weights in a certain mode.

    variants  {description: launch} of the settings to choose from; the fastest on a few prompts takes part
    changes   instead of variants, {description: settings} that differ from those which the plain contender of
              the same engine and weights was fastest with
    error     why it cannot, where that is known beforehand; then there is nothing to choose from
    """

    engine: str
    version: str
    weights: str | None
    mode: str | None
    variants: Mapping[str, Launch] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    error: str | None = None

    @property
    def name(self) -> str:
        """For remarks on what is going on."""
        return " ".join(filter(None, (self.engine, self.weights, self.mode)))


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured, the same for all.

    model      the GGUF file; own_weights: what its matrices are stored as, such as "Q4_1"
    context    tokens that one sequence must hold
    threads    of every engine
    drafters   of Paceline, beside plain decoding
    assistant  a small model with the same tokenizer, for engines that draft with one: a folder in the
               Hugging Face format, or None
    llama_pythons   Pythons that have llama-cpp-python, instead of building it
    llama_servers   llama-server programs
    chosen     names of the adapters that take part
    note       called with remarks on what is going on
    """

    model: Path
    own_weights: str
    context: int
    threads: int
    drafters: tuple[str, ...]
    assistant: Path | None
    llama_pythons: tuple[Path, ...]
    llama_servers: tuple[Path, ...]
    chosen: tuple[str, ...]
    note: Callable[[str], None]

    @property
    def common(self) -> dict[str, Any]:
        """Settings that every worker takes."""
        return {"threads": self.threads, "context": self.context, "sequences": 1}
