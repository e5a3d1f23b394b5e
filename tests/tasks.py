"""EAGLE-3 drafters with adapters for tasks, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from paceline.models.eagle3_folder import Eagle3Weights
from paceline.models.safetensors_file import write_safetensors
from paceline.models.tasks_folder import BASE, TasksWeights, tasks_form
from paceline.trained.eagle3 import NativeEagle3
from tests.eagle3 import folder_of as eagle3_folder_of

RANK = 3


def tasks_of(base: Eagle3Weights, size: float = 0.1, tasks: int = 2, seed: int = 0) -> TasksWeights:
    """A drafter with random adapters, and a router that tells the first columns of embeddings apart."""
    rng = np.random.default_rng(seed)
    adapters = []
    for _ in range(tasks):
        own: dict[str, Any] = {}
        for name, shape in base.config.shapes.items():
            if len(shape) == 2 and name != "lm_head.weight":
                layer = name.removesuffix(".weight")
                own[f"{layer}.lora_A.weight"] = rng.standard_normal((RANK, shape[1]), np.float32)
                own[f"{layer}.lora_B.weight"] = size * rng.standard_normal((shape[0], RANK), np.float32)
        adapters.append(own)
    weight = 20 * np.eye(tasks, base.config.target_hidden, dtype=np.float32)
    names = tuple(f"task {task}" for task in range(tasks))
    return TasksWeights(base, names, tuple(adapters), weight, np.zeros(tasks, np.float32), 0.6)


def folder_of(weights: TasksWeights, folder: Path) -> Path:
    """The drafter in a folder."""
    folder.mkdir(exist_ok=True)
    eagle3_folder_of(weights.base, folder / BASE)
    (folder / "config.json").write_text(
        json.dumps(tasks_form(weights.tasks, RANK, weights.least_probability))
    )
    write_safetensors(folder / "model.safetensors", tensors_of(weights))
    return folder


def tensors_of(weights: TasksWeights) -> dict[str, Any]:
    """As a folder holds them."""
    named = {
        f"{task}.{name}": tensor for task, own in enumerate(weights.adapters) for name, tensor in own.items()
    }
    return {**named, "router.weight": weights.weight, "router.bias": weights.bias}


def models_for(*models: NativeEagle3) -> Any:
    """Models that prompts go to by their first token."""
    return SimpleNamespace(models=models, choose=lambda prompt: prompt[0] % len(models))
