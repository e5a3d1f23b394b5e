"""Any causal language model of the transformers library, on PyTorch.

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

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.core import Draft, Scores, TargetInfo, Tree, Verdict, View
from paceline.errors import CapacityError, ConfigError
from paceline.kernels.packing import Embedding, pack
from paceline.targets.torch_attention import Cached, Pass, Span, Switch, ancestors, blocks
from paceline.targets.weights import aligned

PAGE_TOKENS = 16
CACHE_SEQUENCES = 4
"""Unless told otherwise the cache holds this many sequences of full length."""
PROBED = 8
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
COARSE_TOLERANCE = 0.1
"""By how much our logits may differ from the model's own, as root mean squares relative to their spread;
the last is for 16 bits and fewer."""


class TorchTarget:
    """The target behind `pip install paceline[torch]`.

    model: a causal language model of transformers, in eval mode; it stays usable as it is, and its dtype and
    device are kept. context: tokens one sequence may hold, None = what the model was made for; cache_tokens:
    tokens of all sequences together, None = four full ones (memory is taken as it is used, and up to half as
    much again); rows: None, or the exact number of rows of every call, which makes answers bit-exact (see
    above); vocabulary: fingerprint of the tokenizer.

    Raises ConfigError for a model that cannot be served and for an option out of range.
    """

    def __init__(
        self,
        model: Any,
        *,
        context: int | None = None,
        cache_tokens: int | None = None,
        rows: int | None = None,
        vocabulary: str = "",
    ) -> None:
        refuse(model)
        config = model.config.get_text_config()
        trained = longest(config)
        context = _within("context", context, trained, PROBED, trained)
        cache_tokens = _within("cache_tokens", cache_tokens, CACHE_SEQUENCES * context, PROBED, 1 << 28)
        self.rows = None if rows is None else _within("rows", rows, rows, 1, min(context, cache_tokens))
        self.model = model
        self._device = model.get_input_embeddings().weight.device
        self._switch = Switch(model, alike=rows is not None)
        self._cached: dict[int, Cached] = {}
        self.isa = f"torch {self._device} {model.dtype}, rows: {rows or 'any'}".replace("torch.", "")
        self.threads = torch.get_num_threads()
        self.weight_bytes = sum(weight.nbytes for weight in model.parameters())
        self._keeps_some = rows is None and model._supports_logits_to_keep()
        self.info = TargetInfo(
            name=config.name_or_path or model.config.name_or_path or config.model_type,
            vocab_size=config.vocab_size,
            max_positions=context,
            cache_tokens=-(-cache_tokens // PAGE_TOKENS) * PAGE_TOKENS,
            page_tokens=PAGE_TOKENS,
            taps=frozenset(f"hidden.{layer}" for layer in range(config.num_hidden_layers + 1)),
            vocabulary=vocabulary,
            row_invariant=rows is not None,
        )
        self._check()

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        """One pass. The logits are float32 [S, V] in the host's memory, or float64 of a model in float64;
        features likewise.

        Raises CapacityError if the cache is too full, and then nothing has changed.
        """
        offsets = draft.offsets.tolist()
        self._make_room(draft.slots.tolist(), np.diff(draft.offsets).tolist())
        with torch.inference_mode():
            rows = [self._row(draft, row) for row in range(len(draft.slots))]
            calls = [
                self._call(draft, block[0][1], block[-1][2], _spans(rows, block, self._device), taps)
                for block in blocks(offsets, self.rows or offsets[-1])
            ]
        features = {tap: np.concatenate([call.features[tap] for call in calls]) for tap in taps}
        return Scores(np.concatenate([call.logits for call in calls]), features)

    def embedding(self) -> Embedding:
        """The embeddings of the tokens, for trained drafters, which run on the CPU kernels: as bfloat16."""
        weight = self.model.get_input_embeddings().weight.detach()
        halves = weight.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
        return Embedding("BF16", aligned(pack("BF16", halves.view(np.uint8))), *weight.shape)

    def _row(self, draft: Draft, row: int) -> _Row:
        """What a row's nodes may see. Raises ValueError if it does not start where its cache ends."""
        slot, start = int(draft.slots[row]), int(draft.starts[row])
        first, last = int(draft.offsets[row]), int(draft.offsets[row + 1])
        cached = self._cached.setdefault(slot, Cached())
        if cached.length != start:
            raise ValueError(f"slot {slot} starts at {start}, but {cached.length} tokens are cached")
        parents = draft.parents[first:last]
        above = ancestors(np.where(parents < 0, -1, parents - first).tolist())
        before = torch.ones(last - first, start, dtype=torch.bool)
        own = torch.as_tensor(draft.positions[first:last], dtype=torch.int64)
        return _Row(
            cached, first, start, torch.cat((torch.arange(start), own)), torch.cat((before, above), 1)
        )

    def _call(
        self, draft: Draft, first: int, last: int, spans: Sequence[Span], taps: frozenset[str]
    ) -> Scores:
        """Call the model for the nodes [first, last)."""
        inputs = torch.zeros(3, 1, self.rows or last - first, dtype=torch.int64)
        inputs[0, 0, : last - first] = torch.as_tensor(draft.tokens[first:last])
        inputs[1, 0, : last - first] = torch.as_tensor(draft.positions[first:last])
        inputs[2] = 1
        tokens, positions, ones = inputs.to(self._device)
        scored = draft.scored[(draft.scored >= first) & (draft.scored < last)] - first
        wanted = torch.as_tensor(scored, dtype=torch.int64).to(self._device)
        with self._switch.on(Pass(spans, nodewise=self.rows is not None)):
            out = self.model(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=ones,  # rows are told apart by us, not by leaps in the positions
                use_cache=False,
                output_hidden_states=bool(taps),
                return_dict=True,
                **({"logits_to_keep": wanted} if self._keeps_some else {}),
            )
        logits = out.logits[0] if self._keeps_some else out.logits[0, wanted]
        layers = {tap: out.hidden_states[int(tap.removeprefix("hidden."))] for tap in taps}
        features = {tap: _on_host(layer[0, : last - first]) for tap, layer in layers.items()}
        return Scores(_on_host(logits), features)

    def _make_room(self, slots: Sequence[int], sizes: Sequence[int]) -> None:
        lengths = {slot: cached.length for slot, cached in self._cached.items()}
        for slot, size in zip(slots, sizes, strict=True):
            lengths[slot] = lengths.get(slot, 0) + size
        held = sum(-(-length // PAGE_TOKENS) * PAGE_TOKENS for length in lengths.values())
        if held > self.info.cache_tokens:
            raise CapacityError(f"{held} tokens do not fit in the cache of {self.info.cache_tokens}")

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        """Keep what the verdict keeps; other nodes' cache entries are overwritten by the next pass."""
        offsets = draft.offsets.tolist()
        with torch.inference_mode():
            for row, slot in enumerate(draft.slots.tolist()):
                first, root = offsets[row], draft.roots[row]
                known = (root if root >= 0 else offsets[row + 1] - 1) - first + 1
                self._cached[slot].keep(known, [node - first for node in verdict.paths[row]])

    def release(self, slots: Sequence[int]) -> None:
        """Forget these sequences and free their memory."""
        for slot in slots:
            self._cached.pop(slot, None)

    def read_cache(self, slot: int, layer: int) -> tuple[Tensor, Tensor]:
        """Committed keys and values of one layer, [heads, length, width] each. For tests."""
        return self._cached[slot].read(layer)

    def _check(self) -> None:
        """Hold a text, read in parts and through a tree, against the model's own pass over all of it."""
        text = [(7919 * place + 11) % self.info.vocab_size for place in range(PROBED)]
        with torch.inference_mode():
            whole = torch.tensor([text], device=self._device)
            own = _on_host(self.model(input_ids=whole, use_cache=False).logits[0])
        tree = Tree([text[0], text[4], text[1], text[5]], [-1, -1, 1, 1])
        self._read(text[:3], 0, 3, Tree((), ()))
        within = self._read(text[:4], 3, 4, tree, [2, 4])
        behind = self._read(text, 6, 8, Tree((), ()))
        self.release([0])
        gaps = np.stack([*within[[0, 2, 4]], behind[0]]) - own[[3, 4, 5, 7]]
        sizes = np.sqrt(np.mean(gaps**2, 1)) / np.std(own)
        # In few bits a router may choose other experts for a token where two are all but tied.
        allowed = TOLERANCE.get(self.model.dtype)
        fits = np.median(sizes) <= COARSE_TOLERANCE if allowed is None else sizes.max() <= allowed
        if not fits:
            raise ConfigError(
                f"{type(self.model).__name__} gives other logits with our attention and cache than with its "
                "own, and cannot be served"
            )
        if self.rows is not None:
            self._check_rows(self.rows)

    def _check_rows(self, rows: int) -> None:
        """Whether a row's bits depend on its place in a call, or on its neighbours."""
        first, token = 11 % self.info.vocab_size, 12 % self.info.vocab_size
        self._read([first], 0, 1, Tree((), ()))
        alone = self._read([first, token], 1, 2, Tree((), ()))[0]
        self.release([0])
        others = [(7919 * place) % self.info.vocab_size for place in range(1, rows)]
        others[rows // 2 : rows // 2 + 1] = [token]
        for tokens in ([token] * (rows - 1), others):
            logits = self._read([first], 0, 1, Tree(tokens, [-1] * (rows - 1)))[1:]
            self.release([0])
            same = [row for row, other in zip(logits, tokens, strict=True) if other == token]
            if not all((row == alone).all() for row in same):
                raise ConfigError(
                    f"rows={rows}: on this machine a row of {type(self.model).__name__} depends on its place "
                    "in a call, or on its neighbours; try another number, or None"
                )

    def _read(
        self, history: list[int], start: int, end: int, tree: Tree, path: Sequence[int] = ()
    ) -> NDArray[Any]:
        """Score a tree behind known tokens in slot 0, and keep these and the path."""
        draft = Draft.pack(View([0], [history], [start], [end], [], [], [], []), [tree])
        logits: NDArray[Any] = self.forward(draft, frozenset()).logits
        self.commit(draft, Verdict([path], [-1]))
        return logits


class _Row(NamedTuple):
    """A whole row. first: its first node; entry: where that one's keys and values go; positions: of all
    entries; visible: the entries that each node sees."""

    cached: Cached
    first: int
    entry: int
    positions: Tensor
    visible: Tensor


def _spans(rows: Sequence[_Row], block: Sequence[tuple[int, int, int]], device: torch.device) -> list[Span]:
    """The parts of the rows that are in a block of nodes."""
    spans, start = [], block[0][1]
    for row, first, last in block:
        cached, begin, entry, positions, visible = rows[row]
        end = entry + last - begin
        seen = visible[first - begin : last - begin, :end].to(device)
        spans.append(
            Span(cached, first - start, last - start, entry + first - begin, positions[:end].to(device), seen)
        )
    return spans


def refuse(model: Any) -> None:
    """Raises ConfigError for a model that this target can never serve."""
    kind = type(model).__name__
    if not hasattr(model, "_supports_logits_to_keep") or model.get_output_embeddings() is None:
        raise ConfigError(f"{kind} is no causal language model of transformers")
    if model.config.is_encoder_decoder:
        raise ConfigError(f"{kind} has an encoder; only decoders are supported")
    if not model._can_set_attn_implementation():
        raise ConfigError(f"{kind} does not use transformers' attention interface, which our cache needs")
    if model._is_stateful:
        raise ConfigError(f"{kind} keeps a recurrent state, which cannot be rewound when a draft is refused")
    if model.training:
        raise ConfigError(f"{kind} is in training mode; call its eval() first")


def longest(config: Any) -> int:
    """How many tokens a sequence may hold. Rotary frequencies that change with the text's length would make
    a row depend on its neighbours: such models end where they would begin to change."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        raise ConfigError(
            f"{config.model_type} does not say how long its texts may be (max_position_embeddings)"
        )
    found: list[int] = [limit]
    kinds = getattr(config, "rope_parameters", None) or {}
    for parameters in (kinds, *(kind for kind in kinds.values() if isinstance(kind, dict))):
        if parameters.get("rope_type") == "longrope":
            found.append(parameters["original_max_position_embeddings"])
    return min(found)


def _on_host(values: Tensor) -> NDArray[Any]:
    """float64 as it is, everything else as float32, in the host's memory."""
    found: NDArray[Any] = (values if values.dtype is torch.float64 else values.float()).cpu().numpy()
    return found


def _within(name: str, value: int | None, default: int, low: int, high: int) -> int:
    if value is None:
        return default
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}, allowed: {low} to {high}")
    return value
