"""The compiled kernels."""

import numpy as np
from numpy.typing import NDArray

def available() -> list[str]:
    """Instruction sets this CPU can run, best first, of "amx", "avx512-vnni", "avx2-vnni", "avx2",
    "neon-dotprod" and "portable"."""

def packed_bytes(type: str, rows: int, columns: int) -> int:
    """Size of a packed matrix, see paceline.kernels.packing.

    Raises ValueError if the type has no kernel or its blocks do not fit the columns."""

def measure_bandwidth(bytes: int, threads: int, repeats: int) -> float:
    """GB/s of reading memory, the best of some repeats."""

def draw(
    logits: NDArray[np.float32],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    key: int,
    isa: str = "",
) -> int:
    """The token that Gumbel-max draws from the warped law of one row of logits; see paceline.sampling."""

def rank(weights: NDArray[np.float64], ids: NDArray[np.int64], key: int, count: int) -> list[int]:
    """The places of the tokens that come first by log weight plus noise, at most `count`, the foremost first;
    see paceline.noise."""

class Product:
    """What rows are multiplied by; they become 8-bit numbers unless the matrix holds floats."""

    def __init__(
        self, type: str, rows: int, columns: int, packed: NDArray[np.uint8], *, threads: int, isa: str
    ) -> None: ...
    def multiply(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """out [n, rows rounded up to 16] = x [n, columns] times the matrix."""

class Model:
    """A dense decoder with its paged key/value cache. Not for use from two threads at once."""

    def __init__(
        self,
        shape: dict[str, float],
        tensors: dict[str, object],
        *,
        windows: list[int],
        frequencies: NDArray[np.float64],
        cache_pages: int,
        max_positions: int,
        threads: int,
        isa: str,
    ) -> None:
        """`tensors` holds for every matrix its packed bytes and under NAME.type its type, for every norm and
        bias its float32 bytes, all uint8 at a multiple of 64; a norm or bias that is absent is left out of
        the pass. In a model that takes features a layer with a norm of the tokens reads their embeddings in
        front of the residual stream, in columns of their own. windows: per layer the positions it sees, 0 =
        all; frequencies: rotary, [2, head_dim/2], of layers without and with a window. Raises ValueError if a
        size does not fit `shape`."""

    def forward(
        self,
        slots: NDArray[np.int32],
        offsets: NDArray[np.int32],
        starts: NDArray[np.int32],
        tokens: NDArray[np.int32],
        parents: NDArray[np.int32],
        positions: NDArray[np.int32],
        scored: NDArray[np.int32],
        logits: NDArray[np.float32],
        tap_layers: list[int],
        taps: list[NDArray[np.float32]],
        features: NDArray[np.float32] | None = None,
        pads: NDArray[np.float32] | None = None,
    ) -> None:
        """One pass; see paceline.core.Draft for the arrays. Fills logits [>= S, V], whose rows may lie
        apart, and one [N, H] per tap: of layer k what k layers give, of one more than there are what the head
        reads. features: [N, H], what the residual stream starts as in a model that
        takes them. pads: [any, H], in other models, what tokens from the vocabulary's end on are embedded as.

        Raises CapacityError before anything changed if the cache is too full, ValueError if a row's start
        is not what the cache holds."""

    def sketch(
        self,
        slots: NDArray[np.int32],
        offsets: NDArray[np.int32],
        starts: NDArray[np.int32],
        tokens: NDArray[np.int32],
        parents: NDArray[np.int32],
        positions: NDArray[np.int32],
        scored: NDArray[np.int32],
        logits: NDArray[np.float32],
        skipped: list[int],
        sinks: int,
        recent: int,
        tap_layers: list[int] = ...,
        taps: list[NDArray[np.float32]] = ...,
    ) -> None:
        """A pass without the `skipped` layers that sees of each row's cache the pages of its first `sinks`
        and its last `recent` tokens. Raises like `forward`; cannot be committed."""

    def commit(self, known: list[int], kept: list[list[int]]) -> None:
        """Keep `known[r]` first nodes of row r of the last forward, and the nodes kept[r], numbered inside
        the row; give back pages that held only others."""

    def release(self, slots: list[int]) -> None:
        """Forget sequences."""

    def pages(self, slot: int) -> list[int]:
        """Pages full of committed tokens; this and the next three: see paceline.core.PageSharing."""

    def adopt(self, slot: int, pages: list[int]) -> None:
        """Begin a sequence with the tokens of these pages."""

    def hold(self, pages: list[int]) -> None:
        """Keep pages beyond their sequences."""

    def drop(self, pages: list[int]) -> None:
        """Keep them no longer."""

    def length(self, slot: int) -> int:
        """Committed tokens."""

    def read_cache(
        self, slot: int, layer: int, keys: NDArray[np.float32], values: NDArray[np.float32]
    ) -> None:
        """Committed keys and values [length, kv_heads, head_dim]."""

    def measure_stages(self, on: bool) -> None:
        """Start to add up the time of each stage, or stop."""

    @property
    def stage_seconds(self) -> dict[str, float]: ...
    @property
    def free_pages(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...

class Source:
    """A text that can be looked up; see paceline.lookups.reference, of which this and the next three are the
    fast form."""

    def at(self, place: int) -> int: ...
    def matches(self, ending: list[int], most: int) -> list[tuple[int, int]]: ...

class Text(Source):
    """A growing text."""

    def __init__(self, tokens: list[int] = []) -> None: ...
    def __len__(self) -> int: ...
    def extend(self, tokens: list[int]) -> None: ...
    @property
    def tokens(self) -> list[int]: ...

class Index(Source):
    """Texts in sorted order."""

    def __init__(
        self, tokens: NDArray[np.int32], order: NDArray[np.int32], starts: NDArray[np.int32]
    ) -> None: ...

class Continuations:
    """Where a text may go on. Raises ValueError for an empty ending."""

    def __init__(self, ending: list[int]) -> None: ...
    def look_in(self, source: Source, most: int, weight: float) -> None: ...
    def add(self, source: Source, place: int, agreed: int, weight: float) -> None: ...
    def first(self) -> dict[int, float]: ...
    def tree(
        self, nodes: int, depth: int, min_probability: float, scales: list[float] = []
    ) -> tuple[list[int], list[int], list[float]]: ...
    @property
    def longest(self) -> int: ...
