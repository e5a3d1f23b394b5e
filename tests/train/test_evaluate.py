"""`paceline train eval`: what the engine measures stands in the card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paceline.cli.main import run
from paceline.models.cache import sha256_of
from paceline.train import card
from tests import draft_models, heads, redrafter
from tests.eagle3 import CONFIG, folder_of, random_drafter


def untrained(architecture: str, folder: Path) -> Path:
    """A drafter for the tiny target."""
    if architecture == "draft":
        config = replace(draft_models.CONFIG, vocab_size=265)
        return draft_models.folder_of(draft_models.random_model(config), folder)
    if architecture == "redrafter":
        small = replace(redrafter.CONFIG, hidden=64, vocab_size=265)
        return redrafter.folder_of(redrafter.random_drafter(small), folder)
    if architecture != "eagle3":
        sizes = replace(heads.CONFIG, kind=architecture, hidden=64, vocab_size=265)
        return heads.folder_of(heads.random_heads(sizes), folder)
    config = replace(
        CONFIG, hidden=64, ffn=96, heads=2, kv_heads=1, vocab_size=265, target_hidden=64, layer_ids=(0, 1)
    )
    return folder_of(random_drafter(config), folder)


@pytest.fixture(params=["eagle3"])
def drafter(tmp_path: Path, model: Path, request: pytest.FixtureRequest) -> Path:
    """An untrained drafter with a card."""
    folder = untrained(request.param, tmp_path / "drafter")
    line = {
        "step": 1, "tau_greedy": 1.0, "tau_sampled": 1.0, "agreement": [0.0], "overlap": [0.1],
        "calibration_error": 0.5,
    }  # fmt: skip
    record = {
        "license": "", "target": str(model), "target_sha256": sha256_of(model),
        "settings": {"arch": f"{request.param}:depths=3"},
        "data": {"answers": 1, "tokens": 9, "answer_tokens": 5, "temperatures": [0.0], "prompts_sha256": "0"},
        "steps": 1, "trained_tokens": 9, "seconds": 1.0, "device": "cpu", "parameters": 1, "bytes": 1,
        "estimate": line, "curve": [line],
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(record))
    (folder / "card.md").write_text(card.page(record))
    return folder


@pytest.fixture
def asked(tmp_path: Path) -> str:
    path = tmp_path / "asked.jsonl"
    rows = [{"category": kind, "turns": [f"the {kind} {n}"]} for kind in ("cat", "dog") for n in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("drafter", ["draft", "eagle3", "hydra", "medusa", "redrafter"], indirect=True)
def test_what_is_measured_stands_in_the_card(
    drafter: Path, asked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--options", "widths=1x1,min_probability=0", "--prompts", asked, "--max-tokens", "12")
    for _ in range(2):  # the second time in place of the first
        assert run(("train", "eval", str(drafter), *options, "--threads", "1")) == 0
        printed = capsys.readouterr().out
        reports = json.loads(printed.splitlines()[-1])
        measured: list[dict[str, Any]] = json.loads((drafter / "card.json").read_text())["measured"]
        assert [one["temperature"] for one in measured] == [0, 1]
        for one, report in zip(measured, reports, strict=True):
            (found,) = report["drafters"].values()
            assert one["tau"] == found["tau"] == pytest.approx(1 + sum(one["accepted_at_least"]), abs=0.1)
            assert set(one["by_category"]) == {"cat", "dog"}
            assert one["drafter"].endswith(":widths=1x1,min_probability=0")
    page = (drafter / "card.md").read_text()
    assert page.count("## Measured at temperature") == 2
    assert f"| all | {measured[0]['tau']:.2f} |" in page
    assert "by category" in printed


def test_misuse_is_one_line(
    drafter: Path, asked: str, write_gguf: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert run(("train", "eval", *arguments, "--prompts", asked)) == 2
        error = capsys.readouterr().err
        assert error.count("paceline: error") == 1
        return error

    before = (drafter / "card.json").read_text()
    other = write_gguf({"llama.context_length": 256}, name="other.gguf")
    assert "trained for another file than" in refused(str(drafter), "--model", str(other))
    assert "eagle3 has no option 'width'" in refused(str(drafter), "--options", "width=1")
    assert (drafter / "card.json").read_text() == before
    (drafter / "card.json").write_text(before.replace("eagle3:depths=3", "eagle4"))
    assert "there is no drafter 'eagle4'" in refused(str(drafter))
    (drafter / "card.json").write_text("{}")
    assert "card.json: is damaged" in refused(str(drafter))
    (drafter / "card.json").unlink()
    assert "`paceline train run` writes it" in refused(str(drafter))
