"""A dense decoder on the CPU, run by our own kernels straight from the numbers of a GGUF file.

Row-invariant: the bits of a row's logits do not depend on which or how many rows share the pass, nor on the
number of threads. That is what makes speculative output equal plain output bit for bit.

Layers with a sliding window read the keys and values of the last positions only, counted along each
node's own path. They keep those of all positions all the same: a page of the cache belongs to every layer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline import kernels
from paceline.core import LAST, Draft, Scores, Shortcut, TargetInfo, Verdict
from paceline.kernels.packing import LANES, Embedding
from paceline.models.vocabulary import fingerprint
from paceline.targets._ahead import Lent
from paceline.targets._options import within
from paceline.targets.weights import PackedWeights, load_weights

CACHE_SEQUENCES = 4
"""Unless told otherwise the cache holds this many sequences of full length."""


class NativeTarget:
    """The target behind `pip install paceline` on a CPU."""

    def __init__(
        self,
        weights: PackedWeights,
        *,
        threads: int | None = None,
        context: int | None = None,
        cache_tokens: int | None = None,
    ) -> None:
        """threads: None = one per core this process may use; context: tokens one sequence may hold, None =
        what the model was trained for; cache_tokens: tokens of all sequences together, None = four full ones
        (memory is taken only as it is used).

        Raises ConfigError if one of them is out of range.
        """
        config = weights.config
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = within("threads", threads, cores, 1, 256)
        context = within("context", context, config.context, LANES, config.context)
        cache_tokens = within("cache_tokens", cache_tokens, CACHE_SEQUENCES * context, LANES, 1 << 28)
        pages = -(-cache_tokens // LANES)
        self.tokenizer_json = weights.tokenizer_json
        self.config = config
        self.threads = threads
        self.weight_bytes = weights.nbytes
        self.info = TargetInfo(
            name=config.name,
            vocab_size=config.vocab_size,
            max_positions=context,
            cache_tokens=pages * LANES,
            page_tokens=LANES,
            taps=frozenset({LAST, *(f"hidden.{layer}" for layer in range(config.layers + 1))}),
            vocabulary=fingerprint(weights.tokenizer_json) if weights.tokenizer_json else "",
            layers=config.layers,
            shares_pages=True,
        )
        common: dict[str, Any] = {
            "windows": config.windows,
            "frequencies": weights.frequencies,
            "cache_pages": pages,
            "max_positions": context + LANES,
        }
        self.model = kernels.make_model(weights.shape, weights.tensors, **common, threads=threads)
        self.isa: str = self.model.isa
        self._embedding, self._head = (
            Embedding(
                weights.tensors[name + ".type"],
                weights.tensors[name],
                config.vocab_size,
                config.hidden,
                scale,
            )
            for name, scale in (
                ("token_embd.weight", config.embedding_scale),
                ("output.weight" if "output.weight" in weights.tensors else "token_embd.weight", 1.0),
            )
        )
        self._logits = self._logits_room(1)
        self._lent = Lent(config.hidden, LANES)

    @staticmethod
    def load(
        path: str | Path,
        *,
        threads: int | None = None,
        cache_tokens: int | None = None,
        context: int | None = None,
        layers: int | None = None,
    ) -> NativeTarget:
        """A target from a GGUF file; its packed form is kept in the cache on disk. layers: the first ones
        that are run, None = all.

        Raises ModelFileError for the file, ConfigError for an option.
        """
        weights = load_weights(Path(path))
        if layers is not None:
            weights = weights.first(layers)
        return NativeTarget(weights, threads=threads, context=context, cache_tokens=cache_tokens)

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        """One pass. The logits, float32 [S, V], lie in a buffer that the next pass overwrites.

        Raises CapacityError if the cache is too full, and then nothing has changed.
        """
        return self._lent.forward(draft, taps, self.info.vocab_size, self._forward)

    def _forward(self, draft: Draft, taps: frozenset[str], lent: tuple[str, ...]) -> Scores:
        names = sorted(taps)
        features: list[NDArray[np.float32]] = [
            np.empty((len(draft.tokens), self.config.hidden), np.float32) for _ in names
        ]
        last = self.config.layers + 1
        layers = [last if name == LAST else int(name.removeprefix("hidden.")) for name in names]
        pads = np.concatenate([self._lent.embeddings[tap] for tap in lent]) if lent else None
        logits = self._pass(self.model.forward, draft, layers, features, None, pads)
        return Scores(logits, dict(zip(names, features, strict=True)))

    def sketch(self, draft: Draft, shortcut: Shortcut) -> NDArray[np.float32]:
        """A cheaper pass to draft with, see `paceline.core.Sketch`: logits float32 [S, V].

        The cache is seen by whole pages. Raises like `forward`.
        """
        how = sorted(shortcut.skipped), shortcut.sinks, shortcut.recent
        if shortcut.readout is None:
            return self._pass(self.model.sketch, draft, *how)
        states = np.empty((len(draft.tokens), self.config.hidden), np.float32)
        unscored = replace(draft, scored=np.empty(0, np.int32))
        self._pass(self.model.sketch, unscored, *how, [self.config.layers], [states])
        logits: NDArray[np.float32] = shortcut.readout(states[draft.scored])
        return logits

    def _pass(self, run: Callable[..., None], draft: Draft, *more: Any) -> NDArray[np.float32]:
        scored = len(draft.scored)
        if len(self._logits) < scored:
            self._logits = self._logits_room(scored)
        run(
            draft.slots,
            draft.offsets,
            draft.starts,
            draft.tokens,
            draft.parents,
            draft.positions,
            draft.scored,
            self._logits,
            *more,
        )
        return self._logits[:scored]

    def _logits_room(self, rows: int) -> NDArray[np.float32]:
        """float32 [rows, V]. Rows start a few cache lines apart from whole memory pages, or stores to the
        same token of different rows would push each other out of the cache."""
        padded = -(-self.info.vocab_size // LANES) * LANES + 5 * LANES
        return np.empty((rows, padded), np.float32)[:, : self.info.vocab_size]

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        """Keep what the verdict keeps; other nodes' cache entries are simply never read again."""
        offsets = draft.offsets.tolist()
        known, kept = [], []
        for row, (root, path) in enumerate(zip(draft.roots, verdict.paths, strict=True)):
            first = offsets[row]
            known.append((root if root >= 0 else offsets[row + 1] - 1) - first + 1)
            kept.append([node - first for node in path])
        self.model.commit(known, kept)

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences and free their pages."""
        self.model.release(list(slots))

    def embedding(self) -> Embedding:
        """The embeddings of the tokens, for trained drafters that use them too."""
        return self._embedding

    def head(self) -> Embedding:
        """The head's rows, for trained drafters that use them too."""
        return self._head

    def look_ahead(self, embeddings: NDArray[np.float32]) -> str:
        """See `paceline.core.LookAhead`. Raises ConfigError for embeddings of another width, or too many."""
        tap, self.info = self._lent.take(embeddings, self.info)
        return tap

    def pages(self, slot: int) -> Sequence[int]:
        """See `paceline.core.PageSharing`."""
        pages: list[int] = self.model.pages(slot)
        return pages

    def adopt(self, slot: int, pages: Sequence[int]) -> None:
        """See `paceline.core.PageSharing`."""
        self.model.adopt(slot, list(pages))

    def hold(self, pages: Sequence[int]) -> None:
        """See `paceline.core.PageSharing`."""
        self.model.hold(list(pages))

    def drop(self, pages: Sequence[int]) -> None:
        """See `paceline.core.PageSharing`."""
        self.model.drop(list(pages))

    def read_cache(self, slot: int, layer: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Committed keys and values of one layer, float32 [length, kv_heads, head_dim] each. For tests."""
        shape = (self.model.length(slot), self.config.kv_heads, self.config.head_dim)
        keys, values = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self.model.read_cache(slot, layer, keys, values)
        return keys, values
