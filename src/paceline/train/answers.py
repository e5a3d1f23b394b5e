"""Making a data set: the target answers prompts, many at a time, and its hidden states are kept.

What is in a data set depends on its recipe and the target alone, not on how many answers were under way at
once or how often the work was interrupted: each answer has a seed of its own, and shards hold answers in
the order of their requests.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError, TrainingError
from paceline.kernels.packing import dequantise
from paceline.models.bfloat16 import to_bfloat16
from paceline.models.cache import sha256_of
from paceline.models.registry import resolve
from paceline.models.tokenizer import Tokenizer
from paceline.noise import choice_seed
from paceline.sampling import SamplingParams
from paceline.targets.native import NativeTarget
from paceline.targets.weights import PackedWeights, load_weights
from paceline.train.dataset import (
    MANIFEST,
    TARGET,
    Answer,
    Manifest,
    ShardWriter,
    TargetRecord,
    put_tensors,
    size_of,
)
from paceline.train.in_order import Job, in_order
from paceline.train.questions import PROMPTS, Messages, invent, prompt_ids, read_prompts, write_prompts
from paceline.train.recorder import Recorder
from paceline.train.speaker import Speaker

AHEAD = 4
"""Requests under way for each that runs: so many may wait for an older one that takes longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """All that decides what a data set of one target holds, beside its length.

    prompts_sha256     of the file of prompts
    answers            to each prompt
    temperatures       request i, counted over all answers, takes temperatures[i % their number]
    max_tokens         of an answer
    max_prompt_tokens  longer prompts are left out
    shard_tokens       a shard is whole once it has so many tokens
    seed               of the order of the prompts and of all answers
    answered_by        SHA-256 of the draft model that answers; empty: the target
    """

    prompts_sha256: str
    answers: int
    temperatures: tuple[float, ...]
    max_tokens: int
    max_prompt_tokens: int
    shard_tokens: int
    seed: int
    answered_by: str = ""

    def __post_init__(self) -> None:
        for name in ("answers", "max_tokens", "max_prompt_tokens", "shard_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.temperatures:
            raise ConfigError("temperatures must be at least one")
        greedy = self.temperatures.count(0)
        if self.answers > 1 and (greedy > 1 or (greedy and self.answers > len(self.temperatures))):
            raise ConfigError(
                f"with temperature 0 among {len(self.temperatures)}, some of {self.answers} answers to a "
                "prompt would be the same; ask for fewer, or name more temperatures"
            )

    @property
    def record(self) -> dict[str, Any]:
        """As JSON gives it back."""
        return {**asdict(self), "temperatures": list(self.temperatures)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where making a data set ends before the prompts do. tokens, bytes: of all shards; None: nowhere."""

    tokens: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("max_tokens_total", self.tokens), ("disk_limit", self.bytes)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")


class Source:
    """A target to ask, the engine that asks it, and what a data set records of it.

    model: a known name or a GGUF file. taps: features to keep, None: `default_taps`. batch: answers that grow
    at once. longest: tokens that a prompt and its answer may have. Raises ConfigError, ModelFileError.
    """

    def __init__(
        self, model: str, taps: Sequence[str] | None, *, batch: int, longest: int, threads: int | None
    ) -> None:
        if batch < 1:
            raise ConfigError(f"batch must be at least 1, got {batch}")
        path = resolve(model)
        if path.is_dir():
            raise ConfigError(f"{model}: data is made with the native target; give a GGUF file, not a folder")
        self.weights = load_weights(path)
        config = self.weights.config
        if longest > config.context:
            raise ConfigError(
                f"prompts and answers of {longest} tokens together; this model takes {config.context}: "
                "lower --max-tokens or --max-prompt-tokens"
            )
        self.taps = default_taps(config.layers) if taps is None else check_taps(taps, config.layers)
        self.batch = batch
        self.tokenizer = Tokenizer.from_json(self.weights.tokenizer_json)
        self.recorder = Recorder(self.taps)
        cache_tokens = max(config.context, batch * longest)
        target = self.target = NativeTarget(self.weights, threads=threads, cache_tokens=cache_tokens)
        self.engine = Engine(
            target,
            {"record": self.recorder, "none": load("none", target.info)},
            drafter="none",
            tokenizer=self.tokenizer,
            nodes=1,
            chunk_tokens=max(128, 4 * batch),
            max_batch=batch,
        )
        self.record = TargetRecord(model, sha256_of(path), target.info.vocabulary, asdict(config))


def default_taps(layers: int) -> tuple[str, ...]:
    """The features that EAGLE-3 drafters of a target with so many layers read, and the last, whose head gives
    the target's law. Source: the defaults of the speculators library, [2, layers // 2, layers - 3]."""
    if layers < 6:
        raise ConfigError(f"the target has {layers} layers; name the --taps of targets with fewer than 6")
    return tuple(f"hidden.{layer}" for layer in (2, layers // 2, layers - 3, layers))


def check_taps(taps: Sequence[str], layers: int) -> tuple[str, ...]:
    """The taps, with that of the last layer as the last. Raises ConfigError."""
    last = f"hidden.{layers}"
    for tap in taps:
        if not re.fullmatch(r"hidden\.\d+", tap) or int(tap.removeprefix("hidden.")) > layers:
            raise ConfigError(f"there is no tap {tap!r}; this target has hidden.0 to {last}")
    inner = [tap for tap in dict.fromkeys(taps) if tap != last]
    return (*inner, last)


def target_tensors(weights: PackedWeights) -> dict[str, Any]:
    """What a drafter shares with the target: embed_tokens.weight bfloat16 [V, H], without the factor that
    some targets have; norm.weight float32 [H], before the head; lm_head.weight bfloat16 [V, H] where it is
    not the embedding."""
    config, packed = weights.config, weights.tensors
    names = {"embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight"}
    shared = {
        name: to_bfloat16(dequantise(packed[own + ".type"], config.vocab_size, config.hidden, packed[own]))
        for name, own in names.items()
        if own in packed
    }
    shared["norm.weight"] = packed["output_norm.weight"].view(np.float32)
    return shared


def invent_prompts(
    folder: Path, source: Source, count: int, seed: int, advance: Callable[[], object]
) -> Path:
    """The file of prompts that the target invents for a data set, written unless it is there already."""
    path = folder / PROMPTS
    if not path.exists():
        prompts = invent(source.engine, count, seed, AHEAD * source.batch, advance)
        write_prompts(path, list(prompts))
    return path


class Said(NamedTuple):
    """A prompt with its answer, before anything is kept of it. place: of the request; tokens: int32 [L];
    prompt: how many of them are the prompt's; seed: by which the recorder knows it."""

    place: int
    tokens: NDArray[np.int32]
    prompt: int
    seed: int


def make(
    folder: Path,
    source: Source,
    prompts: Path,
    recipe: Recipe,
    *,
    states: bool,
    limits: Limits,
    advance: Callable[[Answer], object],
    speaker: Speaker | None = None,
) -> Manifest:
    """Make a data set, or go on where its last whole shard ended.

    states: whether they are kept. advance: called with each answer. speaker: who answers, and the target only
    reads; None: the target. Returns the manifest at the end. Raises TrainingError if the folder holds a data
    set of another target or recipe, or the disk is full.
    """
    if recipe.answered_by != (speaker.sha256 if speaker else ""):
        raise ValueError("the recipe names another speaker")
    manifest = _begin(folder, source, Manifest(source.record, "", source.taps, states, recipe.record))
    writer = ShardWriter(folder, manifest, recipe.shard_tokens)
    jobs = _jobs(read_prompts(prompts), source.tokenizer, recipe, manifest.requests)
    asked = manifest.requests
    window = AHEAD * source.batch
    if speaker is None:
        answered = _said(source.engine, jobs, window, "record" if states else "none")
    else:
        answered = _said(speaker.engine, jobs, window, "none")
        if states:
            answered = _read(source.engine, answered, window)
    with closing(answered):
        while not _full(writer, limits):
            said = next(answered, None)
            if said is None:
                break
            seen = source.recorder.take(said.seed, len(said.tokens) - 1) if states else None
            answer = Answer(said.tokens, said.prompt, seen)
            if limits.bytes is not None and _bytes(writer) + size_of(answer) > limits.bytes:
                break
            asked = said.place + 1
            writer.add(answer, asked)
            advance(answer)
    writer.flush(asked)
    return writer.manifest


def _said(engine: Engine, jobs: Iterable[Job], window: int, drafter: str) -> Generator[Said, None, None]:
    """What an engine answers."""
    with closing(in_order(engine, jobs, window, drafter)) as completions:
        for job, completion in completions:
            tokens = np.array([*job.prompt, *completion.token_ids], np.int32)
            yield Said(job.place, tokens, len(job.prompt), completion.seed)


def _read(engine: Engine, answered: Generator[Said, None, None], window: int) -> Generator[Said, None, None]:
    """The same answers, once the engine's target has read all of their tokens but the last."""
    waiting: deque[Said] = deque()

    def jobs() -> Iterator[Job]:
        for said in answered:
            waiting.append(said)
            yield Job(said.tokens[:-1].tolist(), SamplingParams(max_tokens=1, seed=said.seed), said.place)

    with closing(answered), closing(in_order(engine, jobs(), window, "record")) as completions:
        for _ in completions:
            yield waiting.popleft()


def _full(writer: ShardWriter, limits: Limits) -> bool:
    tokens = writer.manifest.tokens + writer.waiting_tokens
    return limits.tokens is not None and tokens >= limits.tokens


def _bytes(writer: ShardWriter) -> int:
    return writer.manifest.bytes + writer.waiting_bytes


def _jobs(prompts: Sequence[Messages], tokenizer: Tokenizer, recipe: Recipe, done: int) -> Iterator[Job]:
    """All requests but the first `done`: the prompts in random order, so that a part of them is like the
    whole."""
    order = np.random.default_rng(recipe.seed).permutation(len(prompts)).tolist()
    for index in range(done, len(prompts) * recipe.answers):
        tokens = prompt_ids(prompts[order[index // recipe.answers]], tokenizer)
        if len(tokens) > recipe.max_prompt_tokens:
            continue
        params = SamplingParams(
            temperature=recipe.temperatures[index % len(recipe.temperatures)],
            max_tokens=recipe.max_tokens,
            seed=choice_seed(recipe.seed, index),
        )
        yield Job(tokens, params, index)


def _begin(folder: Path, source: Source, wanted: Manifest) -> Manifest:
    """The manifest of what is in the folder already, or a new one."""
    if not (folder / MANIFEST).exists():
        _, digest = put_tensors(folder / TARGET, target_tensors(source.weights))
        manifest = replace(wanted, target_sha256=digest)
        manifest.write(folder)
        return manifest
    found = Manifest.read(folder)
    if found.target.file_sha256 != wanted.target.file_sha256:
        raise TrainingError(
            f"{folder}: holds answers of another model, {found.target.model}; choose another folder"
        )
    ours = {"taps": wanted.taps, "states": wanted.states, **wanted.recipe}
    theirs = {"taps": found.taps, "states": found.states, "answered_by": "", **found.recipe}
    for name, value in ours.items():
        if theirs.get(name) != value:
            held, asked = ("the target" if said == "" else said for said in (theirs.get(name), value))
            raise TrainingError(
                f"{folder}: was begun with {name} {held}, not {asked}; use that, or choose another folder"
            )
    found.check_files(folder)
    for left_over in folder.glob(".*.partial"):
        left_over.unlink()
    return found
