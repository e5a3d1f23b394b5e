"""The CPU kernels: compiled C++ where it could be built, and their slow NumPy reference.

`compiled` is the extension module, or None where the package was installed without a compiler; the native
target then runs on `paceline.kernels.reference` and says so.
"""

from __future__ import annotations

import os
from types import ModuleType

from paceline.errors import ConfigError

compiled: ModuleType | None
try:
    from paceline.kernels import _kernels as compiled
except ImportError:
    compiled = None

ISA_VARIABLE = "PACELINE_ISA"
"""Environment variable that forces an instruction set, or "reference" for the NumPy path."""


def available() -> list[str]:
    """Names of the instruction sets usable here, best first; "reference" (NumPy) is always last."""
    return [*(compiled.available() if compiled else []), "reference"]


def chosen() -> str:
    """The instruction set to run on: the one the environment forces, or the best.

    Raises ConfigError if the environment names one that cannot run here.
    """
    names = available()
    wanted = os.environ.get(ISA_VARIABLE, "")
    if wanted and wanted not in names:
        raise ConfigError(f"{ISA_VARIABLE}={wanted!r} cannot run here; allowed: {', '.join(names)}")
    return wanted or names[0]


draw = compiled.draw if compiled else None
"""draw(logits float32 [V], temperature, top_k, top_p, min_p, key) -> token id; None without the extension."""
