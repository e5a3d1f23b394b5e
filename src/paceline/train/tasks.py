"""Putting adapters of several tasks together with a drafter, and teaching a router which prompts are whose.

The router is a linear classifier over the mean of the target's embeddings of a prompt's tokens, fitted to the
prompts of the tasks' data sets by multinomial logistic regression; each task counts the same, however many
prompts it has.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.errors import ConfigError, TrainingError
from paceline.models.bfloat16 import narrowed, to_float32
from paceline.models.cache import sha256_of
from paceline.models.drafter_folder import CONFIG, TENSORS, Floats, read_json
from paceline.models.eagle3_folder import read_eagle3
from paceline.models.tasks_folder import BASE, MOST, read_adapters, read_tasks, tasks_form
from paceline.train.dataset import Manifest
from paceline.trained.export import write_folder
from paceline.trained.tasks import READ, probabilities

HELD_OUT = 10
"""Every so many-th prompt is only measured with."""
STEPS, RATE, DECAY = 1000, 1.0, 1e-3
"""Of gradient descent over columns of deviation 1; a step is `RATE` over their number, which never
overshoots."""


class Task(NamedTuple):
    """A task: its name, the folder of its adapters, and the data set that they were trained on."""

    name: str
    adapters: Path
    data: Path


@dataclass(frozen=True, slots=True)
class Routed:
    """What the router does with prompts that it was not fitted to.

    prompts   their number; right, wrong: shares that go to their task, and to another one; the rest goes to
    the
              base drafter
    """

    prompts: int
    right: float
    wrong: float


def assemble(folder: Path, base: Path, tasks: Sequence[Task], least_probability: float) -> Routed:
    """Write the folder of a drafter for tasks. base: the folder that the adapters were trained from.

    Raises ConfigError; ModelFileError and TrainingError naming what does not fit together.
    """
    names = [task.name for task in tasks]
    if not 2 <= len(set(names)) == len(names) <= MOST:
        raise ConfigError(f"a router is for 2 to {MOST} different tasks, got {', '.join(names) or 'none'}")
    if not 0 < least_probability <= 1:
        raise ConfigError(f"least_probability must be above 0, at most 1; got {least_probability}")
    drafter, tensors, ranks = read_eagle3(base), dict[str, Any](), set[int]()
    digest = sha256_of(base / TENSORS)
    for place, task in enumerate(tasks):
        if read_json(task.adapters / "run.json").get("start") != digest:
            raise TrainingError(f"{task.adapters}: was not trained from {base}")
        own = read_adapters(task.adapters, drafter)
        ranks.add(len(own["fc.lora_A.weight"]))
        tensors |= {f"{place}.{name}": narrowed(tensor) for name, tensor in own.items()}
    if len(ranks) > 1:
        raise TrainingError(f"the adapters have different ranks: {', '.join(map(str, sorted(ranks)))}")
    means = _means(tasks)
    fitted = {name: np.delete(rows, np.s_[::HELD_OUT], axis=0) for name, rows in means.items()}
    weight, bias = fit([*fitted.values()])
    (folder / BASE).mkdir(parents=True, exist_ok=True)
    for name in (TENSORS, CONFIG):
        shutil.copyfile(base / name, folder / BASE / name)
    write_folder(
        folder,
        tasks_form(tuple(names), ranks.pop(), least_probability),
        {**tensors, "router.weight": weight, "router.bias": bias},
    )
    written = read_tasks(folder)
    shares = [probabilities(written.weight, written.bias, rows[::HELD_OUT]) for rows in means.values()]
    right = wrong = total = 0
    for place, own_shares in enumerate(shares):
        sure = own_shares.max(-1) >= least_probability
        hit = own_shares.argmax(-1) == place
        right, wrong = right + int((sure & hit).sum()), wrong + int((sure & ~hit).sum())
        total += len(own_shares)
    return Routed(total, right / total, wrong / total)


def _means(tasks: Sequence[Task]) -> dict[str, Floats]:
    """Of each task's prompts the means of their embeddings, float32 [n, hidden]."""
    found: dict[str, Floats] = {}
    targets = set()
    for task in tasks:
        manifest = Manifest.read(task.data)
        manifest.check_files(task.data)
        targets.add(manifest.target.file_sha256)
        table = manifest.read_target(task.data)["embed_tokens.weight"]
        scale = np.float32(manifest.target.shape.embedding_scale)
        rows = [
            to_float32(table[prompt[-READ:]]).mean(0) * scale
            for place in range(len(manifest.shards))
            for prompt in _prompts(manifest.read_shard(task.data, place))
        ]
        if len(rows) < 2:
            raise TrainingError(f"{task.data}: holds too few prompts to tell a task by")
        found[task.name] = np.stack(rows)
    if len(targets) > 1:
        raise TrainingError("the tasks' data sets are of different targets")
    return found


def _prompts(shard: Mapping[str, NDArray[Any]]) -> list[NDArray[np.int32]]:
    ends = np.cumsum(shard["lengths"])
    starts = ends - shard["lengths"]
    return [
        shard["tokens"][start : start + count]
        for start, count in zip(starts.tolist(), shard["prompts"].tolist(), strict=True)
    ]


def fit(classes: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Weights [classes, hidden] and biases [classes] under which softmax(W x + b) says which class a row is
    of. classes: the rows of each, [n, hidden]."""
    rows = np.concatenate(classes)
    middle, spread = rows.mean(0), rows.std(0) + 1e-6
    x = (rows - middle) / spread
    wanted = np.repeat(np.eye(len(classes), dtype=np.float32), [len(own) for own in classes], axis=0)
    counts = wanted.sum(0)
    shares = (wanted / counts).sum(1, keepdims=True) / len(classes)
    weight = np.zeros((len(classes), x.shape[1]), np.float32)
    bias = np.zeros(len(classes), np.float32)
    for _ in range(STEPS):
        slope = (probabilities(weight, bias, x) - wanted) * shares
        weight -= RATE * (slope.T @ x / x.shape[1] + DECAY * weight)
        bias -= RATE * slope.sum(0)
    weight /= spread
    bias -= weight @ middle
    return weight, bias
