"""A data set on disk: shards of answers, and the manifest that says what they are.

    manifest.json             what was asked of which target, and the list of whole shards
    target.safetensors        the target's embedding, last norm and head: what a drafter shares with it
    prompts.jsonl             only if the prompts were invented
    shard-00000.safetensors   tokens int32 [T], the answers with their prompts one behind the other;
                              lengths int32 [n] and prompts int32 [n], tokens of each and of its prompt alone;
                              states bfloat16 [T, taps, H], zero for each last token, which no pass has read

The manifest is written last, so what it lists is on disk. All files appear whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.errors import TrainingError
from paceline.models.cache import sha256_of, write_atomically
from paceline.models.config import ModelConfig
from paceline.models.safetensors_file import map_safetensors, write_safetensors

MANIFEST = "manifest.json"
TARGET = "target.safetensors"
FORMAT = "paceline training data"
VERSION = 1


class Answer(NamedTuple):
    """One prompt with its answer.

    tokens  int32 [L]; prompt: how many of them are the prompt's
    states  bfloat16 [L - 1, taps, H], those of all tokens but the last; None in a data set without
    """

    tokens: NDArray[np.int32]
    prompt: int
    states: NDArray[np.uint16] | None


@dataclass(frozen=True, slots=True)
class Shard:
    """What the manifest says of one shard. tokens: prompts and answers; answer_tokens: answers alone."""

    file: str
    answers: int
    tokens: int
    answer_tokens: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """Which model answered.

    model       as the user named it; file_sha256: of its GGUF file
    vocabulary  fingerprint of its tokenizer
    config      its hyper-parameters, the fields of ModelConfig
    """

    model: str
    file_sha256: str
    vocabulary: str
    config: Mapping[str, Any]

    @property
    def shape(self) -> ModelConfig:
        """The hyper-parameters."""
        return ModelConfig(**self.config)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a data set is.

    target         which model answered
    target_sha256  of TARGET
    taps           the features in `states`, in this order; the last is the one whose head gives the law
    states         whether the shards hold them
    recipe         all that decides what the answers are
    requests       answers asked for so far, those to prompts that were too long among them
    shards         the whole ones, in order
    """

    target: TargetRecord
    target_sha256: str
    taps: tuple[str, ...]
    states: bool
    recipe: Mapping[str, Any]
    requests: int = 0
    shards: tuple[Shard, ...] = field(default=())

    @property
    def tokens(self) -> int:
        """Tokens in all shards."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Put it on disk. Raises TrainingError."""
        text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"
        try:
            with write_atomically(folder / MANIFEST) as file:
                file.write(text.encode())
        except OSError as error:
            raise TrainingError(f"{folder / MANIFEST}: {error.strerror or error}") from None

    @staticmethod
    def read(folder: Path) -> Manifest:
        """The manifest of a folder. Raises TrainingError if there is none, or it is none of ours."""
        path = folder / MANIFEST
        try:
            record = json.loads(path.read_bytes())
            if record.pop("format") != FORMAT:
                raise ValueError
            version = record.pop("version")
        except OSError as error:
            raise TrainingError(f"{path}: {error.strerror}; `paceline train data` makes data sets") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise TrainingError(f"{path}: is no manifest of a data set") from None
        if version != VERSION:
            raise TrainingError(f"{path}: has version {version}, this Paceline reads {VERSION}")
        try:
            shards = tuple(Shard(**shard) for shard in record.pop("shards"))
            target, taps = TargetRecord(**record.pop("target")), tuple(record.pop("taps"))
            return Manifest(target=target, taps=taps, shards=shards, **record)
        except (KeyError, TypeError):
            raise TrainingError(f"{path}: is damaged; make the data set anew") from None

    def check_files(self, folder: Path) -> None:
        """Raises TrainingError naming a shard that is missing or has another size."""
        for shard in self.shards:
            path = folder / shard.file
            if not path.is_file():
                raise TrainingError(f"{path}: is missing; make the data set anew")
            if path.stat().st_size != shard.bytes:
                raise TrainingError(
                    f"{path}: has {path.stat().st_size} bytes, expected {shard.bytes}; make the data set anew"
                )

    def read_target(self, folder: Path) -> dict[str, NDArray[Any]]:
        """What the drafter shares with the target, see `target_tensors`. Raises TrainingError."""
        return read_checked(folder / TARGET, self.target_sha256)

    def read_shard(self, folder: Path, place: int) -> dict[str, NDArray[Any]]:
        """The arrays of one shard, after checking all of it. Raises TrainingError."""
        return read_checked(folder / self.shards[place].file, self.shards[place].sha256)

    def read_answers(self, folder: Path, place: int) -> Iterator[NDArray[np.int32]]:
        """The tokens of one shard's answers, without their prompts. Raises TrainingError."""
        shard = self.read_shard(folder, place)
        ends = np.cumsum(shard["lengths"])
        for end, length, prompt in zip(ends, shard["lengths"], shard["prompts"], strict=True):
            yield shard["tokens"][end - length + prompt : end]


def read_checked(path: Path, sha256: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file that must have this SHA-256. Raises TrainingError."""
    try:
        found = sha256_of(path)
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror or error}") from None
    if found != sha256:
        raise TrainingError(f"{path}: is damaged or cut short, its checksum does not match; make it anew")
    return map_safetensors(path)


def put_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> tuple[int, str]:
    """Write tensors; the bytes of the file and its SHA-256. Raises TrainingError."""
    try:
        return write_safetensors(path, tensors)
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror or error}") from None


class ShardWriter:
    """Collects answers and writes a shard where there are enough tokens of them."""

    def __init__(self, folder: Path, manifest: Manifest, shard_tokens: int) -> None:
        self._folder = folder
        self._shard_tokens = shard_tokens
        self._waiting: list[Answer] = []
        self.manifest = manifest
        self.waiting_tokens = self.waiting_bytes = 0

    def add(self, answer: Answer, requests: int) -> None:
        """Take an answer, the last of so many that were asked for. Raises TrainingError."""
        self._waiting.append(answer)
        self.waiting_tokens += len(answer.tokens)
        self.waiting_bytes += size_of(answer)
        if self.waiting_tokens >= self._shard_tokens:
            self.flush(requests)

    def flush(self, requests: int) -> None:
        """Write what has come since the last shard. Raises TrainingError."""
        answers, self._waiting = self._waiting, []
        self.waiting_tokens = self.waiting_bytes = 0
        if not answers:
            return
        tensors: dict[str, NDArray[Any]] = {
            "tokens": np.concatenate([answer.tokens for answer in answers]),
            "lengths": np.array([len(answer.tokens) for answer in answers], np.int32),
            "prompts": np.array([answer.prompt for answer in answers], np.int32),
        }
        states = [part for answer in answers if answer.states is not None for part in _padded(answer.states)]
        if states:
            tensors["states"] = np.concatenate(states)
        name = f"shard-{len(self.manifest.shards):05}.safetensors"
        size, digest = put_tensors(self._folder / name, tensors)
        tokens = len(tensors["tokens"])
        shard = Shard(name, len(answers), tokens, tokens - int(tensors["prompts"].sum()), size, digest)
        self.manifest = replace(self.manifest, requests=requests, shards=(*self.manifest.shards, shard))
        self.manifest.write(self._folder)


def size_of(answer: Answer) -> int:
    """Bytes that an answer takes in a shard, but for the header."""
    states = 0 if answer.states is None else answer.states.nbytes + answer.states[:1].nbytes
    return answer.tokens.nbytes + 8 + states


def _padded(states: NDArray[np.uint16]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    return states, np.zeros((1, *states.shape[1:]), np.uint16)
