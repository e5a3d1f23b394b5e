"""Whole passes recorded as CUDA graphs: a device is told once what to do, and then only to do it again.

A recording has fixed shapes and reads its inputs from fixed tensors. So passes are filled up to the next of a
few shapes, their arrays are copied into the recording's, and it is played.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from paceline.errors import ConfigError
from paceline.targets.torch_cache import Pool
from paceline.targets.torch_layout import Layout, Shape, Span

MOST_ROWS = 64
"""Passes of more are bound by arithmetic, and are run as they are."""
LEAST_ENTRIES = 128
MOST_RECORDINGS = 96
"""Beyond that the oldest is given up."""

Result = tuple[Tensor, dict[str, Tensor]]
"""Logits [S, V] and features {tap: [N, H]} of a pass."""
Compute = Callable[[], Result]
Record = Callable[[Compute], tuple[Callable[[], None], Result]]
"""From a computation to what repeats it, and the tensors in which its results then are."""


class Graphs:
    """The recordings of a target.

    refused: what failed when one was to be made, since when there are none; "" if nothing did.
    """

    def __init__(self, pool: Pool, device: torch.device) -> None:
        self.refused = ""
        self._pool = pool
        self._device = device
        self._forget()

    def _forget(self) -> None:
        self._moves = self._pool.moves
        self._recordings: dict[object, _Recording] = {}
        self._record = recorder(self._device)

    def shape(self, spans: Sequence[Span]) -> Shape | None:
        """The shape in which these are played; None if they are not."""
        if self.refused or any(span.inputs is not None for span in spans):
            return None
        least = Shape.of(spans)
        shape = Shape(step(least.batch), step(least.nodes), step(least.entries, LEAST_ENTRIES))
        return shape if shape.batch * shape.nodes <= MOST_ROWS else None

    def run(self, layout: Layout, key: object, compute: Callable[[Layout], Result]) -> Result:
        """What `compute` makes of a layout in one of the shapes; valid until the next call. key: what else
        the result depends on.

        If this cannot be recorded it is computed, and no other pass is played from then on.
        """
        if self._moves != self._pool.moves:  # what was recorded works where the pool was
            self._forget()
        key = (layout.visible.shape, key)
        recording = self._recordings.get(key)
        if recording is None:
            try:
                recording = _Recording(layout, self._device, compute, self._record)
            except RuntimeError as error:
                self._forget()
                self.refused = " ".join(f"{type(error).__name__}: {error}".split())
                return compute(layout.on(self._device))
            if len(self._recordings) == MOST_RECORDINGS:
                del self._recordings[next(iter(self._recordings))]
            self._recordings[key] = recording
        return recording.play(layout)


class _Recording:
    """One recorded pass and its tensors."""

    def __init__(
        self, layout: Layout, device: torch.device, compute: Callable[[Layout], Result], record: Record
    ) -> None:
        numbers, visible = layout.flat()
        self._numbers = torch.from_numpy(numbers).to(device, copy=True)
        self._visible = torch.from_numpy(visible).to(device, copy=True)
        inputs = layout.over(self._numbers, self._visible)
        self._repeat, self._results = record(lambda: compute(inputs))

    def play(self, layout: Layout) -> Result:
        """The results for this layout, which has the shapes of the recorded one."""
        for own, given in zip((self._numbers, self._visible), layout.flat(), strict=True):
            own.copy_(torch.from_numpy(given))
        self._repeat()
        return self._results


def recorder(device: torch.device) -> Record:
    """What records on a device, with memory that its recordings share: their results are read before the next
    one is played. Raises ConfigError for a device that has no such thing."""
    if device.type != "cuda":
        raise ConfigError(f"graphs=True needs a CUDA device, the model is on {device}")
    memory = torch.cuda.graph_pool_handle()

    def record(compute: Compute) -> tuple[Callable[[], None], Result]:
        with torch.cuda.device(device):
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                compute()  # once, so that libraries have made what they keep
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=memory):
                results = compute()
        return graph.replay, results

    return record


def step(count: int, least: int = 1) -> int:
    """`least` times the next of 1, 2, 3, 4, 6, 8, 12, 16, ... (or 1.5) that is at least `count`."""
    size = least
    while size < count:
        size *= 2
    return size * 3 // 4 if size > least and size * 3 // 4 >= count else size
