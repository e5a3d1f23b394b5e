"""What comes with the package: whole, small, and found for the targets that it fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline import policies, shipped
from paceline.core import TargetInfo
from paceline.drafters import load
from paceline.errors import ConfigError, IncompatibleDrafter, ModelFileError, TokenFileError
from paceline.lookups.reference import BOUNDARY
from paceline.mixture import Mixture
from paceline.models.drafter_kinds import kind_of
from paceline.models.eagle3_folder import read_eagle3
from paceline.models.redrafter_folder import read_redrafter
from paceline.stores.datastore import KIND, Datastore
from paceline.stores.token_file import TokenFile
from paceline.targets.table import TableTarget
from tests.eagle3 import folder_of as eagle3_folder
from tests.heads import folder_of as heads_folder
from tests.heads import random_heads
from tests.redrafter import folder_of as redrafter_folder
from tests.redrafter import random_drafter, run
from tests.trained import answers, same, tokens_per_pass
from tests.unit.test_eagle3 import additive, on_kernels

LARGEST = 20_000_000
FILES = sorted(Path(shipped.__file__).parent.glob("*.pls"))
FOLDERS = sorted(path.parent for path in Path(shipped.__file__).parent.glob("*/config.json"))


def test_there_is_one_of_each() -> None:
    assert FILES
    assert FOLDERS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem[:8])
def test_it_is_small_whole_and_called_by_its_tokenizer(path: Path) -> None:
    assert path.stat().st_size <= LARGEST
    file = TokenFile.read(path, KIND)
    assert file.vocabulary == path.stem
    tokens, order = file.arrays["tokens"], file.arrays["order"]
    assert file.notes["texts"] == (tokens == BOUNDARY).sum() > 1000
    behind = order[(tokens[order] >= 0) & (tokens[order - 1] >= 0)]
    assert len(np.unique(behind)) == len(order), "each place once, none at the edge of a text"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem[:8])
def test_what_it_holds_is_found_in_it(path: Path) -> None:
    store = Datastore(**TokenFile.read(path, KIND).arrays)
    tokens = store.arrays["tokens"]
    for at in np.flatnonzero(tokens[1:2000] == BOUNDARY)[:3].tolist():
        ending = tokens[at - 8 : at][::-1].tolist()
        longest, place = store.places.matches(ending, 24)[0]
        assert longest == 8
        assert tokens[place - 8 : place].tolist() == tokens[at - 8 : at].tolist()


def test_it_is_found_by_its_tokens_and_by_no_others() -> None:
    info = TableTarget().info
    for path in FILES:
        assert shipped.datastore(replace(info, vocabulary=path.stem)) == path
        assert shipped.datastore(replace(info, vocabulary=path.stem[:-1] + "x")) is None
    assert shipped.datastore(replace(info, vocabulary="")) is None


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name[:8])
def test_a_trained_drafter_is_small_whole_and_called_by_its_target(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "card.json",
        "card.md",
        "config.json",
        "model.safetensors",
    }
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LARGEST
    card = json.loads((folder / "card.json").read_bytes())
    kind = kind_of(folder)
    assert folder.name == f"{card['vocabulary']}-{card['layers']}-{kind}"
    depths = (
        read_eagle3(folder).config.draft_tokens if kind == "eagle3" else read_redrafter(folder).config.depths
    )
    assert card["license"]
    assert [one["temperature"] for one in card["measured"]] == [0.0, 1.0]
    for one in card["measured"]:
        assert len(one["by_category"]) == 13
        assert len(one["accepted_at_least"]) >= depths
    info = replace(TableTarget().info, vocabulary=card["vocabulary"], layers=card["layers"])
    if kind == "redrafter":
        assert shipped.trained(info) == folder
    assert shipped.trained(replace(info, layers=card["layers"] + 1)) is None
    assert shipped.trained(replace(info, vocabulary="")) is None


def parts(spec: str, info: TargetInfo, **offered: Any) -> set[str]:
    made = load(spec, info, **offered)
    assert isinstance(made, Mixture)
    return {part.name for part in made._parts}


def test_auto_drafts_from_it_unless_told_otherwise(tmp_path: Path) -> None:
    info = TableTarget().info
    fitting = replace(info, vocabulary=FILES[0].stem, vocab_size=49152)
    assert parts("auto", fitting) == {"prediction", "suffix", "datastore"}
    assert parts("auto", info) == parts("auto:texts=none", fitting) == {"prediction", "suffix"}
    tokens = np.array([*range(10), BOUNDARY] * 3, np.int32)
    own = tmp_path / "own.pls"
    TokenFile(KIND, info.vocabulary, "table", {"texts": 3}, Datastore.index(tokens, 12).arrays).write(own)
    assert parts(f"auto:texts={own}", info) == {"prediction", "suffix", "datastore"}
    with pytest.raises(TokenFileError, match="was made with the tokenizer of table"):
        load(f"auto:texts={own}", fitting)
    with pytest.raises(TokenFileError, match="No such file"):
        load("auto:texts=nowhere.pls", info)


def test_auto_drafts_with_a_trained_drafter(tmp_path: Path) -> None:
    target, weights = additive()
    recurrent = random_drafter()
    looked_up, info = {"prediction", "suffix"}, target.info
    made = {"eagle3": on_kernels(weights), "redrafter": run(recurrent)}
    offered = {"load_trained": lambda kind, folder: made[kind]}
    vocabulary, layers, _ = FOLDERS[0].name.split("-")
    fitting = replace(info, vocabulary=vocabulary, layers=int(layers), vocab_size=49152)
    assert parts("auto:texts=none", fitting, **offered) == {*looked_up, "redrafter"}
    assert parts("auto:texts=none,trained=none", fitting, **offered) == looked_up
    assert parts("auto:texts=none", fitting) == looked_up, "the target cannot run it"
    assert parts("auto", info, **offered) == looked_up, "there is none for it"
    own = eagle3_folder(weights, tmp_path / "eagle3")
    assert parts(f"auto:trained={own}", info, **offered) == {*looked_up, "eagle3"}
    own = redrafter_folder(recurrent, tmp_path / "redrafter")
    assert parts(f"auto:trained={own}", info, **offered) == {*looked_up, "redrafter"}
    with pytest.raises(IncompatibleDrafter, match="table cannot run trained drafters"):
        load(f"auto:trained={own}", info)
    with pytest.raises(ModelFileError, match=r"here/config\.json cannot be read"):
        load("auto:trained=here", info, **offered)
    own = heads_folder(random_heads(), tmp_path / "medusa")
    with pytest.raises(ConfigError, match=f"auto:trained={own}: is for medusa, allowed: eagle3, redrafter"):
        load(f"auto:trained={own}", info, **offered)


def test_auto_drafts_as_much_as_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline.mixture.perf_counter", lambda: 0.0)
    target, weights = additive()
    folder = eagle3_folder(weights, tmp_path / "drafter")
    plain = answers(target, None, 1.0)
    for policy, least in ("fixed", 64), ("throughput", 17):
        before = 1.0
        for nodes in 4, 16, 64:
            spec = f"auto:trained={folder},max_nodes={nodes}"
            auto = load(spec, target.info, load_trained=lambda *_: on_kernels(weights))
            decides = policies.load(f"{policy}:nodes={nodes}")
            done = answers(target, auto, 1.0, policy=decides, max_batch=1, clock=lambda: 0.0)
            assert same(done, plain)
            most = max(max(one.stats.drafts) for one in done)
            assert most <= nodes
            assert tokens_per_pass(done) > before
            before = tokens_per_pass(done)
        assert most >= least  # of 64
    for wrong in 0, 257:
        with pytest.raises(ConfigError, match=f"auto:max_nodes must be from 1 to 256, got {wrong}"):
            load(f"auto:max_nodes={wrong}", target.info)


def test_auto_does_without_the_drafter_where_the_target_is_another_with_as_many_layers() -> None:
    """It is found by tokens and layers; whether it fits is seen when it is loaded."""
    vocabulary, layers, _ = FOLDERS[0].name.split("-")
    fitting = replace(TableTarget().info, vocabulary=vocabulary, layers=int(layers), vocab_size=49152)

    def refuse(kind: str, folder: str) -> None:
        raise IncompatibleDrafter("for a target of 576 wide hidden states, this one has 96")

    assert parts("auto:texts=none", fitting, load_trained=refuse) == {"prediction", "suffix"}
    with pytest.raises(IncompatibleDrafter, match="this one has 96"):
        load(f"auto:trained={shipped.trained(fitting)}", fitting, load_trained=refuse)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_auto_with_a_trained_drafter_gives_the_answers_of_plain_decoding(
    temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beside a target as small as this no drafter is worth its time.
    monkeypatch.setattr("paceline.mixture.perf_counter", lambda: 0.0)
    target, weights = additive()
    folder = eagle3_folder(weights, tmp_path / "drafter")
    auto = load(f"auto:trained={folder}", target.info, load_trained=lambda *_: on_kernels(weights))
    done = answers(target, auto, temperature, max_batch=3, clock=lambda: 0.0)
    assert same(done, answers(target, None, temperature))
    assert tokens_per_pass(done) > 2
    assert any(one.stats.drafted > one.stats.accepted > 0 for one in done)
