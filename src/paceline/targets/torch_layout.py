"""How the nodes of a pass lie in the arrays that a model and its attention get."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.targets.torch_cache import EMPTY, WASTE


@dataclass(frozen=True, slots=True)
class Span:
    """The nodes of one sequence in a pass: [first, last) of all.

    entry      which of the sequence's entries holds the first one's keys and values
    tokens     int64 [n]
    places     int64 [entry + n]: where all entries up to the last node's are in the pool
    positions  int64 [entry + n]: of the same
    visible    bool [n, entry + n]: the entries on each node's own path, itself included
    inputs     what the sequence has beside tokens, such as the `Source` of an encoder-decoder model
    """

    first: int
    last: int
    entry: int
    tokens: NDArray[np.int64]
    places: NDArray[np.int64]
    positions: NDArray[np.int64]
    visible: NDArray[np.bool_]
    inputs: Any = None


class Shape(NamedTuple):
    """Of a pass: sequences, nodes of each, entries that each may see."""

    batch: int
    nodes: int
    entries: int

    @staticmethod
    def of(spans: Sequence[Span]) -> Shape:
        """The least that holds them."""
        nodes = max(span.last - span.first for span in spans)
        return Shape(len(spans), nodes, max(len(span.places) for span in spans))


@dataclass(frozen=True, slots=True)
class Layout:
    """The arrays of a pass over N rows of B sequences, each padded to n nodes and L entries: NumPy's, or
    PyTorch's on the device. int64, but for `visible`.

    tokens, positions  [N]     of the rows
    written    [N]       where in the pool each row's keys and values are kept
    places     [B, L]    where in the pool each sequence's entries are
    known      [B, L]    their positions
    wanted     [S]       the rows whose logits are wanted
    visible    bool [B, n, L]: which entries each node may see
    rows       [B, n]    which row each node is, and
    nodes      [N]       which node each row is; both None where they lie in the same order

    Rows that only fill up have token and position 0, see one entry, and are kept in the one for waste.
    """

    tokens: Any
    positions: Any
    written: Any
    places: Any
    known: Any
    wanted: Any
    visible: Any
    rows: Any = None
    nodes: Any = None

    @property
    def own(self) -> NDArray[np.int64]:
        """The rows that are nodes, in their order. Of arrays of NumPy's."""
        return np.flatnonzero(self.written != WASTE)

    @property
    def straight(self) -> slice | None:
        """Where the entries of the only sequence lie behind one another in the pool, if they do, and nothing
        fills up. Of arrays of NumPy's."""
        first, count = int(self.places[0, 0]), self.places.shape[1]
        lies = len(self.places) == 1 and self.rows is None and (np.diff(self.places[0]) == 1).all()
        return slice(first, first + count) if lies else None

    def flat(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """All numbers in one array, and what is visible: what goes to a device at once."""
        return np.concatenate([values.ravel() for values in self._numbers().values()]), self.visible

    def over(self, numbers: Tensor, visible: Tensor) -> Layout:
        """The same as views of these tensors, which hold what `flat` gives."""
        mine = self._numbers()
        parts = numbers.split([values.size for values in mine.values()])
        views = {
            name: part.view(values.shape) for (name, values), part in zip(mine.items(), parts, strict=True)
        }
        return replace(self, **views, visible=visible)

    def on(self, device: torch.device) -> Layout:
        """The same as tensors on a device."""
        numbers, visible = self.flat()
        return self.over(torch.from_numpy(numbers).to(device), torch.from_numpy(visible).to(device))

    def _numbers(self) -> dict[str, Any]:
        arrays = {column.name: getattr(self, column.name) for column in fields(self)}
        return {name: values for name, values in arrays.items() if values is not None and name != "visible"}


def lay_out(spans: Sequence[Span], scored: Sequence[int], rows: int | None = None) -> Layout:
    """The arrays of these spans as they are. scored: the nodes whose logits are wanted; rows: N, if there
    shall be more rows than nodes."""
    shape = Shape.of(spans)
    count = spans[-1].last
    even = count == shape.batch * shape.nodes and rows in (None, count)
    layout = _empty(shape, rows or count, len(scored))
    layout.wanted[:] = scored
    for number, span in enumerate(spans):
        _put(layout, number, span, span.first)
    if even:
        return layout
    nodes, numbers = np.zeros(len(layout.tokens), np.int64), np.zeros(shape[:2], np.int64)
    for number, span in enumerate(spans):
        size = span.last - span.first
        numbers[number, :size] = range(span.first, span.last)
        nodes[span.first : span.last] = range(number * shape.nodes, number * shape.nodes + size)
    return replace(layout, rows=numbers, nodes=nodes)


def lay_out_in(shape: Shape, spans: Sequence[Span], scored: Sequence[int]) -> Layout:
    """The arrays of these spans filled up to a shape: every sequence has its own n rows, and as many logits
    are wanted as there are rows, those of `scored` first."""
    layout = _empty(shape, shape.batch * shape.nodes, shape.batch * shape.nodes)
    rows = [
        number * shape.nodes + node for number, span in enumerate(spans) for node in range(len(span.tokens))
    ]
    layout.wanted[: len(scored)] = [rows[node] for node in scored]
    for number, span in enumerate(spans):
        _put(layout, number, span, number * shape.nodes)
    return layout


def _empty(shape: Shape, rows: int, wanted: int) -> Layout:
    visible = np.zeros(shape, np.bool_)
    visible[:, :, 0] = True  # what sees nothing at all has no softmax
    tokens, positions = np.zeros((2, rows), np.int64)
    known = np.zeros((shape.batch, shape.entries), np.int64)
    places, written = np.full_like(known, EMPTY), np.full_like(tokens, WASTE)
    return Layout(tokens, positions, written, places, known, np.zeros(wanted, np.int64), visible)


def _put(layout: Layout, number: int, span: Span, row: int) -> None:
    """A span as this sequence of the layout, from this row on."""
    count, end = span.visible.shape
    rows = slice(row, row + count)
    layout.tokens[rows], layout.positions[rows] = span.tokens, span.positions[span.entry :]
    layout.written[rows] = span.places[span.entry :]
    layout.places[number, :end], layout.known[number, :end] = span.places, span.positions
    layout.visible[number, :count, :end] = span.visible


def ancestors(parents: Sequence[int]) -> NDArray[np.bool_]:
    """bool [n, n]: row i holds node i and the nodes above it. parents: -1, or an earlier node."""
    if all(parent == node - 1 for node, parent in enumerate(parents)):
        return np.tri(len(parents), dtype=np.bool_)
    above = np.eye(len(parents), dtype=np.bool_)
    for node, parent in enumerate(parents):
        if parent >= 0:
            above[node] |= above[parent]
    return above


def blocks(offsets: Sequence[int], size: int) -> Iterator[list[tuple[int, int, int]]]:
    """The packed nodes in blocks of `size`: for each block (row, first node, last node) of the rows in it."""
    for start in range(0, offsets[-1], size):
        yield [
            (row, max(first, start), min(last, start + size))
            for row, (first, last) in enumerate(pairwise(offsets))
            if first < start + size and last > start
        ]
