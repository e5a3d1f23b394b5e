"""Several data sets are one: the target's answers and a draft model's own, as DistillSpec mixes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from paceline.cli.main import run as paceline
from paceline.errors import TrainingError
from paceline.train.corpus import Corpus
from paceline.train.loop import Run
from paceline.train.settings import Settings
from tests.train.conftest import Make, answers_of
from tests.train.test_loop import SMALL, lines

SETTINGS = SMALL | {"arch": "draft:layers=1,hidden=64,depths=2", "held_out": 0.1}


@pytest.fixture
def sets(make: Make, draft_model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The target's answers, and the draft model's."""
    make(tmp_path / "answers", tokens=300)
    make(tmp_path / "own", tokens=300, draft_model=draft_model)
    return tmp_path / "answers", tmp_path / "own"


def of(data: Path, *also: Path, out: Path, **settings: Any) -> Run:
    return Run(data, out, Settings(**(SETTINGS | settings)), also=also, threads=1)


def test_all_their_answers_are_learnt_from(sets: tuple[Path, Path], make: Make, tmp_path: Path) -> None:
    run = of(*sets, out=tmp_path / "out")
    held = [
        answer.tokens.tolist()
        for folder, manifest in zip(sets, run.corpus.manifests, strict=True)
        for answer in answers_of(folder, manifest)
    ]
    assert [run.corpus.tokens(place).tolist() for place in range(len(run.corpus))] == held
    seen = {place for _, batches in run.plan.steps(0) for batch in batches for place in batch}
    first = len(answers_of(sets[0], run.corpus.manifest))
    assert 0 < sum(place < first for place in seen) < len(seen)
    states = run.corpus.states([0, first])
    for place, answers in ((0, sets[0]), (1, sets[1])):
        (manifest,) = (run.corpus.manifests[place],)
        stored = answers_of(answers, manifest)[0].states
        assert stored is not None
        assert (states[place] == stored).all()
    card = run.train(lambda step, log: None)
    assert card["data"]["answered_by"] == ""
    (own,) = card["data_also"]
    assert own["answered_by"] == run.corpus.manifests[1].recipe["answered_by"] != ""
    page = (tmp_path / "out" / "card.md").read_text()
    assert "answers of the target itself, " in page
    assert f"answers of a draft model, SHA-256 {own['answered_by']}, read by the target, " in page


def test_a_run_over_both_that_was_killed_ends_in_the_same_drafter(
    sets: tuple[Path, Path], tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    of(*sets, out=whole).train(lambda step, log: None)

    def stop(step: int, log: dict[str, Any]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        of(*sets, out=cut).train(stop)
    with pytest.raises(TrainingError, match="begun with other data"):
        of(*sets[::-1], out=cut)
    with pytest.raises(TrainingError, match="begun with other data"):
        of(sets[0], out=cut)
    of(*sets, out=cut).train(lambda step, log: None)
    assert lines(cut) == lines(whole)
    ours, theirs = load_file(cut / "model.safetensors"), load_file(whole / "model.safetensors")
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    of(sets[0], out=tmp_path / "alone").train(lambda step, log: None)
    alone = load_file(tmp_path / "alone" / "model.safetensors")
    assert any((alone[name] != theirs[name]).any() for name in theirs), "the twin: one of them is not both"


def test_sets_that_do_not_go_together_are_refused_by_name(
    sets: tuple[Path, Path], make: Make, sharp: Path, tmp_path: Path
) -> None:
    make(tmp_path / "sharp", tokens=100, file=sharp)
    make(tmp_path / "taps", tokens=100, taps=("hidden.1",))
    make(tmp_path / "tokens", tokens=100, states=False)
    shutil.copytree(sets[0], tmp_path / "copy")
    for other, message in (
        ("sharp", r"sharp: has target \w+, "),
        ("taps", r"taps: has taps hidden\.1, .* has hidden\.0,hidden\.1"),
        ("tokens", "tokens: has states False, "),
        ("copy", "copy: holds answers that are there already"),
    ):
        with pytest.raises(TrainingError, match=message):
            Corpus([sets[0], tmp_path / other], 1024, None)


def test_without_states_the_target_reads_both_anew(make: Make, draft_model: Path, tmp_path: Path) -> None:
    for states in (True, False):
        make(tmp_path / f"a{states}", tokens=150, states=states)
        make(tmp_path / f"b{states}", tokens=150, states=states, draft_model=draft_model)
    kept, anew = (
        Corpus([tmp_path / f"a{states}", tmp_path / f"b{states}"], 1024, 1) for states in (True, False)
    )
    places = list(range(len(kept)))
    for one, other in zip(kept.states(places), anew.states(places), strict=True):
        assert (one == other).all()


def test_the_program_takes_both(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--out", str(out), "--arch", SETTINGS["arch"], "--batch-tokens", "200", "--json")
    assert paceline(("train", "run", *map(str, sets), *options)) == 0
    card = json.loads(capsys.readouterr().out)
    assert len(card["data_also"]) == 1
    assert paceline(("train", "run", *options)) == 2
    assert "DATA" in capsys.readouterr().err
