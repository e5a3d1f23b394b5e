"""Adapters for tasks: what is trained of them, and the way to a folder that the engine drafts with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from paceline.cli.train import command
from paceline.drafters import load as load_drafter
from paceline.engine import Engine
from paceline.errors import ConfigError, TrainingError
from paceline.models.bfloat16 import to_float32
from paceline.models.eagle3_folder import read_eagle3
from paceline.models.tasks_folder import merged, read_adapters, read_tasks
from paceline.pretrained import load_model, offers
from paceline.sampling import SamplingParams
from paceline.train.batches import collate
from paceline.train.loop import Run
from paceline.train.settings import Settings
from paceline.train.tasks import Task, assemble
from paceline.trained.eagle3_reference import follow, fuse
from tests.train.conftest import WORDS, Make, answers_of
from tests.train.test_loop import SMALL, accepted

SIZES = "depths=3,draft_vocab=265"
LEARN: dict[str, Any] = {
    "epochs": 100,
    "batch_tokens": 1000,
    "learning_rate": 2e-2,
    "ema": 0.9,
    "measure_every": 1000,
    "checkpoint_every": 1000,
}


def train(data: Path, out: Path, arch: str, **settings: Any) -> Run:
    run = Run(data, out, Settings(**(SMALL | {"arch": arch} | settings)), threads=1)
    run.train(lambda step, log: None)
    return run


def test_adapters_overfit_a_task_and_leave_the_drafter_as_it_is(
    make: Make, tmp_path: Path, walking: Path
) -> None:
    manifest = make(tmp_path / "data", file=walking, tokens=150, max_tokens=16)
    data, base, out = tmp_path / "data", tmp_path / "base", tmp_path / "adapters"
    train(data, base, f"eagle3:{SIZES}", learning_rate=1e-4)
    run = train(data, out, f"lora:{SIZES},rank=16", start_from=str(base), **LEARN)
    drafter = read_eagle3(base)
    for name, weight in run.drafter.start.items():
        np.testing.assert_array_equal(weight.numpy(), drafter.tensors[name])
    card = json.loads((out / "card.json").read_text())
    assert card["curve"][-1]["tau_greedy"] > 3.6, "of 4 at most"
    assert card["parameters"] == sum(part.size for part in read_adapters(out, drafter).values())

    # The folder says what training computed, and the engine drafts with it.
    one = merged(drafter, read_adapters(out, drafter))
    with torch.no_grad():
        for name, weight in run.drafter.named_parameters():
            weight.copy_(run._best[name].bfloat16())
        batch = collate(run.corpus, [0], torch.device("cpu"))
        trained = [logits.numpy() for logits in run.drafter.logits(batch)]
    tokens, table = batch.tokens[0].tolist(), run.teacher.embedding.float().numpy()
    features = fuse(one, [to_float32(run.corpus.states([0])[0][:, 0])])
    first = int(run.corpus.prompts[0]) - 1
    for depth, logits in enumerate(trained):
        for at in range(0, len(logits), 4):
            base_at = first + at
            path = tokens[base_at + 2 : base_at + 2 + depth]
            wanted = follow(one, table, tokens[: base_at + 2], features[: base_at + 1], path)
            np.testing.assert_allclose(logits[at], wanted, rtol=1e-3, atol=1e-3)

    # So does `paceline train eval`, with the drafter that they were trained from and no other.
    found, prompts = {}, tmp_path / "turns.jsonl"
    rows = [{"category": "words", "turns": [word]} for word in WORDS]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for folder in (base, out):
        asked = [str(folder), "--options", "widths=1x1x1,min_probability=0", "--temperature", "0", "--json"]
        asked += ["--prompts", str(prompts), "--max-tokens", "16", "--threads", "1"]
        outcome = CliRunner().invoke(command, ["eval", *asked], catch_exceptions=False)
        (report,) = json.loads(outcome.stdout.splitlines()[-1])
        (found[folder],) = report["drafters"].values()
        (measured,) = json.loads((folder / "card.json").read_text())["measured"]
        assert measured["tau"] == found[folder]["tau"]
    assert measured["drafter"].startswith("lora:widths")
    assert found[out]["tau"] > 2 > found[base]["tau"]
    held = (base / "model.safetensors").read_bytes()
    for change in (lambda path: path.write_bytes(held + b" "), Path.unlink):
        change(base / "model.safetensors")
        with pytest.raises(
            TrainingError, match=r"adapts the drafter in .*base, which has changed or is gone"
        ):
            CliRunner().invoke(command, ["eval", *asked], catch_exceptions=False)
    (base / "model.safetensors").write_bytes(held)
    begun = (out / "run.json").read_text()
    for damaged in ("{}", '{"settings": 3}', '{"settings": {}}'):
        (out / "run.json").write_text(damaged)
        with pytest.raises(TrainingError, match=r"run\.json: is damaged"):
            CliRunner().invoke(command, ["eval", *asked], catch_exceptions=False)
    (out / "run.json").write_text(begun)

    tasks = [Task("a", out, data), Task("b", out, data)]
    assemble(tmp_path / "tasks", base, tasks, 0.4)
    spec = f"tasks:model={tmp_path / 'tasks'},widths=1x1x1,min_probability=0"
    assert accepted(walking, answers_of(data, manifest), spec) > 0.9


def test_two_tasks_are_told_apart_and_answers_stay_what_they_are(
    make: Make, tmp_path: Path, walking: Path, prompts: Path
) -> None:
    for name, words in (("digits", "012345"), ("letters", "abcdef")):
        prompts.write_text(
            "".join(json.dumps({"prompt": word * 8 + other}) + "\n" for word in words for other in words)
        )
        make(tmp_path / name, file=walking, answers=1, max_tokens=8)
    train(tmp_path / "digits", tmp_path / "base", f"eagle3:{SIZES}", **(LEARN | {"epochs": 20}))
    for name in ("digits", "letters"):
        train(
            tmp_path / name,
            tmp_path / f"{name}-adapters",
            f"lora:{SIZES},rank=2",
            start_from=str(tmp_path / "base"),
        )
    named = [f"--task={name}={tmp_path / name}-adapters,{tmp_path / name}" for name in ("digits", "letters")]
    arguments = ["tasks", str(tmp_path / "tasks"), "--base", str(tmp_path / "base"), *named, "--json"]
    outcome = CliRunner().invoke(command, arguments, catch_exceptions=False)
    summary = json.loads(outcome.output)
    assert summary["prompts"] == 8
    assert summary["right"] > 0.9
    assert summary["wrong"] < 0.05
    assert read_tasks(tmp_path / "tasks").tasks == ("digits", "letters")

    target, tokenizer = load_model(walking, threads=1)
    spec = f"tasks:model={tmp_path / 'tasks'},min_probability=0"
    drafter = load_drafter(spec, target.info, **offers(target, tokenizer))
    engine = Engine(
        target,
        {"d": drafter, "none": load_drafter("none", target.info)},
        drafter="d",
        tokenizer=tokenizer,
    )
    texts = ["3333333", "bbbbbbb", "1212121", "cacacac", "?! ?! ?!"]
    chosen = [drafter._choose(tokenizer.encode(text)) for text in texts]  # type: ignore[attr-defined]
    assert chosen[:4] == [1, 2, 1, 2]
    for temperature in (0.0, 1.0):
        params = [SamplingParams(temperature=temperature, max_tokens=24, seed=seed) for seed in range(5)]
        drafted, plain = (engine.generate(texts, params, name) for name in ("d", "none"))
        assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
        assert sum(one.stats.drafted for one in drafted) > sum(one.stats.accepted for one in drafted) > 0


def test_what_does_not_fit_together_is_refused(make: Make, tmp_path: Path, sharp: Path) -> None:
    data, base = tmp_path / "data", tmp_path / "base"
    make(data, file=sharp, tokens=150)
    with pytest.raises(ConfigError, match="rank is 0, allowed: 1 to 256"):
        train(data, tmp_path / "a", f"lora:{SIZES},rank=0")
    with pytest.raises(ConfigError, match="adapts a drafter: name it with --start-from"):
        train(data, tmp_path / "a", f"lora:{SIZES}")
    train(data, base, f"eagle3:{SIZES}")
    train(data, tmp_path / "other", f"eagle3:{SIZES}", seed=1)
    with pytest.raises(TrainingError, match=r"lm_head.weight is \[265, 64\], expected \[100, 64\]"):
        train(data, tmp_path / "a", "lora:depths=3,draft_vocab=100", start_from=str(base))
    ranks = {rank: tmp_path / f"rank-{rank}" for rank in (2, 3)}
    for rank, folder in ranks.items():
        train(data, folder, f"lora:{SIZES},rank={rank}", start_from=str(base))
    own = Task("a", ranks[2], data)
    for tasks, start, error, message in (
        ([own], base, ConfigError, "a router is for 2 to 64 different tasks, got a"),
        ([own, own], base, ConfigError, "a router is for 2 to 64 different tasks, got a, a"),
        ([own, Task("b", ranks[3], data)], base, TrainingError, "have different ranks: 2, 3"),
        ([own, own._replace(name="b")], tmp_path / "other", TrainingError, "was not trained from"),
    ):
        with pytest.raises(error, match=message):
            assemble(tmp_path / "out", start, tasks, 0.6)
    with pytest.raises(ConfigError, match="least_probability must be above 0, at most 1; got 0"):
        assemble(tmp_path / "out", base, [own, own._replace(name="b")], 0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["maths", "maths=a", "=a,b", "maths=a,"])
def test_a_task_that_is_not_whole_is_refused(text: str, tmp_path: Path) -> None:
    arguments = ["tasks", str(tmp_path), "--base", str(tmp_path), "--task", text]
    with pytest.raises(ConfigError, match=f"--task: found '{text}', expected NAME=ADAPTERS,DATA"):
        CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
