"""Folders of adapters, and of a drafter with adapters for several tasks; both are forms of our own.

Adapters of one task: config.json and model.safetensors, where `{layer}.lora_A.weight` [rank, columns] and
`{layer}.lora_B.weight` [rows, rank] stand for a matrix `{layer}.weight` of an EAGLE-3 drafter, to which B A
is added.

A drafter for tasks: the drafter in `base/`, in a form of its own; config.json with the tasks;
model.safetensors with the tensors of task k under `{k}.`, and `router.weight` [tasks, hidden] and
`router.bias` [tasks], which make of the mean of a prompt's embeddings how likely it is of each task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.errors import ModelFileError
from paceline.models.drafter_folder import CONFIG, TENSORS, Floats, Settings, read_json, taken
from paceline.models.eagle3_folder import Eagle3Weights, read_eagle3
from paceline.models.safetensors_file import read_safetensors

BASE = "base"
MOST = 64
"""Tasks at most."""

Adapters = Mapping[str, Floats]
"""The tensors of one task, by their names."""


@dataclass(frozen=True, slots=True)
class TasksWeights:
    """A drafter for tasks.

    base               for prompts of no task
    tasks              their names; adapters: of each
    weight, bias       float32 [tasks, hidden], [tasks]: the router's
    least_probability  of a task, for its adapters to be used
    """

    base: Eagle3Weights
    tasks: tuple[str, ...]
    adapters: tuple[Adapters, ...]
    weight: Floats
    bias: Floats
    least_probability: float

    def merged(self, task: int) -> Eagle3Weights:
        """The drafter with the adapters of a task added to its matrices."""
        return merged(self.base, self.adapters[task])


def merged(base: Eagle3Weights, adapters: Adapters) -> Eagle3Weights:
    """The drafter with adapters added to its matrices."""
    tensors = dict(base.tensors)
    for name, a in adapters.items():
        layer, _, part = name.rpartition(".lora_")
        if part == "A.weight":
            tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"] + adapters[f"{layer}.lora_B.weight"] @ a
    return Eagle3Weights(base.config, tensors, base.token_ids)


def adapter_form(rank: int) -> dict[str, Any]:
    """config.json of the adapters of one task."""
    return {"model_type": "eagle3-lora", "rank": rank}


def tasks_form(tasks: tuple[str, ...], rank: int, least_probability: float) -> dict[str, Any]:
    """config.json of a drafter for tasks."""
    return {
        "model_type": "eagle3-tasks",
        "rank": rank,
        "tasks": list(tasks),
        "least_probability": least_probability,
    }


def read_adapters(folder: Path, base: Eagle3Weights) -> Adapters:
    """The adapters in a folder, for this drafter. Raises ModelFileError."""
    held = _settings(folder, "eagle3-lora")
    path = folder / TENSORS
    return taken(path, _tensors(path), _shapes(base, held.integer("rank")), set())


def read_tasks(folder: Path) -> TasksWeights:
    """The drafter for tasks in a folder. Raises ModelFileError naming what is wrong with it."""
    held = _settings(folder, "eagle3-tasks")
    base, rank, tasks = read_eagle3(folder / BASE), held.integer("rank"), held.get("tasks")
    if (
        not isinstance(tasks, list)
        or not 1 <= len(tasks) <= MOST
        or not all(isinstance(task, str) for task in tasks)
    ):
        raise held.wrong("tasks", f"1 to {MOST} names")
    least = held.number("least_probability")
    if least > 1:
        raise held.wrong("least_probability", "at most 1")
    own = _shapes(base, rank)
    shapes: dict[str, tuple[int, ...]] = {
        f"{task}.{name}": shape for task in range(len(tasks)) for name, shape in own.items()
    }
    hidden = base.config.target_hidden
    shapes |= {"router.weight": (len(tasks), hidden), "router.bias": (len(tasks),)}
    path = folder / TENSORS
    tensors = taken(path, _tensors(path), shapes, set())
    adapters = tuple({name: tensors[f"{task}.{name}"] for name in own} for task in range(len(tasks)))
    return TasksWeights(base, tuple(tasks), adapters, tensors["router.weight"], tensors["router.bias"], least)


def _settings(folder: Path, kind: str) -> Settings:
    held = Settings(folder / CONFIG, read_json(folder / CONFIG))
    if held.get("model_type") != kind:
        raise held.wrong("model_type", f'"{kind}"')
    return held


def _tensors(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelFileError(f"{path.parent}: there is no {path.name}")
    return read_safetensors(path)


def _shapes(base: Eagle3Weights, rank: int) -> dict[str, tuple[int, ...]]:
    """Of the adapters of one task: every matrix of the drafter has them but for its head."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in base.config.shapes.items():
        if len(shape) == 2 and name != "lm_head.weight":
            layer = name.removesuffix(".weight")
            shapes[f"{layer}.lora_A.weight"] = (rank, shape[1])
            shapes[f"{layer}.lora_B.weight"] = (shape[0], rank)
    return shapes
