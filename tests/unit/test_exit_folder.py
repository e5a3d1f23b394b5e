"""Trained exits: their folders, what runs them, what they draft, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline import kernels
from paceline.core import Shortcut
from paceline.drafters import load
from paceline.errors import ConfigError, IncompatibleDrafter, ModelFileError
from paceline.kernels.packing import Embedding, dequantise
from paceline.models.exit_folder import ExitConfig, ExitWeights, read_exits
from paceline.models.safetensors_file import write_safetensors
from paceline.pretrained import offers
from paceline.rules import load as load_rule
from paceline.targets.native import NativeTarget
from paceline.trained.exits_reference import readout
from tests.discovery import drafter, offered
from tests.exits import CONFIG, folder_of, random_exits, run
from tests.native.models import draft_of, random_weights, read
from tests.native.test_sketch import rows
from tests.toys import SketchingTable
from tests.trained import answers, same, tokens_per_pass

EAGER = "exit:model=near,layers=3,min_probability=0"


def whole(head: Embedding) -> Any:
    return dequantise(head.type, head.vocab_size, head.hidden, head.packed)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    weights = random_exits()
    again = read_exits(folder_of(weights, tmp_path / "exits"))
    assert again.config == weights.config
    for name, tensor in weights.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)


def test_the_kernels_compute_what_the_reference_does() -> None:
    weights, head = random_exits(), NativeTarget(random_weights(), threads=1).head()
    states = 30 * np.random.default_rng(0).standard_normal((7, 96), np.float32)
    found = run(weights, head).readouts
    assert list(found) == [1, 2]
    for exit, logits in found.items():
        wanted = readout(weights, exit, states, whole(head))
        error = np.abs(logits(states) - wanted) / wanted.std()
        assert error.max() < 0.15
        assert error.mean() < 0.015
    other = readout(weights, 1, states, whole(head))
    assert np.abs(found[2](states) - other).max() > other.std()


def test_a_sketch_hands_over_the_states_behind_the_layers_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those that whole passes have there, and the exit is asked for the scored nodes alone."""
    for isa in kernels.available():
        monkeypatch.setenv(kernels.ISA_VARIABLE, isa)
        target = NativeTarget(random_weights(), threads=2)
        draft = draft_of(rows(target))
        wanted = target.forward(draft, frozenset({"hidden.2"})).features["hidden.2"][draft.scored]
        seen = []

        def note(states: Any, seen: list[Any] = seen) -> Any:
            seen.append(states.copy())
            return states[:, :5]

        found = target.sketch(draft, Shortcut(frozenset({2}), readout=note))
        np.testing.assert_array_equal(seen, [wanted])
        np.testing.assert_array_equal(found, wanted[:, :5])


def test_a_sketch_with_an_exit_leaves_the_cache_as_it_was() -> None:
    sketched, untouched = (NativeTarget(random_weights(), threads=1) for _ in range(2))
    text = list(range(40))
    logits = []
    for target in (sketched, untouched):
        read(target, 0, text[:39])
        draft = draft_of(rows(target))
        if target is sketched:
            target.sketch(draft, Shortcut(frozenset({2}), readout=lambda states: states))
        logits.append(target.forward(draft, frozenset()).logits.copy())
    np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("spec", [EAGER, "exit:model=near,min_probability=0"])
