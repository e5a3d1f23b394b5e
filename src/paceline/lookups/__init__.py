"""Where a text may go on, by what stood behind its last tokens elsewhere; and trees of it.

`Text`, `Index` and `Continuations` are compiled (`kernels/cpp/lookups.cpp`) where that could be built, for
every step asks them. `reference` is the same in Python, and says what they do.
"""

from typing import TYPE_CHECKING

from paceline import kernels

if TYPE_CHECKING or kernels.compiled is None:
    from paceline.lookups.reference import Continuations, Index, Text
else:
    from paceline.kernels._kernels import Continuations, Index, Text

__all__ = ["Continuations", "Index", "Text"]
