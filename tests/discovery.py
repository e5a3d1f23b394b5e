"""The rules and drafters, found by listing their folders."""

from __future__ import annotations

import atexit
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from paceline.core import Drafter, Rule, Target, TargetInfo
from paceline.drafters import load as load_drafter
from paceline.models.dflash_folder import DFlashConfig
from paceline.rules import load, names
from paceline.stores.datastore import KIND, Datastore
from paceline.stores.token_file import TokenFile
from paceline.targets.native import NativeTarget
from paceline.targets.weights import PackedWeights, aligned
from paceline.trained.dflash import NativeDFlash
from paceline.trained.dflash2 import NativeDFlash2
from paceline.trained.dspark import NativeDSpark
from paceline.trained.eagle3 import NativeEagle3
from paceline.trained.exits import NativeExits
from paceline.trained.heads import NativeHeads
from paceline.trained.mtp import NativeMtp
from paceline.trained.peagle import NativePEagle
from paceline.trained.redrafter import NativeRedrafter
from tests.dflash import CONFIG as DFLASH
from tests.dflash import random_drafter as random_dflash
from tests.dflash import random_for
from tests.dflash import run as run_dflash
from tests.dflash2 import of as dflash2_of
from tests.dflash2 import random_drafter as random_dflash2
from tests.dflash2 import random_for as random_dflash2_for
from tests.dflash2 import run as run_dflash2
from tests.dspark import of
from tests.dspark import random_drafter as random_dspark
from tests.dspark import random_for as random_dspark_for
from tests.dspark import run as run_dspark
from tests.eagle3 import CONFIG, additive_drafter, random_drafter, run
from tests.exits import random_exits, table_exits
from tests.exits import run as run_exits
from tests.heads import CONFIG as HEADS
from tests.heads import chain_heads, random_heads, reading_heads
from tests.heads import run as run_heads
from tests.mtp import CONFIG as MTP
from tests.mtp import random_drafter as random_mtp
from tests.mtp import run as run_mtp
from tests.native.models import random_weights
from tests.pads import pads_for
from tests.peagle import CONFIG as PEAGLE
from tests.peagle import random_drafter as random_peagle
from tests.peagle import run as run_peagle
from tests.redrafter import CONFIG as REDRAFTER
from tests.redrafter import chain_drafter
from tests.redrafter import random_drafter as random_redrafter
from tests.redrafter import run as run_redrafter
from tests.tasks import models_for
from tests.toys import Signs, SketchingTable, state_width
from tests.trained import embedding_of

Record = Callable[[str, object], None]
"""pytest's `record_property`: what `make prove` adds up and prints."""

RULES: dict[str, Rule] = {name: load(name, allow_lossy=True) for name in names()}
"""{name: rule}, with its own settings."""

EAGER = {
    "datastore": "datastore:min_probability=1e-6,max_nodes=2",
    "dflash": "dflash:model=near,min_probability=0",
    "dflash2": "dflash2:model=near,min_probability=0",
    "dspark": "dspark:model=near,min_probability=0,min_confidence=0",
    "draft": "draft:model=near,min_probability=0",
    "eagle3": "eagle3:model=near,min_probability=0",
    "exit": "exit:min_probability=0",
    "hydra": "hydra:model=near,min_probability=0",
    "medusa": "medusa:model=near,widths=3x2x1,min_probability=0",
    "mtp": "mtp:model=near,min_probability=0",
    "ngram": "ngram:shortest=1",
    "pads": "pads:model=near,widths=3x2x1,min_probability=0",
    "peagle": "peagle:model=near,min_probability=0",
    "prediction": "prediction:min_probability=1e-6",
    "recycling": "recycling:min_probability=1e-6",
    "redrafter": "redrafter:model=near,min_probability=0",
    "skip": "skip:min_probability=0",
    "slem": "slem:model=near,min_probability=0",
    "sparse": "sparse:min_probability=0,sinks=2,recent=16",
    "suffix": "suffix:min_probability=1e-6",
    "tasks": "tasks:model=near,min_probability=0",
}
"""Options with which a drafter drafts much even in a large batch of short texts, and those it cannot do
without: "near" is a model like the target."""