def test_an_exit_that_knows_something_is_at_times_right(spec: str, temperature: float) -> None:
    """And answers stay plain decoding's."""
    target = SketchingTable()
    plain = answers(target, None, temperature)
    done = answers(target, drafter(spec, target), temperature)
    assert same(done, plain)
    kept, made = (sum(getattr(one.stats, name) for one in done) for name in ("accepted", "drafted"))
    assert 60 < kept < made - 60
    assert tokens_per_pass(done) > 1.1


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_it_is_accepted_under_rules_that_compare_laws(rule: str) -> None:
    target = SketchingTable()
    done = answers(target, drafter(EAGER, target), 1.0, rule=load_rule(rule))
    assert tokens_per_pass(done) > 1.5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_of_a_model_are_plain_decodings(temperature: float, tmp_path: Path) -> None:
    target = NativeTarget(random_weights(), threads=1)
    folder = folder_of(random_exits(), tmp_path / "exits")
    loaded = load(
        f"exit:model={folder},min_probability=0", target.info, **offers(target, None) | {"tokenizer": 1}
    )
    plain = answers(target, None, temperature, prompts=3, tokens=203)  # type: ignore[arg-type]
    done = answers(target, loaded, temperature, prompts=3, tokens=203)  # type: ignore[arg-type]
    assert same(done, plain)
    assert sum(one.stats.drafted for one in done) > 30


def test_exits_of_another_target_are_refused(tmp_path: Path) -> None:
    target = NativeTarget(random_weights(), threads=1)
    for changes, message in (
        ({"layers": 4}, "trained for a target of 4 layers, this one has 3"),
        ({"vocab_size": 20}, "trained for a target of 20 tokens, this one has 203"),
        ({"hidden": 64}, "trained for a target of 64 wide hidden states, this one has 96"),
    ):
        config = replace(CONFIG, **changes)  # type: ignore[arg-type]
        folder = folder_of(random_exits(config), tmp_path / config.described["model_type"])
        with pytest.raises(IncompatibleDrafter, match=message):
            load(f"exit:model={folder}", target.info, **offers(target, None))


def test_an_exit_that_was_not_trained_is_refused() -> None:
    target = SketchingTable()
    with pytest.raises(ConfigError, match="exit:layers is 2, and near has exits behind 1, 3 layers"):
        load("exit:model=near,layers=2", target.info, **offered(target))


SMALL = ExitConfig(exits=(1, 3), hidden=8, layers=5, vocab_size=20, norm_eps=1e-5)


def small() -> dict[str, Any]:
    """Tensors of exits as SMALL describes them."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SMALL.shapes.items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, r'config.json: model_type is "llama", expected "exit"'),
        ({"exits": []}, r"exits is \[\], expected a list of whole numbers"),
        ({"exits": [3, 1]}, r"exits is \[3, 1\], expected different numbers from 1 to 4, ascending"),
        ({"exits": [1, 5]}, r"exits is \[1, 5\], expected different numbers from 1 to 4, ascending"),
        ({"exits": [0, 3]}, r"exits is \[0, 3\], expected different numbers from 1 to 4, ascending"),
        ({"exits": [1, 2]}, "tensor exits.2.weight is missing"),
        ({"exits": [1]}, "has no tensor exits.3"),
        ({"hidden_size": 9}, r"exits.1.weight is float32 \[8, 8\], expected floats \[9, 9\]"),
        ({"rms_norm_eps": None}, "rms_norm_eps is null, expected a number above 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = folder_of(ExitWeights(SMALL, small()), tmp_path / "a")
    (folder / "config.json").write_text(json.dumps({**SMALL.described, **changes}))
    with pytest.raises(ModelFileError, match=message):
        read_exits(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("exits.3.norm.weight"), "tensor exits.3.norm.weight is missing"),
        (lambda held: held.update(extra=np.ones(3, np.float32)), "has no tensor extra"),
        (
            lambda held: held.update({"exits.1.weight": np.full((8, 8), np.inf, np.float32)}),
            "exits.1.weight holds values that are not finite",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    held = small()
    folder = folder_of(ExitWeights(SMALL, held), tmp_path / "a")
    change(held)
    write_safetensors(folder / "model.safetensors", held)
    with pytest.raises(ModelFileError, match=message):
        read_exits(folder)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"config.json cannot be read: No such file"):
        read_exits(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps(SMALL.described))
    with pytest.raises(ModelFileError, match=r"there is no model.safetensors"):
        read_exits(tmp_path)
    path = folder_of(ExitWeights(SMALL, small()), tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelFileError, match=r"is damaged: .*the file is cut off"):
        read_exits(tmp_path)
