"""The log of a run as curves for TensorBoard, which is installed apart: pip install tensorboard."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from paceline.errors import ConfigError

CURVES = "curves"


class Curves:
    """Writes lines of a log, see `paceline.train.loop`, into `folder`/curves.

    step: of the checkpoint that the run goes on from; what was written of later ones counts no longer. Raises
    ConfigError where TensorBoard is missing.
    """

    def __init__(self, folder: Path, step: int) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError("--tensorboard needs TensorBoard: pip install tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / CURVES), purge_step=step + 1)

    def add(self, line: Mapping[str, Any]) -> None:
        """One curve for each number of a line, and for each depth of a list."""
        group = "held out" if line.get("measured") else "training"
        for name, value in line.items():
            if name in ("step", "measured"):
                continue
            values = value if isinstance(value, list) else [value]
            for depth, one in enumerate(values, 1):
                of = f", depth {depth}" if isinstance(value, list) else ""
                self._writer.add_scalar(f"{group}/{name}{of}", one, line["step"])

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
