"""Language models of the transformers library, on PyTorch.

The model's own classes do the work; attention and cache are ours (`paceline.targets.torch_attention`), so
that packed rows of several sequences, drafted trees and rewinding cost no copies of the cache. A model is
held against its own plain forward pass when the target is made: one that does not fit is refused by name.

Matrix libraries round differently for one row than for eight. With `rows` every call of the model has exactly
that many rows, filled up where need be, and each node attends alone, in shapes that follow from its position:
the bits of a node's logits then do not depend on what else is in the pass, and answers with a drafter equal
plain decoding's bit for bit. Without it passes are faster, and two tokens that are all but tied may change
places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.core import LAST, NOTHING, Draft, Scores, Shortcut, TargetInfo, Tree, Verdict, View
from paceline.device import OnDevice
from paceline.errors import CapacityError, ConfigError, IncompatibleDrafter
from paceline.kernels.packing import Embedding
from paceline.targets._ahead import Lent
from paceline.targets._options import within
from paceline.targets.torch_attention import Pass, Source, Switch
from paceline.targets.torch_cache import PAGE_TOKENS, Pool
from paceline.targets.torch_graphs import Graphs
from paceline.targets.torch_layers import Layers
from paceline.targets.torch_layout import Span, ancestors, blocks, lay_out, lay_out_in
from paceline.targets.torch_models import Decoder, EncoderDecoder, Seen, VisionLanguage, calls_of, longest
from paceline.targets.torch_weights import matrix, refuse_mixed_rows, stored

CACHE_SEQUENCES = 4
"""Unless told otherwise the cache holds this many sequences of full length."""
PROBED = 8
WHOLE = Shortcut()
TRIAL = -1
"""The slot of sequences of our own, which no request has."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
COARSE_TOLERANCE = 0.1
"""By how much our logits may differ from the model's own, as root mean squares relative to their spread;
the last is for 16 bits and fewer, and for quantised weights, with which activations may be quantised too."""