RUN_MODELS = {
    "dflash",
    "dflash2",
    "draft",
    "dspark",
    "eagle3",
    "exit",
    "hydra",
    "medusa",
    "mtp",
    "pads",
    "peagle",
    "redrafter",
    "skip",
    "slem",
    "sparse",
    "tasks",
}
"""Drafters whose drafts take time: the long suites leave most of their work to `make prove`."""


def drafter(spec: str, target: Target, text: Sequence[int] = ()) -> Drafter:
    """The drafter that `spec` describes, with what EAGER sets where it is a mere name, with all that a target
    can offer, and with the file that it cannot do without: a datastore of this text, or of random tokens."""
    spec = EAGER.get(spec, spec)
    if spec.partition(":")[0] == "datastore":
        separator = "," if ":" in spec else ":"
        spec = f"{spec}{separator}path={_datastore(target.info, tuple(text))}"
    return load_drafter(spec, target.info, **offered(target))


@cache
def _datastore(info: TargetInfo, text: tuple[int, ...]) -> Path:
    rng = random.Random(1)
    tokens = text or [rng.randrange(info.vocab_size) for _ in range(3000)]
    path = _folder() / f"{len(list(_folder().iterdir()))}.pls"
    arrays = Datastore.index(np.array(tokens, np.int32), info.vocab_size).arrays
    TokenFile(KIND, info.vocabulary, info.name, {"files": 1}, arrays).write(path)
    return path


@cache
def _folder() -> Path:
    folder = TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


def offered(target: Target) -> dict[str, Any]:
    """As `paceline.pretrained.offers`, with tiny models."""
    signs = Signs(target.info.vocab_size)
    return {
        "sketch": getattr(target, "sketch", None),
        "tokenizer": signs,
        "load_model": lambda name, **where: (near(target), signs),
        "load_trained": lambda drafter, folder: trained(drafter, target),
    }


def trained(drafter: str, target: Target) -> Any:
    """A trained drafter for this target."""
    known = {
        "dflash": blocks,
        "dflash2": convolved_blocks,
        "dspark": markov_blocks,
        "eagle3": features,
        "exit": exits,
        "mtp": module,
        "pads": pads_for,
        "peagle": parallel,
        "redrafter": recurrent,
        "tasks": for_tasks,
    }
    return known.get(drafter, partial(trained_heads, drafter))(target)


