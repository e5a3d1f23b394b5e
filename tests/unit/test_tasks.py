"""Drafters with adapters for tasks: their folders, which prompt goes where, and what is wrong with one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.drafters import load
from paceline.drafters.tasks import Tasks
from paceline.engine import Engine
from paceline.errors import ModelFileError
from paceline.models.eagle3_folder import Eagle3Weights
from paceline.models.safetensors_file import write_safetensors
from paceline.models.tasks_folder import merged, read_tasks
from paceline.sampling import SamplingParams
from paceline.train.tasks import fit
from paceline.trained.eagle3_reference import follow, fuse
from paceline.trained.tasks import NativeTasks, probabilities
from tests.eagle3 import random_drafter
from tests.tasks import folder_of, models_for, tasks_of, tensors_of
from tests.trained import embedding_of
from tests.unit.test_eagle3 import additive, on_kernels

WEIGHTS = tasks_of(random_drafter())


def drafter(*models: Any, options: str = "widths=1x1x1x1,min_probability=0") -> Tasks:
    target, _ = additive()
    made = load(f"tasks:model=here,{options}", target.info, load_trained=lambda *_: models_for(*models))
    assert isinstance(made, Tasks)
    return made


def test_each_request_is_drafted_for_by_the_model_of_its_task() -> None:
    """The first knows the target, the second what is nearly never said."""
    target, weights = additive()
    wrong = Eagle3Weights(
        weights.config,
        {**weights.tensors, "lm_head.weight": np.roll(weights.tensors["lm_head.weight"], 1, axis=0)},
        weights.token_ids,
    )
    tasks = drafter(on_kernels(weights), on_kernels(wrong))
    engine = Engine(target, {"d": tasks}, drafter="d", max_batch=4, nodes=16, chunk_tokens=16)
    prompts = [[first, *range(1, 2 + 4 * (first % 3))] for first in range(8)]
    params = [SamplingParams(seed=seed, temperature=0.5, max_tokens=30) for seed in range(8)]
    done = engine.generate(prompts, params)
    plain = Engine(target, {"none": load("none", target.info)}, drafter="none").generate(prompts, params)
    assert [one.token_ids for one in done] == [one.token_ids for one in plain]
    assert engine.load.draft_failures == {}
    passes = [sum(one.stats.passes for one in done[place::2]) for place in range(2)]
    assert passes[1] > 2 * passes[0]
    assert all(one.stats.drafted for one in done)


def test_what_was_written_is_read_and_adapters_are_added(tmp_path: Path) -> None:
    again = read_tasks(folder_of(WEIGHTS, tmp_path / "tasks"))
    assert (again.tasks, again.least_probability) == (WEIGHTS.tasks, 0.6)
    np.testing.assert_array_equal(again.weight, WEIGHTS.weight)
    config, rng = again.base.config, np.random.default_rng(0)
    states = rng.standard_normal((3, 6, 96), np.float32)
    table = rng.standard_normal((config.vocab_size, config.hidden), np.float32)
    said = []
    for task in range(2):
        own = WEIGHTS.adapters[task]
        one = again.merged(task)
        for name, matrix in again.base.tensors.items():
            layer = name.removesuffix(".weight")
            added: Any = 0
            if f"{layer}.lora_A.weight" in own:
                added = own[f"{layer}.lora_B.weight"] @ own[f"{layer}.lora_A.weight"]
            np.testing.assert_allclose(one.tensors[name], matrix + added, atol=1e-6)
        said.append(follow(one, table, [1, 2, 3, 4, 5, 6, 7], fuse(one, [*states]), [3]))
    assert np.abs(said[0] - said[1]).max() > 0.1


def test_prompts_go_where_they_are_likeliest_and_to_the_base_where_nothing_is_sure() -> None:
    table = np.zeros((203, 96), np.float32)
    table[1, 0] = table[2, 1] = 1
    run = NativeTasks(WEIGHTS, embedding_of(table), lambda weights: on_kernels(additive()[1]))
    assert len(run.models) == 3
    assert [run.choose(prompt) for prompt in ([1], [2], [1, 1, 2], [1, 2], [5], [5, 5, 1])] == [
        1, 2, 1, 0, 0, 1,
    ]  # fmt: skip


def test_adapters_of_nothing_change_nothing() -> None:
    base = random_drafter()
    same = merged(base, tasks_of(base, size=0).adapters[0])
    for name, tensor in base.tensors.items():
        np.testing.assert_array_equal(same.tensors[name], tensor)


def test_the_router_learns_to_tell_prompts_apart() -> None:
    rng = np.random.default_rng(0)
    middles = rng.standard_normal((3, 40)) * 0.4
    counts = (300, 40, 90)
    classes = [
        (middle + rng.standard_normal((count, 40))).astype(np.float32)
        for middle, count in zip(middles, counts, strict=True)
    ]
    weight, bias = fit(classes)
    for place, middle in enumerate(middles):
        unseen = (middle + rng.standard_normal((400, 40))).astype(np.float32)
        assert (probabilities(weight, bias, unseen).argmax(-1) == place).mean() > 0.75


def write(folder: Path, changes: dict[str, Any], held: dict[str, Any]) -> Path:
    folder_of(WEIGHTS, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    write_safetensors(folder / "model.safetensors", held)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, r'config.json: model_type is "llama", expected "eagle3-tasks"'),
        ({"tasks": []}, r"tasks is \[\], expected 1 to 64 names"),
        ({"tasks": ["a", 1]}, r'tasks is \["a", 1\], expected 1 to 64 names'),
        ({"tasks": ["a"]}, "a drafter of this kind has no tensor 1."),
        ({"rank": 0}, "rank is 0, expected a whole number above 0"),
        ({"rank": 4}, r"lora_A.weight is float32 \[3, \d+\], expected floats \[4, \d+\]"),
        ({"least_probability": 1.5}, "least_probability is 1.5, expected at most 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_tasks(write(tmp_path / "a", changes, tensors_of(WEIGHTS)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("0.fc.lora_A.weight"), "tensor 0.fc.lora_A.weight is missing"),
        (lambda held: held.pop("router.bias"), "tensor router.bias is missing"),
        (lambda held: held["router.bias"].fill(np.nan), "router.bias holds values that are not finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    held = {name: np.array(tensor) for name, tensor in tensors_of(WEIGHTS).items()}
    change(held)
    with pytest.raises(ModelFileError, match=message):
        read_tasks(write(tmp_path / "a", {}, held))


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config.json cannot be read: No such file"):
        read_tasks(tmp_path / "nowhere")
    folder = folder_of(WEIGHTS, tmp_path / "tasks")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match=r"is damaged: .*the file is cut off"):
        read_tasks(folder)
    path.unlink()
    with pytest.raises(ModelFileError, match=r"there is no model.safetensors"):
        read_tasks(folder)
    (folder / "base" / "config.json").unlink()
    with pytest.raises(ModelFileError, match=r"base/config.json cannot be read"):
        read_tasks(folder)
