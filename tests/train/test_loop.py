"""The loop: a tiny drafter learns a tiny target, a killed run goes on bit by bit, misfits are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from paceline.drafters import load as load_drafter
from paceline.engine import Engine
from paceline.errors import ConfigError, TrainingError
from paceline.pretrained import load_model, offers
from paceline.sampling import SamplingParams
from paceline.train.answers import Answer
from paceline.train.batches import collate, epoch, split
from paceline.train.corpus import Corpus
from paceline.train.loop import Run
from paceline.train.losses import compared, divergence
from paceline.train.settings import Settings
from tests.train.conftest import Make, answers_of

SMALL: dict[str, Any] = {
    "arch": "eagle3:depths=2,draft_vocab=200",
    "batch_tokens": 200,
    "held_out": 0.0,
    "ema": 0.5,
    "dtype": "float32",
    "log_every": 2,
    "measure_every": 3,
    "checkpoint_every": 2,
}

CHAIN = {"dflash": "candidates=1", "dflash2": "candidates=1", "dspark": "candidates=1,min_confidence=0"}
"""With which drafters draft a chain where widths do not say so."""
FRESH = {"dspark": 2.1}
"""Tokens per pass of a fresh drafter, if it knows more than nothing: the slot of the known token reads its
embedding, which this target's head makes the next token."""
OPTIONS = {"dflash2": "rank=16", "draft": "layers=1,hidden=64"}
"""Of an architecture, if not draft_vocab=265."""
EPOCHS = {"dflash": 400, "dflash2": 400}
"""That an architecture takes, if not 150."""


@pytest.fixture
def data(make: Make, tmp_path: Path) -> Path:
    make(tmp_path / "data")
    return tmp_path / "data"


def train(data: Path, out: Path, stop_at: int | None = None, **settings: Any) -> dict[str, Any]:
    """The card; with stop_at KeyboardInterrupt after so many steps, as if it were killed there."""

    def advance(step: int, log: dict[str, Any]) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    return Run(data, out, Settings(**(SMALL | settings)), threads=1).train(advance)


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in found]


def accepted(file: Path, answers: list[Answer], drafter: str) -> float:
    """The share of drafted tokens that the engine keeps of greedy answers it was trained on."""
    target, tokenizer = load_model(file, threads=1)
    loaded = load_drafter(drafter, target.info, **offers(target, tokenizer))
    engine = Engine(target, {"d": loaded}, drafter="d", tokenizer=tokenizer, nodes=64)
    texts = {tuple(answer.tokens.tolist()): answer.prompt for answer in answers}
    params = SamplingParams(temperature=0, max_tokens=16)
    found = []
    for text, prompt in texts.items():
        (done,) = engine.generate([list(text[:prompt])], params)
        if (*text[:prompt], *done.token_ids) == text:
            found.append(done.stats)
    assert len(found) > 1
    return sum(one.accepted for one in found) / sum(one.drafted for one in found)


ARCHITECTURES = [
    "dflash",
    "dflash:head=target",
    "dflash2",
    "draft",
    "dspark",
    "dspark:head=target",
    "eagle3",
    "hydra",
    "medusa",
    "mtp",
    "peagle",
    "redrafter",
]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_drafter_overfits_a_tiny_target(make: Make, tmp_path: Path, walking: Path, arch: str) -> None:
    """By its own estimate, and in the engine."""
    manifest = make(tmp_path / "data", file=walking, tokens=150, max_tokens=16)
    arch, _, more = arch.partition(":")
    chosen = f"{arch}:depths=3,{more or OPTIONS.get(arch, 'draft_vocab=265')}"
    fresh = Run(tmp_path / "data", tmp_path / "fresh", Settings(**(SMALL | {"arch": chosen})), threads=1)
    before = fresh.measure(fresh.drafter)
    card = train(
        tmp_path / "data",
        tmp_path / "out",
        arch=chosen,
        epochs=EPOCHS.get(arch, 150),
        batch_tokens=1000,
        learning_rate=2e-2,
        ema=0.9,
        measure_every=1000,
        checkpoint_every=1000,
    )
    estimate = card["estimate"]
    assert before["tau_greedy"] < FRESH.get(arch, 1.5)
    assert estimate["tau_greedy"] > 3.6, "of 4 at most"
    assert estimate["tau_sampled"] > 3.5, "of 4 at most"
    assert min(estimate["agreement"]) > 0.9
    assert card["curve"][-1]["tau_greedy"] == estimate["tau_greedy"]
    spec = f"{arch}:model={tmp_path / 'out'},{CHAIN.get(arch, 'widths=1x1x1')},min_probability=0"
    share = accepted(walking, answers_of(tmp_path / "data", manifest), spec)
    assert share > 0.9