def features(target: Target) -> NativeEagle3:
    """A drafter for this target: of a table it knows how the last two tokens bend the law, each on its own;
    of another target nothing."""
    info = target.info
    if isinstance(target, NativeTarget):
        hidden, layers = target.config.hidden, target.config.layers
        config = replace(
            CONFIG, vocab_size=info.vocab_size, target_hidden=hidden, layer_ids=(0, layers // 2, layers)
        )
        return run(random_drafter(config, embeddings=True), target.embedding(), layers)
    table = target.table  # type: ignore[attr-defined]
    weights = additive_drafter(table.mean(1), table.mean(0) - table.mean((0, 1)))
    return run(
        weights,
        embedding_of(np.zeros((info.vocab_size, state_width(info.vocab_size)), np.float32)),
        info.layers,
    )


def parallel(target: Target) -> NativePEagle:
    """A P-EAGLE drafter for this target, which knows nothing of it."""
    info = target.info
    native = isinstance(target, NativeTarget)
    hidden = target.config.hidden if native else state_width(info.vocab_size)
    layers = target.config.layers if native else info.layers
    config = replace(
        PEAGLE,
        vocab_size=info.vocab_size,
        draft_vocab_size=min(PEAGLE.draft_vocab_size, info.vocab_size),
        target_hidden=hidden,
        layer_ids=(0, layers // 2, layers),
        mask_token=0,
    )
    nothing = embedding_of(np.zeros((info.vocab_size, hidden), np.float32))
    return run_peagle(random_peagle(config, embeddings=True), nothing, layers)


def module(target: Target) -> NativeMtp:
    """An MTP module for this target, which knows nothing of it."""
    info = target.info
    native = isinstance(target, NativeTarget)
    hidden = target.config.hidden if native else state_width(info.vocab_size)
    reduced = min(MTP.draft_vocab_size, info.vocab_size)
    config = replace(MTP, hidden=hidden, vocab_size=info.vocab_size, draft_vocab_size=reduced)
    table = np.random.default_rng(0).standard_normal((info.vocab_size, hidden), np.float32)
    return run_mtp(random_mtp(config), embedding_of(table))


def for_tasks(target: Target) -> Any:
    """Two such drafters, and which prompts go to which."""
    return models_for(features(target), features(target))


def blocks(target: Target) -> NativeDFlash:
    """A DFlash drafter for this target, which knows nothing of it."""
    info = target.info
    if not isinstance(target, NativeTarget):
        return run_dflash(*random_for(info.vocab_size), layers=info.layers)
    config = block_config(target)
    return run_dflash(random_dflash(config), target.embedding(), target.head(), target.config.layers)


def markov_blocks(target: Target) -> NativeDSpark:
    """A DSpark drafter for this target, which knows nothing of it."""
    info = target.info
    if not isinstance(target, NativeTarget):
        return run_dspark(*random_dspark_for(info.vocab_size), layers=info.layers)
    config = of(block_config(target), block=4)
    return run_dspark(random_dspark(config), target.embedding(), target.head(), target.config.layers)


def block_config(target: NativeTarget) -> DFlashConfig:
    """Of a drafter of blocks for this target."""
    layers = target.config.layers
    return replace(
        DFLASH,
        hidden=target.config.hidden,
        vocab_size=target.info.vocab_size,
        layer_ids=(0, layers // 2, layers),
        mask_token=0,
    )


def convolved_blocks(target: Target) -> NativeDFlash2:
    """A DFlash 2 drafter for this target, which knows nothing of it."""
    info = target.info
    if not isinstance(target, NativeTarget):
        return run_dflash2(*random_dflash2_for(info.vocab_size), layers=info.layers)
    config = dflash2_of(block_config(target))
    return run_dflash2(random_dflash2(config), target.embedding(), target.head(), target.config.layers)


def exits(target: Target) -> NativeExits:
    """Exits for this target: of a table they know what a token says of the next one; of another target
    nothing."""
    if isinstance(target, NativeTarget):
        return run_exits(random_exits(), target.head())
    return table_exits(target.table)  # type: ignore[attr-defined]


def trained_heads(kind: str, target: Target) -> NativeHeads:
    """Heads for this target: of a table they know how a token bends the laws behind it; of another target
    nothing."""
    if isinstance(target, NativeTarget):
        config = replace(HEADS, kind=kind, vocab_size=target.info.vocab_size, hidden=target.config.hidden)
        return run_heads(random_heads(config))
    weights = np.exp(target.table.mean(0))  # type: ignore[attr-defined]
    law = weights / weights.sum(1, keepdims=True)
    return run_heads(chain_heads(law) if kind == "medusa" else reading_heads(law))


def recurrent(target: Target) -> NativeRedrafter:
    """A recurrent drafter for this target: of a table it knows how a token bends the laws behind it; of
    another target nothing."""
    if isinstance(target, NativeTarget):
        config = replace(REDRAFTER, vocab_size=target.info.vocab_size, hidden=target.config.hidden)
        return run_redrafter(random_redrafter(config))
    weights = np.exp(target.table.mean(0))  # type: ignore[attr-defined]
    return run_redrafter(chain_drafter(weights / weights.sum(1, keepdims=True)))


def near(target: Target) -> Target:
    """Another model, which often says what this one says."""
    if isinstance(target, NativeTarget):
        weights, name = random_weights(), "blk.1.ffn_norm.weight"
        other = np.array(weights.tensors[name].view(np.float32) * 0.7).view(np.uint8)
        return NativeTarget(
            PackedWeights(weights.config, "{}", {**weights.tensors, name: aligned(other)}), threads=1
        )
    model = SketchingTable(target.info.vocab_size)
    model.table = target.table + np.random.default_rng(1).normal(0, 0.7, model.table.shape)  # type: ignore[attr-defined]
    return model
