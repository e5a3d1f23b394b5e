"""The answers of data sets as training asks for them: any of them, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.errors import TrainingError
from paceline.sampling import SamplingParams
from paceline.train.answers import Source
from paceline.train.dataset import Manifest
from paceline.train.in_order import Job, in_order

LEAST = 2
"""Tokens that an answer must have for a drafter to learn from it: one that it reads, one that it proposes."""


class Corpus:
    """The answers that are long enough, each cut to at most `max_length` tokens with its prompt.

    lengths, prompts   int64 [n]: tokens of each, and of its prompt alone
    manifests          of the data sets; manifest: of the first

    Where the data sets hold no states the target computes them, by the same passes that answer requests:
    `threads` of them. Raises TrainingError for a data set that is damaged, for several that are of different
    targets or hold different states, for such without answers, or if the target is not the one that gave
    them.
    """

    def __init__(self, folders: Sequence[Path], max_length: int, threads: int | None) -> None:
        folder = folders[0]
        self.manifests = [Manifest.read(one) for one in folders]
        self.manifest = self.manifests[0]
        _check_alike(folders, self.manifests)
        self.shared = self.manifest.read_target(folder)
        self._shards: list[dict[str, NDArray[Any]]] = []
        places, lengths, prompts = [], [], []
        for one, manifest in zip(folders, self.manifests, strict=True):
            manifest.check_files(one)
            for number in range(len(manifest.shards)):
                shard = manifest.read_shard(one, number)
                ends = np.cumsum(shard["lengths"], dtype=np.int64)
                places += [(len(self._shards), int(start)) for start in ends - shard["lengths"]]
                lengths.append(shard["lengths"])
                prompts.append(shard["prompts"])
                self._shards.append(shard)
        everything = np.minimum(np.concatenate([*lengths, np.zeros(0, np.int32)]), max_length).astype(
            np.int64
        )
        asked = np.concatenate([*prompts, np.zeros(0, np.int32)]).astype(np.int64)
        usable = np.flatnonzero(everything >= asked + LEAST)
        if not len(usable):
            raise TrainingError(f"{folder}: holds no answer of {LEAST} tokens or more to learn from")
        self._places = [places[place] for place in usable]
        self.lengths, self.prompts = everything[usable], asked[usable]
        self._source: Source | None = None
        if not self.manifest.states:
            self._source = self._target(folder, threads)

    def __len__(self) -> int:
        return len(self._places)

    def tokens(self, place: int) -> NDArray[np.int32]:
        """The tokens of one prompt and its answer, int32 [length]."""
        number, start = self._places[place]
        tokens: NDArray[np.int32] = self._shards[number]["tokens"][start : start + self.lengths[place]]
        return tokens

    def states(self, places: Sequence[int]) -> list[NDArray[np.uint16]]:
        """Of each the states of all tokens but the last, bfloat16 [length - 1, taps, H]."""
        if self._source is not None:
            return self._computed(self._source, places)
        found = []
        for place in places:
            number, start = self._places[place]
            found.append(self._shards[number]["states"][start : start + self.lengths[place] - 1])
        return found

    def counts(self, places: Sequence[int]) -> NDArray[np.int64]:
        """How often each token stands in these answers, int64 [V]."""
        counts = np.zeros(self.manifest.target.shape.vocab_size, np.int64)
        for place in places:
            counts += np.bincount(self.tokens(place)[self.prompts[place] :], minlength=len(counts))
        return counts

    def _target(self, folder: Path, threads: int | None) -> Source:
        record = self.manifest.target
        source = Source(
            record.model, self.manifest.taps, batch=16, longest=int(self.lengths.max()), threads=threads
        )
        if source.record.file_sha256 != record.file_sha256:
            raise TrainingError(
                f"{folder}: {record.model} is another file than the one that gave the answers"
            )
        return source

    def _computed(self, source: Source, places: Sequence[int]) -> list[NDArray[np.uint16]]:
        jobs = [
            Job(self.tokens(place)[:-1].tolist(), SamplingParams(max_tokens=1, seed=place), place)
            for place in places
        ]
        return [
            source.recorder.take(job.place, len(job.prompt))
            for job, _ in in_order(source.engine, jobs, len(jobs), "record")
        ]


def _check_alike(folders: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    """Raises TrainingError naming a data set that does not go with the first."""
    first, seen = manifests[0], {shard.sha256 for shard in manifests[0].shards}
    for folder, other in zip(folders[1:], manifests[1:], strict=True):
        own_shards = {shard.sha256 for shard in other.shards}
        if seen & own_shards:
            raise TrainingError(
                f"{folder}: holds answers that are there already; --epochs says how often each is seen"
            )
        seen |= own_shards
        for what, own, theirs in (
            ("target", first.target.file_sha256, other.target.file_sha256),
            ("taps", ",".join(first.taps), ",".join(other.taps)),
            ("states", first.states, other.states),
        ):
            if own != theirs:
                raise TrainingError(f"{folder}: has {what} {theirs}, {folders[0]} has {own}")
