"""What every architecture is to the loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from paceline.train.batches import Batch


class Architecture(nn.Module):
    """A drafter in training. Its parameters have the names that they have in the drafter's folder.

    vocabulary  int64 [D], ascending: the target's ids of the tokens that it can propose
    depths      drafted tokens along one path that it is trained for
    adapts      whether it is trained on top of a drafter, which must be named
    """

    vocabulary: Tensor
    depths: int
    adapts = False

    @property
    def start(self) -> Mapping[str, Tensor]:
        """What it takes over from the drafter that training goes on from, by the names in its folder."""
        return dict(self.named_parameters())

    @property
    @abstractmethod
    def head(self) -> Tensor:
        """The rows [D, H] that turn what `forward` gives into logits; no parameter where they are not
        trained."""

    @property
    def outer(self) -> list[nn.Parameter]:
        """Its matrices that have a row for each token; by default embeddings and the head, if these are
        parameters."""
        rows = [part.weight for part in self.modules() if isinstance(part, nn.Embedding)]
        found = {id(weight): weight for weight in (*rows, self.head) if isinstance(weight, nn.Parameter)}
        return list(found.values())

    @abstractmethod
    def forward(self, batch: Batch) -> Iterator[Tensor]:
        """For each depth what the head reads, [n, H], behind the bases `batch.bases(depth)`, in their order.

        A base is a position t whose hidden states are known and whose next token is, too; the logits of depth
        j are for token t + 2 + j, with the tokens before it known.
        """

    @property
    def lessons(self) -> Sequence[int]:
        """The depths that are learnt, in the order of `study`; by default all."""
        return range(self.depths)

    def study(self, batch: Batch) -> Iterator[Tensor]:
        """For each of the `lessons` what the head reads, as `forward` gives it for their depths."""
        return self(batch)  # type: ignore[no-any-return]

    def aside(self, read: Tensor, overlap: Tensor) -> Tensor:
        """The loss of what is learnt of a depth beside its law, summed over rows: a float32 number; by
        default 0. read: as `study` gives it; overlap: Σ min(p, q) of each row, which is how likely what is
        drawn there is accepted, float32 [n]."""
        return overlap.new_zeros(())

    def logits(self, batch: Batch) -> Iterator[Tensor]:
        """Logits [n, D] for each depth."""
        return (functional.linear(read, self.head) for read in self(batch))

    @abstractmethod
    def known_tokens(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """What `vocabulary` is in a folder with these tensors, int64 [D]. Raises KeyError."""

    @abstractmethod
    def folder(self, weights: Mapping[str, Tensor], model: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What goes into config.json and model.safetensors of a drafter with these parameters, of a target
        with this name."""
