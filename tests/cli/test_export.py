"""`paceline export` from the outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paceline.models.dflash2_folder import read_dflash2
from paceline.models.dflash_folder import read_dflash
from paceline.models.dspark_folder import read_dspark
from paceline.models.eagle3_folder import read_eagle3
from paceline.models.heads_folder import read_heads
from paceline.models.mtp_folder import read_mtp
from tests import dflash, dflash2, draft_models, dspark, exits, heads, mtp, pads, peagle, redrafter
from tests.cli.test_generate import one_line_error
from tests.eagle3 import folder_of, random_drafter

Paceline = Callable[..., Any]


def test_a_drafter_is_written_for_each_engine_with_the_command_that_serves_it(
    paceline: Paceline, tmp_path: Path
) -> None:
    folder = folder_of(random_drafter(), tmp_path / "drafter")
    outcome = paceline("export", str(folder), "--to", "vllm", "--target", "org/model")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("vllm serve org/model --speculative-config ")
    assert "logits differ by 0\n" in outcome.err
    assert read_eagle3(tmp_path / "drafter-vllm").config.layer_ids == (0, 2, 3)
    record = json.loads(paceline("export", str(folder), "--to", "vllm", "--json").out)
    assert record["folder"] == str(tmp_path / "drafter-vllm")
    assert record["difference"] == 0
    assert record["config"]["norm_output"] is False
    message = one_line_error(paceline("export", str(folder), "--to", "sglang", "--out", str(tmp_path / "s")))
    assert "reads the target's embeddings" in message
    assert not (tmp_path / "s").exists()


def test_a_dflash_drafter_is_written_in_its_own_form(paceline: Paceline, tmp_path: Path) -> None:
    folder = dflash.folder_of(dflash.random_drafter(), tmp_path / "drafter")
    outcome = paceline("export", str(folder), "--to", "vllm", "--target", "org/model")
    assert outcome.code == 0, outcome.err
    assert '"method": "dflash"' in outcome.out
    assert read_dflash(tmp_path / "drafter-vllm").config.layer_ids == (1, 2, 3)
    message = one_line_error(paceline("export", str(folder), "--to", "sglang"))
    assert "has a head of its own" in message
    message = one_line_error(paceline("export", str(folder), "--to", "vllm", "--layers", "3"))
    assert "is for dflash" in message


def test_a_dspark_drafter_is_written_for_vllm_alone(paceline: Paceline, tmp_path: Path) -> None:
    folder = dspark.folder_of(dspark.random_drafter(), tmp_path / "drafter")
    outcome = paceline("export", str(folder), "--to", "vllm", "--target", "org/model")
    assert outcome.code == 0, outcome.err
    assert '"method": "dspark"' in outcome.out
    assert read_dspark(tmp_path / "drafter-vllm").config.layer_ids == (1, 2, 3)
    refused = paceline("export", str(folder), "--to", "sglang", "--target", "org/model")
    assert "written for vLLM alone" in one_line_error(refused)


def test_a_peagle_drafter_is_written_with_the_setting_that_makes_it_one(
    paceline: Paceline, tmp_path: Path
) -> None:
    folder = peagle.folder_of(peagle.random_drafter(), tmp_path / "drafter")
    outcome = paceline("export", str(folder), "--to", "vllm", "--target", "org/model")
    assert outcome.code == 0, outcome.err
    assert '"parallel_drafting": true' in outcome.out
    assert read_eagle3(tmp_path / "drafter-vllm", "peagle").config.layer_ids == (0, 2, 3)


def test_an_mtp_module_is_written_in_the_librarys_form(paceline: Paceline, tmp_path: Path) -> None:
    folder = mtp.folder_of(mtp.random_drafter(), tmp_path / "drafter")
    outcome = paceline("export", str(folder), "--to", "vllm", "--target", "org/model")
    assert outcome.code == 0, outcome.err
    assert '"method": "mtp"' in outcome.out
    assert read_mtp(tmp_path / "drafter-vllm").config.verifier == "org/model"
    message = one_line_error(paceline("export", str(folder), "--to", "vllm", "--layers", "3"))
    assert "is for mtp" in message


def test_a_dflash2_drafter_is_written_for_both(paceline: Paceline, tmp_path: Path) -> None:
    folder = dflash2.folder_of(dflash2.random_drafter(), tmp_path / "drafter")
    for engine, said in (("vllm", '"method": "dflash"'), ("sglang", "--speculative-algorithm DFLASH")):
        outcome = paceline("export", str(folder), "--to", engine, "--target", "org/model")
        assert outcome.code == 0, outcome.err
        assert said in outcome.out
        assert read_dflash2(tmp_path / f"drafter-{engine}").config.layer_ids == (1, 2, 3)
    assert "name it with --target" in one_line_error(paceline("export", str(folder), "--to", "vllm"))


def test_heads_are_written_for_vllm_alone(paceline: Paceline, tmp_path: Path) -> None:
    folder = heads.folder_of(heads.random_heads(), tmp_path / "heads")
    outcome = paceline("export", str(folder), "--to", "vllm", "--target", "org/model")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("vllm serve org/model --speculative-config ")
    assert "logits differ by 0\n" in outcome.err
    assert read_heads(tmp_path / "heads-vllm", "medusa").config == heads.CONFIG
    refused = paceline("export", str(folder), "--to", "sglang", "--target", "org/model")
    assert "sglang does not load medusa heads" in one_line_error(refused)
    refused = paceline("export", str(folder), "--to", "vllm", "--layers", "3")
    assert "--layers 3 is for EAGLE-3 and P-EAGLE," in one_line_error(refused)


def test_a_draft_model_is_written_for_vllm_alone(paceline: Paceline, tmp_path: Path) -> None:
    folder = draft_models.folder_of(draft_models.random_model(), tmp_path / "drafter")
    outcome = paceline("export", str(folder), "--to", "vllm", "--target", "org/model")
    assert outcome.code == 0, outcome.err
    assert '"method": "draft_model"' in outcome.out
    assert "logits differ by 0\n" in outcome.err
    refused = paceline("export", str(folder), "--to", "sglang", "--target", "org/model")
    assert "draft models are written for vllm, not for sglang" in one_line_error(refused)
    refused = paceline("export", str(folder), "--to", "vllm", "--layers", "3")
    assert "--layers 3 is for EAGLE-3 and P-EAGLE," in one_line_error(refused)


def test_exits_are_for_this_engine_alone(paceline: Paceline, tmp_path: Path) -> None:
    folder = exits.folder_of(exits.random_exits(), tmp_path / "exits")
    refused = paceline("export", str(folder), "--to", "vllm", "--target", "org/model")
    assert "no other engine drafts with trained exits" in one_line_error(refused)


def test_pads_are_written_for_nobody(paceline: Paceline, tmp_path: Path) -> None:
    folder = pads.folder_of(pads.random_pads(), tmp_path / "pads")
    refused = paceline("export", str(folder), "--to", "vllm", "--target", "org/model")
    assert "no other engine reads pads in a model's passes" in one_line_error(refused)


def test_recurrent_drafters_are_written_for_nobody(paceline: Paceline, tmp_path: Path) -> None:
    folder = redrafter.folder_of(redrafter.random_drafter(), tmp_path / "drafter")
    refused = paceline("export", str(folder), "--to", "vllm", "--target", "org/model")
    assert "neither vLLM nor SGLang loads recurrent drafters" in one_line_error(refused)
    assert not (tmp_path / "drafter-vllm").exists()


def test_bad_input_is_one_line(paceline: Paceline, tmp_path: Path) -> None:
    assert "cannot be read" in one_line_error(paceline("export", str(tmp_path), "--to", "vllm"))
    assert "'--to'" in one_line_error(paceline("export", str(tmp_path), "--to", "llama"))
    assert "Missing option '--to'" in one_line_error(paceline("export", str(tmp_path)))
