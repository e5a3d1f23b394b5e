"""The CPU kernels: compiled C++ where it could be built, and their slow NumPy reference.

`compiled` is the extension module, or None where the package was installed without a compiler; the native
target then runs on `paceline.kernels.reference` and says so.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from paceline.errors import ConfigError
from paceline.kernels.packing import FORMATS, LANES, Bytes, Floats, dequantise

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
rank = compiled.rank if compiled else None
"""rank(weights float64 [D], ids int64 [D], key, count) -> the places of those that come first by log weight
plus noise, the foremost first; None without the extension. Its reference: `paceline.noise.Noise.like_target`.
"""


def make_model(shape: Mapping[str, Any], tensors: Mapping[str, Any], *, threads: int, **sizes: Any) -> Any:
    """A `Model` (see _kernels.pyi) for the chosen instruction set; with a warning where only the reference is
    there to run it."""
    isa = chosen()
    if compiled is None:
        warnings.warn(
            "Paceline was installed without its compiled kernels and runs on the slow NumPy reference; "
            "install a C++ compiler, then install Paceline again",
            RuntimeWarning,
            stacklevel=3,
        )
    if isa == "reference" or compiled is None:
        from paceline.kernels.reference import Model

        return Model(shape, tensors, **sizes)
    return compiled.Model(dict(shape), dict(tensors), **sizes, threads=threads, isa=isa)


def product(
    kind: str, rows: int, columns: int, packed: Bytes, threads: int = 1
) -> Callable[[Floats], Floats]:
    """What multiplies float32 [N, columns] by a packed matrix, on threads that it shares with models of as
    many, with the arithmetic of `Model`: float32 [N, rows]. Each row's bits are its own, whatever the number
    of threads."""
    isa = chosen()
    if isa == "reference" or compiled is None:
        from paceline.kernels.reference import Matrix, multiply

        matrix = Matrix(dequantise(kind, rows, columns, packed), not FORMATS[kind].holds_floats)
        return lambda x: multiply(x, matrix)
    matrix = compiled.Product(kind, rows, columns, packed, threads=threads, isa=isa)
    padded = -(-rows // LANES) * LANES

    def on_kernels(x: Floats) -> Floats:
        out = np.empty((len(x), padded), np.float32)
        matrix.multiply(x, out)
        return out[:, :rows]

    return on_kernels
