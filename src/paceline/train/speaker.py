"""A draft model that answers in the target's place: it learns best from texts like those that it drafts.

Source: Zhou et al., "DistillSpec", 2023 (arXiv 2310.08461), for draft models that learn the target's law over
texts of their own, mixed with the target's.
"""

from __future__ import annotations

from pathlib import Path

from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.models.cache import sha256_of
from paceline.models.drafter_folder import TENSORS
from paceline.models.llama_folder import read_llama
from paceline.models.tokenizer import Tokenizer
from paceline.targets.native import NativeTarget
from paceline.targets.weights import pack_llama


class Speaker:
    """What answers: a model that `paceline train run --arch draft` made, on the CPU kernels.

    engine  of its own, without a drafter
    sha256  of the file of its weights
    """

    def __init__(
        self,
        folder: Path,
        vocab_size: int,
        tokenizer: Tokenizer,
        *,
        batch: int,
        longest: int,
        threads: int | None,
    ) -> None:
        """vocab_size, tokenizer: the target's. batch: answers that grow at once; longest: tokens of a prompt
        with its answer. Raises ModelFileError for the folder, IncompatibleDrafter for a model with other
        tokens, ConfigError for one of too short texts."""
        weights = read_llama(folder)
        config = weights.config
        if config.vocab_size != vocab_size:
            raise IncompatibleDrafter(
                f"{folder}: was trained for a target of {config.vocab_size} tokens, this one has {vocab_size}"
            )
        if longest > config.context:
            raise ConfigError(
                f"{folder}: takes {config.context} tokens, prompts and answers have {longest} together"
            )
        cache_tokens = max(config.context, batch * longest)
        model = NativeTarget(pack_llama(folder, weights), threads=threads, cache_tokens=cache_tokens)
        self.engine = Engine(
            model,
            {"none": load("none", model.info)},
            drafter="none",
            tokenizer=tokenizer,
            nodes=1,
            chunk_tokens=max(128, 4 * batch),
            max_batch=batch,
        )
        self.sha256 = sha256_of(folder / TENSORS)
