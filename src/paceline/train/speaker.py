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
from paceline.models.tokenizer import Tokenizer
from paceline.pretrained import draft_model
from paceline.targets.native import NativeTarget


class Speaker:
    """What answers: a model that `paceline train run --arch draft` made, on the CPU kernels.

    engine  of its own, without a drafter
    sha256  of the file of its weights
    """

    def __init__(
        self, folder: Path, target: NativeTarget, tokenizer: Tokenizer, *, batch: int, longest: int
    ) -> None:
        """target, tokenizer: of the model in whose place it answers. batch: answers that grow at once;
        longest: tokens of a prompt with its answer. Raises ModelFileError for the folder, IncompatibleDrafter
        for a model with other tokens, ConfigError for one of too short texts."""
        if (folder / "tokenizer.json").exists():
            raise IncompatibleDrafter(f"{folder}: has a tokenizer of its own, a draft model has the target's")
        model = draft_model(folder, target)
        room = model.info.max_positions
        if longest > room:
            raise ConfigError(f"{folder}: takes {room} tokens, prompts and answers have {longest} together")
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
