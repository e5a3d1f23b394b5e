"""Data sets: what the target said, the same however the work was cut, and refused where damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.core import NOTHING, Draft, View
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter, ModelFileError, PacelineError, TrainingError
from paceline.lookups.reference import BOUNDARY
from paceline.models.bfloat16 import to_bfloat16, to_float32
from paceline.models.cache import sha256_of
from paceline.models.llama_folder import read_llama
from paceline.models.safetensors_file import map_safetensors, write_safetensors
from paceline.models.tokenizer import Tokenizer
from paceline.noise import choice_seed
from paceline.sampling import SamplingParams
from paceline.stores.datastore import KIND
from paceline.stores.token_file import TokenFile
from paceline.targets.native import NativeTarget
from paceline.targets.weights import pack_llama
from paceline.train import answers as data
from paceline.train.dataset import Answer, Manifest
from paceline.train.questions import invent, read_prompts
from paceline.train.recorder import Recorder
from tests import draft_models
from tests.cli.conftest import paceline as paceline
from tests.train.conftest import WORDS, Make, answers_of

TAPS = ("hidden.0", "hidden.1")


def states_of(target: NativeTarget, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The states of all tokens but the last, from one pass."""
    known = tokens.tolist()
    none: list[Any] = [None]
    view = View([77], [known], [0], [len(known) - 1], none, [0], [1], ["none"])
    features = target.forward(Draft.pack(view, [NOTHING]), frozenset(TAPS)).features
    target.release([77])
    return np.stack([to_bfloat16(features[tap]) for tap in TAPS], 1)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_data_set_holds_the_answers_of_the_target_and_its_states(
    make: Make, model: Path, tmp_path: Path
) -> None:
    manifest = make(tmp_path / "d")
    answers = answers_of(tmp_path / "d", manifest)
    assert len(answers) == 2 * len(WORDS)
    assert manifest.tokens == sum(len(answer.tokens) for answer in answers)
    assert len(manifest.shards) > 2
    target = NativeTarget.load(model, threads=1)
    tokenizer = Tokenizer.from_json(target.tokenizer_json)
    engine = Engine(target, {"none": Recorder(())}, drafter="none", tokenizer=tokenizer)
    order = np.random.default_rng(5).permutation(len(WORDS))
    for place, answer in enumerate(answers):
        params = SamplingParams(temperature=place % 2, max_tokens=24, seed=choice_seed(5, place))
        prompt = [{"role": "user", "content": WORDS[order[place // 2]]}]
        said = engine.generate([prompt], params)[0]
        assert (answer.prompt, answer.tokens[answer.prompt :].tolist()) == (
            said.prompt_tokens,
            list(said.token_ids),
        )
        assert answer.states is not None
        np.testing.assert_array_equal(answer.states, states_of(target, answer.tokens))
    assert len({tuple(answer.tokens[answer.prompt :]) for answer in answers}) > len(WORDS)


def test_a_draft_model_answers_and_the_target_reads(
    make: Make, model: Path, draft_model: Path, tmp_path: Path
) -> None:
    manifest = make(tmp_path / "d", draft_model=draft_model)
    assert manifest.recipe["answered_by"] == sha256_of(draft_model / "model.safetensors")
    answers = answers_of(tmp_path / "d", manifest)
    target = NativeTarget.load(model, threads=1)
    speaking = NativeTarget(pack_llama(draft_model, read_llama(draft_model)), threads=1)
    tokenizer = Tokenizer.from_json(target.tokenizer_json)
    engine = Engine(speaking, {"none": Recorder(())}, drafter="none", tokenizer=tokenizer)
    order = np.random.default_rng(5).permutation(len(WORDS))
    for place, answer in enumerate(answers):
        params = SamplingParams(temperature=place % 2, max_tokens=24, seed=choice_seed(5, place))
        said = engine.generate([[{"role": "user", "content": WORDS[order[place // 2]]}]], params)[0]
        assert answer.tokens[answer.prompt :].tolist() == list(said.token_ids)
        assert answer.states is not None
        np.testing.assert_array_equal(answer.states, states_of(target, answer.tokens))
    own = answers_of(tmp_path / "own", make(tmp_path / "own"))
    same = [one.tokens.tolist() == other.tokens.tolist() for one, other in zip(answers, own, strict=True)]
    assert not any(same), "the twin: the target says something else"
    plain = make(tmp_path / "plain", draft_model=draft_model, states=False)
    for one, other in zip(answers, answers_of(tmp_path / "plain", plain), strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)


def test_a_draft_model_that_does_not_fit_is_refused_by_name(
    make: Make, draft_model: Path, tmp_path: Path
) -> None:
    make(tmp_path / "d", tokens=100, draft_model=draft_model)
    make(tmp_path / "own", tokens=100)
    with pytest.raises(TrainingError, match=r"begun with answered_by \w{64}, not the target; use that"):
        make(tmp_path / "d")
    with pytest.raises(TrainingError, match=r"begun with answered_by the target, not \w{64}; use that"):
        make(tmp_path / "own", draft_model=draft_model)
    other = replace(draft_models.CONFIG, layers=1, vocab_size=264)
    for config, message in (
        (other, "was trained for a target of 264 tokens, this one has 265"),
        (replace(other, vocab_size=265, context=80), "takes 80 tokens, prompts and answers have 84 together"),
    ):
        folder = draft_models.folder_of(draft_models.random_model(config), tmp_path / "other")
        with pytest.raises(PacelineError, match=message):
            make(tmp_path / "new", draft_model=folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(IncompatibleDrafter, match="has a tokenizer of its own"):
        make(tmp_path / "new", draft_model=folder)
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        make(tmp_path / "new", draft_model=folder)
    assert not (tmp_path / "new").exists()


def test_a_manifest_from_before_draft_models_answered_is_gone_on_with(make: Make, tmp_path: Path) -> None:
    first = make(tmp_path / "d", tokens=250)
    path = tmp_path / "d" / "manifest.json"
    held = json.loads(path.read_text())
    assert held["recipe"].pop("answered_by") == ""
    path.write_text(json.dumps(held))
    assert make(tmp_path / "d").shards[: len(first.shards)] == first.shards


@pytest.mark.parametrize("drafted", [False, True])
def test_batches_and_interruptions_leave_no_trace(
    drafted: bool, make: Make, draft_model: Path, tmp_path: Path
) -> None:
    make = partial(make, draft_model=draft_model) if drafted else make
    whole = make(tmp_path / "whole")
    assert make(tmp_path / "one", batch=1) == whole
    seen = 0

    def stop(answer: Answer) -> None:
        nonlocal seen
        seen += 1
        if seen % 5 == 0:
            raise KeyboardInterrupt

    cut = tmp_path / "cut"
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            make(cut, advance=stop)
    (cut / ".shard-00001.safetensors.00.partial").write_bytes(b"killed while it was written")
    assert make(cut) == whole
    assert files(cut) == files(tmp_path / "whole")
    assert make(cut, advance=stop) == whole, "nothing is left to do"


def test_a_data_set_ends_where_its_limits_say_and_goes_on_when_they_are_raised(
    make: Make, tmp_path: Path
) -> None:
    first = make(tmp_path / "d", tokens=250)
    last = len(answers_of(tmp_path / "d", first)[-1].tokens)
    assert 250 <= first.tokens < 250 + last
    more = make(tmp_path / "d", bytes=first.bytes + 20_000)
    assert first.bytes < more.bytes <= first.bytes + 20_000 + 400 * (len(more.shards) - len(first.shards))
    everything = answers_of(tmp_path / "d", make(tmp_path / "d"))
    at_once = answers_of(tmp_path / "e", make(tmp_path / "e"))
    for one, other in zip(everything, at_once, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)


def test_without_states_there_are_tokens_only(make: Make, tmp_path: Path) -> None:
    plain, full = make(tmp_path / "plain", states=False), make(tmp_path / "full")
    assert all(answer.states is None for answer in answers_of(tmp_path / "plain", plain))
    assert plain.tokens == full.tokens
    assert plain.bytes * 10 < full.bytes


def test_a_folder_of_something_else_is_refused(
    make: Make, tmp_path: Path, write_gguf: Any, prompts: Path
) -> None:
    folder = tmp_path / "d"
    make(folder, tokens=100)
    with pytest.raises(TrainingError, match="begun with max_tokens 24, not 25"):
        make(folder, max_tokens=25)
    with pytest.raises(TrainingError, match="begun with states True"):
        make(folder, states=False)
    with pytest.raises(TrainingError, match="of another model"):
        make(folder, file=write_gguf({"llama.context_length": 256}, name="other.gguf"))
    prompts.write_text('{"prompt": "something else"}')
    with pytest.raises(TrainingError, match="prompts_sha256"):
        make(folder)


def test_damaged_files_are_refused_by_name(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    manifest = make(folder)
    shard = folder / manifest.shards[1].file
    data_of = shard.read_bytes()
    shard.write_bytes(data_of[:-1] + bytes([data_of[-1] ^ 1]))
    with pytest.raises(TrainingError, match=r"shard-00001\.safetensors: is damaged"):
        manifest.read_shard(folder, 1)
    shard.write_bytes(data_of[:-1])
    with pytest.raises(TrainingError, match=r"shard-00001\.safetensors: has \d+ bytes"):
        make(folder)
    shard.unlink()
    with pytest.raises(TrainingError, match=r"shard-00001\.safetensors: is missing"):
        manifest.check_files(folder)
    (folder / "target.safetensors").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"target\.safetensors: is damaged"):
        manifest.read_target(folder)
    for text, message in (
        ("{", "is no manifest"),
        ('{"format": "another"}', "is no manifest"),
        ('{"format": "paceline training data", "version": 9}', "has version 9"),
        ('{"format": "paceline training data", "version": 1}', "is damaged"),
    ):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(TrainingError, match=message):
            Manifest.read(folder)
    with pytest.raises(TrainingError, match="train data` makes data sets"):
        Manifest.read(tmp_path / "nothing")


def test_recipes_that_make_no_sense_are_refused(make: Make, model: Path, tmp_path: Path) -> None:
    for changed, message in (
        ({"answers": 0}, "answers must be at least 1"),
        ({"temperatures": (0.0,)}, "would be the same"),
        ({"answers": 3}, "would be the same"),
        ({"temperatures": (-1.0, 2.0)}, "temperature"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(tmp_path / "d", **changed)
    with pytest.raises(ConfigError, match="this model takes 512"):
        data.Source(str(model), TAPS, batch=1, longest=513, threads=1)
    with pytest.raises(ConfigError, match=r"hidden\.0 to hidden\.3"):
        data.check_taps(["hidden.4"], 3)
    with pytest.raises(ConfigError, match="name the --taps"):
        data.default_taps(5)
    assert data.default_taps(30) == ("hidden.2", "hidden.15", "hidden.27", "hidden.30")
    assert data.check_taps(["hidden.3", "hidden.1"], 3) == ("hidden.1", "hidden.3")


def test_prompts_that_are_too_long_are_left_out(make: Make, tmp_path: Path) -> None:
    manifest = make(tmp_path / "d", max_prompt_tokens=30)
    lengths = [answer.prompt for answer in answers_of(tmp_path / "d", manifest)]
    assert max(lengths) <= 30
    assert 0 < len(lengths) < 2 * len(WORDS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "is empty"),
        ("[1]", "line 1: expected an object"),
        ("{", "line 1: is not JSON"),
        ('{"prompt": ""}', "none of them empty"),
        ('{"prompt": "a", "messages": []}', "expected an object"),
        ('{"prompt": "a"}\n{"messages": [{"role": "user"}]}', "line 2: expected"),
    ],
)
def test_bad_prompts_are_refused_by_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(line)
    with pytest.raises(ConfigError, match=message):
        read_prompts(path)


def test_a_model_invents_prompts(model: Path, tmp_path: Path) -> None:
    source = data.Source(str(model), TAPS, batch=4, longest=100, threads=1)
    path = data.invent_prompts(tmp_path, source, 6, 3, lambda: None)
    texts = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    assert len(set(texts)) == 6
    assert list(invent(source.engine, 6, 3, 2, lambda: None)) == texts, "the seed decides, not the batch"
    path.write_text('{"prompt": "kept"}\n')
    assert data.invent_prompts(tmp_path, source, 6, 3, lambda: None).read_text() == '{"prompt": "kept"}\n'


def test_an_answer_that_lost_its_place_keeps_its_states(model: Path) -> None:
    target = NativeTarget.load(model, threads=1)
    kept = []
    for preempted in (False, True):
        recorder = Recorder(TAPS)
        engine = Engine(target, {"record": recorder}, drafter="record", eos_ids=frozenset(), nodes=1)
        request = engine.submit([5, 6, 7], SamplingParams(max_tokens=20, seed=9))
        while not engine.idle:
            events = engine.step()
            if preempted and engine.load.preemptions == 0 and events and events[-1].finish is None:
                engine.preempt(request)
        assert engine.load.preemptions == preempted
        kept.append(recorder.take(9, 22))
    np.testing.assert_array_equal(*kept)
    with pytest.raises(TrainingError, match="of 1 hidden states of an answer 0 were seen"):
        recorder.take(9, 1)


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {
        "a": np.arange(6, dtype=np.int32).reshape(2, 3),
        "b": np.array([1.5, -2], np.float32),
        "c": np.array([1 << 40]),
        "d": to_bfloat16(np.array([[0.1, -3e38]], np.float32)),
    }
    size, _ = write_safetensors(tmp_path / "t.safetensors", tensors)
    assert size == (tmp_path / "t.safetensors").stat().st_size
    for name, array in map_safetensors(tmp_path / "t.safetensors").items():
        np.testing.assert_array_equal(array, tensors[name], strict=True)


def test_bfloat16_is_rounded_to_the_nearest_and_halves_to_even() -> None:
    values = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -0.0, np.inf], np.float32)
    nearest = np.array([1, 1, 1 + 2**-6, 1 + 2**-7, -0.0, np.inf], np.float32)
    np.testing.assert_array_equal(to_float32(to_bfloat16(values)), nearest)


def test_manifests_come_back_as_they_were(make: Make, tmp_path: Path) -> None:
    manifest = make(tmp_path / "d", tokens=100)
    again = Manifest.read(tmp_path / "d")
    assert again == manifest
    assert again.target.shape.vocab_size == 265


def test_a_datastore_is_made_of_the_answers_alone(
    paceline: Any, make: Make, model: Path, tmp_path: Path, write_gguf: Any
) -> None:
    manifest = make(tmp_path / "d")
    path = tmp_path / "answers.pls"
    made = paceline("datastore", "build", str(tmp_path / "d"), "--model", str(model), "-o", str(path))
    assert made.code == 0, made.err
    answers = answers_of(tmp_path / "d", manifest)
    wanted = [token for answer in answers for token in (*answer.tokens[answer.prompt :].tolist(), BOUNDARY)]
    assert TokenFile.read(path, KIND).arrays["tokens"].tolist() == wanted
    assert f"of {len(answers)} texts" in made.err
    record = json.loads((tmp_path / "d" / "manifest.json").read_text())
    another = {"target": record["target"] | {"vocabulary": "another"}}
    drafted = {"recipe": record["recipe"] | {"answered_by": "0" * 64}}
    for change, message in ((another, "which has other tokens"), (drafted, "answered by a draft model")):
        (tmp_path / "d" / "manifest.json").write_text(json.dumps(record | change))
        refused = paceline("datastore", "build", str(tmp_path / "d"), "--model", str(model), "-o", str(path))
        assert (refused.code, message in refused.err) == (2, True)