@pytest.mark.parametrize("loss", ["jsd", "tv"])
def test_other_losses_bring_the_laws_together_too(make: Make, tmp_path: Path, loss: str) -> None:
    make(tmp_path / "data", tokens=150)
    settings = {"loss": loss, "epochs": 30, "learning_rate": 5e-3, "measure_every": 1000}
    card = train(tmp_path / "data", tmp_path / loss, checkpoint_every=1000, **settings)
    first, *_, last = [line for line in lines(tmp_path / loss) if "loss" in line]
    assert last["loss"][0] < 0.8 * first["loss"][0]
    assert card["settings"]["loss"] == loss


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_killed_run_goes_on_bit_by_bit(data: Path, tmp_path: Path, accumulate: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(data, whole, epochs=2, accumulate=accumulate)
    for stop_at in (1, 3, 4):
        with pytest.raises(KeyboardInterrupt):
            train(data, cut, stop_at, epochs=2, accumulate=accumulate)
    (cut / "training" / ".state-00000099.safetensors.00.partial").write_bytes(b"killed while it was written")
    train(data, cut, epochs=2, accumulate=accumulate)
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert lines(cut) == lines(whole)
    assert sorted(path.name for path in (cut / "training").iterdir()) == sorted(
        path.name for path in (whole / "training").iterdir()
    )
    state = [next((folder / "training").glob("state-*")).read_bytes() for folder in (whole, cut)]
    assert state[0] == state[1]
    other = tmp_path / "other"
    train(data, other, epochs=2, accumulate=accumulate, seed=1)
    assert (other / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()


def test_training_goes_on_from_a_drafter(data: Path, tmp_path: Path) -> None:
    """With its weights and its tokens, also where other data would choose others."""
    first, other = tmp_path / "first", tmp_path / "other"
    train(data, first, epochs=3)
    ids = torch.arange(30, 230)
    held = load_file(first / "model.safetensors")
    held["d2t"] = ids - torch.arange(200)
    save_file(held, first / "model.safetensors")
    begun = Run(data, tmp_path / "begun", Settings(**(SMALL | {"start_from": str(first)})), threads=1)
    assert begun.drafter.vocabulary.tolist() == ids.tolist()
    for name, weight in begun.drafter.named_parameters():
        assert torch.equal(weight.detach().bfloat16(), held[name])
    card = train(data, other, start_from=str(first), arch="eagle3:depths=3,draft_vocab=200")
    assert card["settings"]["start_from"] == "first"
    (before,) = card["before"]
    assert before["settings"]["epochs"] == 3
    assert f"{before['steps']} steps over" in (other / "card.md").read_text()
    assert torch.equal(load_file(other / "model.safetensors")["d2t"], held["d2t"])
    with pytest.raises(TrainingError, match="token_map"):
        train(data, tmp_path / "a", start_from=str(first), arch="medusa:draft_vocab=200")
    with pytest.raises(TrainingError, match=r"lm_head.weight is \[200, \d+\], expected \[210"):
        train(data, tmp_path / "b", start_from=str(first), arch="eagle3:draft_vocab=210")
    with pytest.raises(TrainingError, match="nowhere"):
        train(data, tmp_path / "c", start_from=str(tmp_path / "nowhere"))
    held["norm.weight"] += 1
    save_file(held, first / "model.safetensors")
    with pytest.raises(TrainingError, match="has changed since"):
        train(data, other, start_from=str(first), arch="eagle3:depths=3,draft_vocab=200")
    (first / "model.safetensors").write_bytes((first / "model.safetensors").read_bytes()[:999])
    with pytest.raises(TrainingError, match="damaged"):
        train(data, tmp_path / "d", start_from=str(first))


def test_training_goes_on_with_fewer_tokens(data: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    train(data, first)
    begun = Run(
        data,
        tmp_path / "begun",
        Settings(**(SMALL | {"start_from": str(first), "arch": "eagle3:depths=3,draft_vocab=60"})),
        threads=1,
    )
    held = load_file(first / "model.safetensors")
    tokens = (held["d2t"] + torch.arange(200)).tolist()
    fewer = begun.drafter.vocabulary.tolist()
    assert len(fewer) == 60
    assert set(fewer) < set(tokens)
    least = min(begun.teacher.counts[fewer])
    assert least >= max(begun.teacher.counts[[token for token in tokens if token not in fewer]])
    for name, weight in begun.drafter.named_parameters():
        wanted = held[name]
        if name == "lm_head.weight":
            wanted = torch.stack([wanted[tokens.index(token)] for token in fewer])
        assert torch.equal(weight.detach().bfloat16(), wanted)


def test_states_that_were_not_kept_are_computed_anew(make: Make, data: Path, tmp_path: Path) -> None:
    make(tmp_path / "bare", states=False)
    train(data, tmp_path / "one")
    train(tmp_path / "bare", tmp_path / "other")
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "other" / "model.safetensors"
    ).read_bytes()


def test_what_is_kept_is_the_best_average(data: Path, tmp_path: Path) -> None:
    card = train(data, tmp_path / "out", epochs=3)
    merits = [line["tau_greedy"] + line["tau_sampled"] for line in card["curve"]]
    best = card["estimate"]
    assert best["tau_greedy"] + best["tau_sampled"] == max(merits)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    state = load_file(next((tmp_path / "out" / "training").glob("state-*")))
    for name in ("fc.weight", "layers.0.mlp.up_proj.weight", "norm.weight"):
        assert torch.equal(tensors[name], state[f"best/{name}"].bfloat16())
        assert not torch.equal(state[f"average/{name}"], state[f"weight/{name}"])
    page = (tmp_path / "out" / "card.md").read_text()
    assert f"| {best['step']} | {best['tau_greedy']} |" in page
    assert "| arch | eagle3:depths=2,draft_vocab=200 |" in page


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_runs_that_do_not_fit_are_refused_by_name(make: Make, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        train(data, out, 3)

    def refused(message: str, **settings: Any) -> None:
        with pytest.raises(TrainingError, match=message):
            train(data, out, **settings)

    refused("begun with learning_rate 0.005, not 0.01", learning_rate=0.01)
    refused("begun with arch eagle3:depths=2,draft_vocab=200, not eagle3", arch="eagle3")
    make(tmp_path / "more", seed=6)
    with pytest.raises(TrainingError, match=r"begun with other data than .*more"):
        train(tmp_path / "more", out)
    state = next((out / "training").glob("state-*"))
    whole = state.read_bytes()
    state.write_bytes(whole[:-1])
    refused("state-00000002.safetensors: is damaged")
    state.unlink()
    refused("state-00000002.safetensors: No such file")
    state.write_bytes(whole)
    record = out / "training" / "checkpoint.json"
    good = record.read_text()
    record.write_text("{")
    refused("checkpoint.json: is damaged")
    record.write_text(good)
    log = (out / "log.jsonl").read_bytes()
    (out / "log.jsonl").write_bytes(b"")
    refused("log.jsonl: is cut short")
    (out / "log.jsonl").write_bytes(log)
    # A checkpoint of a drafter with another vocabulary under the settings of this one.
    settings = json.loads((out / "run.json").read_text())
    settings["settings"]["arch"] = "eagle3:depths=2,draft_vocab=100"
    (out / "run.json").write_text(json.dumps(settings))
    refused(
        "lm_head.weight is .200, 64., expected .100, 64.*of another drafter",
        arch="eagle3:depths=2,draft_vocab=100",
    )
    (out / "run.json").write_text("[]")
    refused("run.json: is damaged")
    shard = data / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    refused("shard-00000.safetensors: is damaged")


def test_a_data_set_of_another_target_is_refused(
    make: Make, tmp_path: Path, write_gguf: Callable[..., Path]
) -> None:
    make(tmp_path / "bare", states=False)
    write_gguf({"llama.context_length": 256})
    with pytest.raises(TrainingError, match="is another file than the one that gave the answers"):
        train(tmp_path / "bare", tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0, allowed: 1 to 1000"),
        ({"dtype": "float16"}, "allowed: bfloat16, float32"),
        ({"loss": "l2"}, "allowed: kl, jsd, tv"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"arch": "eagle4"}, "there is no architecture 'eagle4'; there are dflash, .*eagle3, .*peagle"),
        ({"arch": "eagle3:depth=2"}, "eagle3 has no option 'depth'; it has depths, draft_vocab"),
        ({"arch": "eagle3:depths=0"}, "depths is 0, allowed: 1 to 16"),
        ({"arch": "medusa:layers=17"}, "layers is 17, allowed: 1 to 16"),
        ({"arch": "eagle3:draft_vocab=0"}, "draft_vocab is 0, allowed: 1 to"),
    ],
)
def test_settings_out_of_range_are_refused(
    data: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(data, tmp_path / "out", **settings)


def test_data_without_inner_layers_is_no_use_to_eagle3(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "d", taps=("hidden.1",))
    with pytest.raises(ConfigError, match="hidden states of inner layers"):
        train(tmp_path / "d", tmp_path / "out")
    assert train(tmp_path / "d", tmp_path / "out", arch="medusa")["estimate"]["tau_greedy"] >= 1


def test_devices_that_are_not_there_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device 'no' cannot be used"):
        Run(data, tmp_path / "out", Settings(**SMALL), device="no")


def test_answers_that_are_too_short_are_left_out(make: Make, tmp_path: Path) -> None:
    make(tmp_path / "d", max_tokens=1)
    with pytest.raises(TrainingError, match="no answer of 2 tokens or more"):
        Corpus([tmp_path / "d"], 1024, None)


def test_each_epoch_sees_every_answer_once_in_an_order_of_its_own(data: Path) -> None:
    corpus = Corpus([data], 50, None)
    train, held_out = split(len(corpus), 0.2, 7)
    assert sorted([*train, *held_out]) == list(range(len(corpus)))
    assert len(held_out) == round(0.2 * len(corpus))
    epochs = [epoch(corpus.lengths, train, 120, 7, number) for number in range(2)]
    for batches in epochs:
        assert sorted(place for batch in batches for place in batch) == train.tolist()
        assert all(max(corpus.lengths[batch]) * len(batch) <= 120 for batch in batches)
    assert epochs[0] != epochs[1]
    assert epochs[0] == epoch(corpus.lengths, train, 120, 7, 0)


def test_bases_are_where_drafts_of_answers_begin(data: Path) -> None:
    corpus = Corpus([data], 50, None)
    batch = collate(corpus, [0, 1, 2], torch.device("cpu"))
    for depth in range(3):
        for row, place in enumerate([0, 1, 2]):
            # Token t + 1 is the answer's first; the law for t + 2 + depth comes of the state before it.
            expected = range(corpus.prompts[place] - 1, corpus.lengths[place] - 2 - depth)
            assert np.flatnonzero(batch.bases(depth)[row]).tolist() == list(expected)
    assert batch.shifted(2)[0, :5].tolist() == batch.tokens[0, 2:7].tolist()
    assert batch.shifted(99).shape == batch.tokens.shape
    assert not batch.states[0, corpus.lengths[0] - 1 :].any()
    assert batch.states[0, corpus.lengths[0] - 2].any()


def test_losses_and_estimates_are_what_their_formulas_say() -> None:
    law = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    logits = torch.tensor([[0.25, 0.25, 0.5], [0.1, 0.2, 0.7]]).log()
    torch.testing.assert_close(divergence("kl", logits, law), torch.tensor([2.0, 1.0]).log())
    torch.testing.assert_close(divergence("tv", logits, law), torch.tensor([0.5, 0.0]))
    middle = torch.tensor([0.375, 0.375, 0.25])
    expected = (
        1.0 * (0.5 / middle[0]).log() + 0.5 * (0.25 / middle[0]).log() + 0.5 * (0.5 / middle[2]).log()
    ) / 2
    torch.testing.assert_close(divergence("jsd", logits, law), torch.stack([expected, torch.tensor(0.0)]))
    apart = torch.tensor([[200.0, 0.0, 0.0]]).requires_grad_()
    divergence("jsd", apart, torch.tensor([[0.0, 0.0, 1.0]])).sum().backward()
    assert apart.grad is not None
    assert apart.grad.isfinite().all(), "also where a probability is all but 0"
    vocabulary = torch.tensor([1, 2])
    overlap, agreement, confidence = compared(
        torch.tensor([[0.0, 0.0], [0.0, 3.0]]), law[:, vocabulary], law.argmax(-1), vocabulary
    )
    torch.testing.assert_close(overlap[0], torch.tensor(0.5))
    assert agreement.tolist() == [0, 1]
    torch.testing.assert_close(confidence[1], torch.tensor(3.0).sigmoid())