class TorchTarget:
    """The target behind `pip install paceline[torch]`.

    model: a causal, encoder-decoder or vision-language model of transformers, in eval mode; it stays usable
    as it is, and its dtype and device are kept. context: tokens one sequence may hold, None = what the model
    was made for; cache_tokens: tokens of all sequences together, None = four full ones (memory is taken as it
    is used, and up to half as much again); rows: None, or the exact number of rows of every call, which makes
    answers bit-exact (see above); graphs: whether passes of few rows are recorded as CUDA graphs, None =
    where the device can and `rows` is None; vocabulary: fingerprint of the tokenizer.

    Raises ConfigError for a model that cannot be served and for an option out of range.
    """

    def __init__(
        self,
        model: Any,
        *,
        context: int | None = None,
        cache_tokens: int | None = None,
        rows: int | None = None,
        graphs: bool | None = None,
        vocabulary: str = "",
    ) -> None:
        self._calls = calls_of(model)
        refuse_mixed_rows(model)
        config = self._calls.config
        trained = longest(config)
        context = within("context", context, trained, PROBED, trained)
        cache_tokens = within("cache_tokens", cache_tokens, CACHE_SEQUENCES * context, PROBED, 1 << 28)
        self.rows = None if rows is None else within("rows", rows, rows, 1, min(context, cache_tokens))
        self.model = model
        self._device = model.get_input_embeddings().weight.device
        self._switch = Switch(model, alike=rows is not None)
        self._looked = False  # whether a prompt with inputs was held against the model's own pass
        pages = -(-cache_tokens // PAGE_TOKENS)
        self._pool = Pool(pages * PAGE_TOKENS)
        if graphs and rows is not None:
            raise ConfigError("graphs=True and rows do not go together: with rows nodes attend one by one")
        if graphs is None:
            graphs = self._device.type == "cuda" and rows is None
        self._graphs = Graphs(self._pool, self._device) if graphs else None
        self.threads = torch.get_num_threads()
        weights = stored(model)
        self.weight_bytes = sum(weight.nbytes for weight in weights)
        bytewise = any(weight.itemsize == 1 for weight in weights)
        self._tolerance = None if bytewise else TOLERANCE.get(model.dtype)
        self._keeps_some = rows is None and model._supports_logits_to_keep()
        self.info = TargetInfo(
            name=config.name_or_path or model.config.name_or_path or config.model_type,
            vocab_size=config.vocab_size,
            max_positions=context,
            cache_tokens=pages * PAGE_TOKENS,
            page_tokens=PAGE_TOKENS,
            taps=frozenset({LAST, *(f"hidden.{layer}" for layer in range(self._calls.layers + 1))}),
            vocabulary=vocabulary,
            row_invariant=rows is not None,
            inputs=self._calls.inputs,
            shares_pages=True,
        )
        self._longest = trained
        self._layers = Layers(model, self._calls.layers)
        self._lent = Lent(model.get_input_embeddings().embedding_dim, PAGE_TOKENS)
        self._pads: dict[tuple[str, ...], Tensor] = {}  # what was lent, by the names of its taps
        self._sketchless = ""  # why it makes no sketches
        self._check()

    @property
    def isa(self) -> str:
        """What computes, and how: device, dtype, rows, and for graphs that were refused why."""
        parts = [f"torch {self._device} {self.model.dtype}", f"rows: {self.rows or 'any'}"]
        if self._switch.packed.layers:
            parts.append("packed weights")
        if self._graphs is not None:
            parts.append(f"no graphs ({self._graphs.refused})" if self._graphs.refused else "graphs")
        if self._sketchless:
            parts.append(f"no sketches ({self._sketchless})")
        return ", ".join(parts).replace("torch.", "")

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        """One pass. The logits are float32 [S, V], or float64 of a model in float64: on a CPU NumPy's,
        elsewhere they stay where they are. Features come to the host.

        Raises CapacityError if the cache is too full, and then nothing has changed.
        """
        return self._lent.forward(draft, taps, self.info.vocab_size, self._forward)

    def sketch(self, draft: Draft, shortcut: Shortcut) -> Any:
        """A cheaper pass to draft with, see `paceline.core.Sketch`: logits as of `forward`.

        Raises like `forward`; ValueError if what is made of hidden states would be made of the last layer's.
        """
        if shortcut.readout is None:
            return self._forward(draft, frozenset(), shortcut=shortcut).logits
        behind = 1 + max(set(range(self.info.layers)) - shortcut.skipped, default=-1)
        if behind == self.info.layers:
            raise ValueError("a sketch that is read out otherwise leaves out the last layer")
        tap, unscored = f"hidden.{behind}", replace(draft, scored=np.empty(0, np.int32))
        states = self._forward(unscored, frozenset({tap}), shortcut=shortcut).features[tap]
        return shortcut.readout(states[draft.scored])

    def look_ahead(self, embeddings: NDArray[np.float32]) -> str:
        """See `paceline.core.LookAhead`. Raises ConfigError for embeddings of another width, or too many;
        IncompatibleDrafter for a model that reads more than text."""
        if type(self._calls) is not Decoder:
            raise IncompatibleDrafter(f"{self.info.name} reads more than text, and no pads")
        tap, self.info = self._lent.take(embeddings, self.info)
        return tap

    def _forward(
        self,
        draft: Draft,
        taps: frozenset[str],
        lent: tuple[str, ...] = (),
        shortcut: Shortcut = WHOLE,
    ) -> Scores:
        """A pass. lent: see `paceline.targets._ahead.Run`."""
        offsets = draft.offsets.tolist()
        slots, starts = draft.slots.tolist(), draft.starts.tolist()
        for slot, start in zip(slots, starts, strict=True):
            if self._pool.length(slot) != start:
                raise ValueError(
                    f"slot {slot} starts at {start}, but {self._pool.length(slot)} tokens are cached"
                )
        if lent and int(draft.positions.max()) >= self._longest:
            raise CapacityError(f"there are no positions beyond {self._longest}")
        ends = (draft.starts + np.diff(draft.offsets)).tolist()
        with torch.inference_mode():
            self._pool.reserve(dict(zip(slots, ends, strict=True)))
            rows = [self._row(draft, row, shortcut) for row in range(len(draft.slots))]
            how = _How(taps, lent, shortcut.skipped)
            calls = [
                self._call(_spans(rows, block), _within(draft.scored, block), how)
                for block in blocks(offsets, self.rows or offsets[-1])
            ]
            logits = calls[0].logits if len(calls) == 1 else torch.cat([call.logits for call in calls])
            logits = self._given(logits)
        features = {tap: np.concatenate([call.features[tap] for call in calls]) for tap in taps}
        return Scores(logits, features)

    def _given(self, logits: Tensor) -> Any:
        """What others get of the logits, once they are there: a policy learns from how long that took."""
        if self._device.type == "cpu":
            return logits.numpy()
        torch.accelerator.synchronize(self._device)
        return OnDevice(logits)

    def embedding(self) -> Embedding:
        """The embeddings of the tokens, for trained drafters, which run on the CPU kernels: as bfloat16."""
        return matrix(self.model.get_input_embeddings())

    def head(self) -> Embedding:
        """The head's rows, for trained drafters that use them too."""
        return matrix(self.model.get_output_embeddings())

    def _row(self, draft: Draft, row: int, shortcut: Shortcut) -> _Row:
        """What a row's nodes may see."""
        slot, start = int(draft.slots[row]), int(draft.starts[row])
        first, last = int(draft.offsets[row]), int(draft.offsets[row + 1])
        parents = draft.parents[first:last]
        above = ancestors(np.where(parents < 0, -1, parents - first).tolist())
        cached = np.arange(start)
        if shortcut.sinks + shortcut.recent < start:
            cached = np.delete(cached, slice(shortcut.sinks, start - shortcut.recent))
        places = self._pool.places(slot, start + last - first)
        return _Row(
            first,
            len(cached),
            draft.tokens[first:last].astype(np.int64),
            np.concatenate((places[cached], places[start:])),
            np.concatenate((cached, draft.positions[first:last])),
            np.concatenate((np.ones((last - first, len(cached)), np.bool_), above), 1),
            draft.inputs.get(slot),
        )

    def _call(self, spans: Sequence[Span], scored: Sequence[int], how: _How) -> Scores:
        """Call the model for the nodes of these spans; the logits of those of them that are scored."""
        graphs = self._graphs
        if graphs is not None and (shape := graphs.shape(spans)):
            layout = lay_out_in(shape, spans, scored)
            logits, layers = graphs.run(
                layout, how, lambda there: self._compute(Pass(there, self._pool), how)
            )
            logits = logits[: len(scored)].clone()  # the next pass has the same place for its own
        else:
            layout = lay_out(spans, scored, self.rows)
            one_by_one = self.rows is not None
            running = Pass(
                layout.on(self._device),
                self._pool,
                spans,
                straight=None if one_by_one else layout.straight,
                all_seen=not one_by_one and bool(layout.visible.all()),
                nodewise=one_by_one,
            )
            logits, layers = self._compute(running, how)
        return Scores(logits, {tap: _on_host(layer)[layout.own] for tap, layer in layers.items()})

    def _compute(self, running: Pass, how: _How) -> tuple[Tensor, dict[str, Tensor]]:
        """The logits that are wanted, and the features of all rows."""
        layout = running.layout
        tokens, positions = layout.tokens[None], layout.positions[None]
        with self._switch.on(running), self._layers.without(how.skipped):
            out = self.model(
                **self._calls.arguments(tokens, positions, running.spans, self._pads_of(how.lent)),
                use_cache=False,
                output_hidden_states=bool(how.taps),
                return_dict=True,
                **({"logits_to_keep": layout.wanted} if self._keeps_some else {}),
            )
        logits = out.logits[0] if self._keeps_some else out.logits[0, layout.wanted]
        # What transformers has last is behind the last norm.
        layers = {
            tap: out[self._calls.hidden][-1 if tap == LAST else int(tap.removeprefix("hidden."))][0]
            for tap in how.taps
        }
        return _in_full(logits), layers

    def _pads_of(self, lent: tuple[str, ...]) -> Tensor | None:
        """What was lent under these names, [P, H], at a place that graphs may remember."""
        if lent and lent not in self._pads:
            pads = np.concatenate([self._lent.embeddings[tap] for tap in lent])
            self._pads[lent] = torch.from_numpy(pads).to(self._device, self.model.dtype)
        return self._pads.get(lent)

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        """Keep what the verdict keeps; other nodes' cache entries are overwritten by the next pass."""
        offsets = draft.offsets.tolist()
        kept = []
        for row, slot in enumerate(draft.slots.tolist()):
            first, root = offsets[row], draft.roots[row]
            known = (root if root >= 0 else offsets[row + 1] - 1) - first + 1
            kept.append((slot, known, [node - first for node in verdict.paths[row]]))
        with torch.inference_mode():
            self._pool.keep(kept)

    def source(self, encoded: Tensor) -> Source:
        """What a request of an encoder-decoder model has as `inputs`. encoded: what the model's encoder made
        of the source, [E, hidden size], without padding.

        Raises ConfigError for a model that has no encoder.
        """
        if not isinstance(self._calls, EncoderDecoder):
            raise ConfigError(f"{type(self.model).__name__} has no encoder")
        return self._calls.source(encoded)

    def see(self, input_ids: Tensor, kept: Tensor, more: Mapping[str, Any]) -> list[Seen]:
        """What requests of a vision-language model have as `inputs`, one for each prompt of a batch.

        input_ids: int64 [B, P], the prompts; kept: bool [B, P], without padding; more: what the model's
        `generate` takes with them, such as pixel_values. The first time, the logits after the first prompt
        are held against the model's own.

        Raises ConfigError for a model that looks at nothing, or whose images cannot be served.
        """
        if not isinstance(self._calls, VisionLanguage):
            raise ConfigError(f"{type(self.model).__name__} takes tokens only")
        seen, own = self._calls.see(input_ids, kept, more, whole=not self._looked)
        if own is not None:
            text = input_ids[0, kept[0]].tolist()
            self._hold(self._read(text, 0, seen[0]), _on_host(own[:1]))
            self.release([TRIAL])
            self._looked = True
        return seen

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences and free their pages."""
        self._pool.release(slots)

    def pages(self, slot: int) -> Sequence[int]:
        """See `paceline.core.PageSharing`."""
        return self._pool.pages(slot)

    def adopt(self, slot: int, pages: Sequence[int]) -> None:
        """See `paceline.core.PageSharing`."""
        self._pool.adopt(slot, pages)

    def hold(self, pages: Sequence[int]) -> None:
        """See `paceline.core.PageSharing`."""
        self._pool.books.hold(pages)

    def drop(self, pages: Sequence[int]) -> None:
        """See `paceline.core.PageSharing`."""
        self._pool.books.drop(pages)

    def read_cache(self, slot: int, layer: int) -> tuple[Tensor, Tensor]:
        """Committed keys and values of one layer, [heads, length, width] each. For tests."""
        return self._pool.read(slot, layer)

    def _check(self) -> None:
        """Hold a text, read in parts and through a tree, against the model's own pass over all of it."""
        kind = type(self.model).__name__
        text = [(7919 * place + 11) % self.info.vocab_size for place in range(PROBED)]
        tree = Tree([text[0], text[4], text[1], text[5]], [-1, -1, 1, 1])
        try:
            with torch.inference_mode(), self._layers.watched():
                whole = torch.tensor([text], device=self._device)
                own = _on_host(self._calls.own(whole))
                inputs = self._calls.inputs_of_own(whole)
            self._read(text[:3], 0, inputs)
            within = self._read(text[:4], 3, inputs, tree, [2, 4])
            behind = self._read(text, 6, inputs)
            self.release([TRIAL])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"{kind} cannot be served: {type(error).__name__}: {error}") from error
        self._hold(np.stack([*within[[0, 2, 4]], behind[0]]), own[[3, 4, 5, 7]])
        self._try_sketches(text)
        if self.rows is not None:
            self._check_rows(self.rows, inputs)

    def _try_sketches(self, text: list[int]) -> None:
        """Whether every layer can be left out; `info` then says so."""
        count = self._layers.count
        if type(self._calls) is not Decoder:
            return
        if not count:
            self._sketchless = "its layers make more than hidden states"
            return
        view = View([TRIAL], [text], [0], [len(text)], [], [], [], [])
        draft = Draft.pack(view, [NOTHING])
        try:
            for first in (0, 1):  # layers that share what they have made do not go without each other
                self.sketch(draft, Shortcut(frozenset(range(first, count, 2))))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            self._sketchless = " ".join(f"{type(error).__name__}: {error}".split())
        else:
            self.info = replace(self.info, layers=count)
        self.release([TRIAL])

    def _hold(self, logits: NDArray[Any], own: NDArray[Any]) -> None:
        """Raises ConfigError if our logits [n, V] are not the model's own."""
        gaps = logits - own
        sizes = np.sqrt(np.mean(gaps**2, 1)) / np.std(own)
        # In few bits a router may choose other experts for a token where two are all but tied.
        allowed = self._tolerance
        fits = np.median(sizes) <= COARSE_TOLERANCE if allowed is None else sizes.max() <= allowed
        if not fits:
            raise ConfigError(
                f"{type(self.model).__name__} gives other logits with our attention and cache than with its "
                "own, and cannot be served"
            )

    def _check_rows(self, rows: int, inputs: Any) -> None:
        """Whether a row's bits depend on its place in a call, or on its neighbours."""
        first, token = 11 % self.info.vocab_size, 12 % self.info.vocab_size
        self._read([first], 0, inputs)
        alone = self._read([first, token], 1, inputs)[0]
        self.release([TRIAL])
        others = [(7919 * place) % self.info.vocab_size for place in range(1, rows)]
        others[rows // 2 : rows // 2 + 1] = [token]
        for tokens in ([token] * (rows - 1), others):
            logits = self._read([first], 0, inputs, Tree(tokens, [-1] * (rows - 1)))[1:]
            self.release([TRIAL])
            same = [row for row, other in zip(logits, tokens, strict=True) if other == token]
            if not all((row == alone).all() for row in same):
                raise ConfigError(
                    f"rows={rows}: on this machine a row of {type(self.model).__name__} depends on its place "
                    "in a call, or on its neighbours; try another number, or None"
                )

    def _read(
        self, history: list[int], start: int, inputs: Any, tree: Tree = NOTHING, path: Sequence[int] = ()
    ) -> NDArray[Any]:
        """Score a tree behind known tokens of a sequence of ours, and keep these and the path."""
        view = View([TRIAL], [history], [start], [len(history)], [], [], [], [], inputs={TRIAL: inputs})
        draft = Draft.pack(view, [tree])
        logits = np.array(self.forward(draft, frozenset()).logits)
        self.commit(draft, Verdict([path], [-1]))
        return logits


class _How(NamedTuple):
    """What of a pass is computed. lent: see `paceline.targets._ahead.Run`; skipped: layers left out."""

    taps: frozenset[str]
    lent: tuple[str, ...]
    skipped: frozenset[int]


class _Row(NamedTuple):
    """A whole row, with those entries of the cache that are seen. first: its first node; the rest as in
    `Span`."""

    first: int
    entry: int
    tokens: NDArray[np.int64]
    places: NDArray[np.int64]
    positions: NDArray[np.int64]
    visible: NDArray[np.bool_]
    inputs: Any


def _spans(rows: Sequence[_Row], block: Sequence[tuple[int, int, int]]) -> list[Span]:
    """The parts of the rows that are in a block of nodes."""
    spans, start = [], block[0][1]
    for number, first, last in block:
        row = rows[number]
        entry, end = row.entry + first - row.first, row.entry + last - row.first
        seen = row.visible[first - row.first : last - row.first, :end]
        tokens = row.tokens[first - row.first : last - row.first]
        places, positions = row.places[:end], row.positions[:end]
        spans.append(Span(first - start, last - start, entry, tokens, places, positions, seen, row.inputs))
    return spans


def _within(nodes: NDArray[np.int32], block: Sequence[tuple[int, int, int]]) -> list[int]:
    """Those of the nodes that are in a block, counted from its first."""
    first, last = block[0][1], block[-1][2]
    kept: list[int] = (nodes[(nodes >= first) & (nodes < last)] - first).tolist()
    return kept


def _in_full(values: Tensor) -> Tensor:
    """float64 as it is, everything else as float32."""
    return values if values.dtype is torch.float64 else values.float()


def _on_host(values: Tensor) -> NDArray[Any]:
    found: NDArray[Any] = _in_full(values).cpu().numpy()
    return found
