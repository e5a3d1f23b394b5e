"""The PyTorch target: its cache, its taps, what it refuses, and that fixed rows make it bit-exact."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

from paceline.core import LAST, NOTHING, Draft, Tree, Verdict, View
from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError
from paceline.kernels.packing import dequantise
from paceline.pretrained import offers
from paceline.sampling import SamplingParams
from paceline.targets.torch import TorchTarget
from paceline.targets.torch_cache import Pool
from paceline.targets.torch_models import longest
from tests import dflash, dspark, eagle3, heads, mtp, peagle
from tests.torch.families import FAMILIES, VOCABULARY, model, small

ROWS = 8
EVERYWHERE = ("gemma2", "gpt2", "gpt_oss", "llama", "mistral", "mixtral", "qwen3_moe")
"""Architectures that differ in what could make a row depend on others."""
SAMPLED = SamplingParams(temperature=1.1, top_p=0.95, max_tokens=20, seed=5)


def draft(history: list[int], start: int, tree: Tree = NOTHING) -> Draft:
    view = View([0], [history], [start], [len(history)], *([[None]] * 4))
    return Draft.pack(view, [tree])


def words(count: int, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(3, VOCABULARY) for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tree_is_scored_as_the_models_own_pass_over_each_path(family: str) -> None:
    of, text = model(family), words(11)
    target = TorchTarget(of)
    tree = Tree(words(6, 2), [-1, 0, 1, 0, -1, 4])
    first = draft(text[:9], 0)
    target.forward(first, frozenset())
    target.commit(first, Verdict([[]], [-1]))
    packed = draft(text, 9, tree)
    taps = frozenset({"hidden.0", "hidden.2", "hidden.3"})
    scores = target.forward(packed, taps)
    parents, tokens = packed.parents.tolist(), packed.tokens.tolist()
    for place, node in enumerate(packed.scored.tolist()):
        path, above = [], node
        while above >= 0:
            path.append(tokens[above])
            above = parents[above]
        whole = torch.tensor([text[:9] + path[::-1]])
        with torch.no_grad():
            own = of(input_ids=whole, use_cache=False, output_hidden_states=True)
        np.testing.assert_allclose(scores.logits[place], own.logits[0, -1], rtol=1e-3, atol=2e-4)
        for tap, features in scores.features.items():
            layer = int(tap.removeprefix("hidden."))
            np.testing.assert_allclose(features[node], own.hidden_states[layer][0, -1], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("family", EVERYWHERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_fixed_rows_sampled_answers_equal_plain_decodings(family: str, dtype: torch.dtype) -> None:
    of = model(family, dtype)
    target = TorchTarget(of, rows=ROWS)
    prompts = [words(length, length) * 2 for length in (2, 5, 9)]
    plain = [run(target, "none", [prompt]) for prompt in prompts]
    together = run(target, "recycling:min_probability=1e-6", prompts)
    assert [answer for alone in plain for answer in alone] == together


def run(target: TorchTarget, drafter: str, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    engine = Engine(
        target, {"drafter": load(drafter, target.info)}, drafter="drafter", max_batch=len(prompts)
    )
    done = engine.generate(prompts, SAMPLED)
    assert drafter == "none" or sum(completion.stats.drafted for completion in done) > 0
    return [completion.token_ids for completion in done]


def test_rows_that_depend_on_their_place_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    of = model("llama")
    plain = of.lm_head.forward
    drift = torch.arange(ROWS).reshape(1, ROWS, 1) * 1e-6

    def placed(hidden: torch.Tensor) -> torch.Tensor:
        out = plain(hidden)
        return out + drift if out.shape[1] == ROWS else out

    monkeypatch.setattr(of.lm_head, "forward", placed)
    with pytest.raises(ConfigError, match=r"rows=8.*depends on its place"):
        TorchTarget(of, rows=ROWS)


@pytest.mark.parametrize("family", ["gemma3_text", "gpt2", "llama"])
def test_after_accepts_and_rejects_the_cache_equals_a_fresh_prefill(family: str) -> None:
    target, rng = TorchTarget(model(family), rows=ROWS), random.Random(4)
    text, cached = words(3), 0
    for seed in range(10):
        size = rng.randrange(7)
        tree = Tree(words(size, seed), [rng.randint(-1, node - 1) for node in range(size)])
        packed = draft(text, cached, tree)
        target.forward(packed, frozenset())
        parents, path, node = packed.parents.tolist(), [], packed.roots[0]
        while rng.random() < 0.8 and (below := [n for n, p in enumerate(parents) if p == node]):
            node = rng.choice(below)
            path.append(node)
        target.commit(packed, Verdict([path], [7]))
        text = [*text, *(int(packed.tokens[node]) for node in path)]
        cached = len(text)
        text.append(7)
    fresh = TorchTarget(target.model, rows=ROWS)
    packed = draft(text[:cached], 0)
    fresh.forward(packed, frozenset())
    fresh.commit(packed, Verdict([[]], [-1]))
    for layer in range(3):
        for ours, theirs in zip(target.read_cache(0, layer), fresh.read_cache(0, layer), strict=True):
            assert ours.shape[1] == cached
            assert_array_equal(ours.numpy(), theirs.numpy())


def test_the_model_stays_as_it_was() -> None:
    of, whole = model("mistral"), torch.tensor([words(9)])
    with torch.no_grad():
        before = of(input_ids=whole).logits
        target = TorchTarget(of)
        target.forward(draft(words(5), 0), frozenset())
        assert_array_equal(of(input_ids=whole).logits.numpy(), before.numpy())
    assert of.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: small("mamba", state_size=4), "recurrent state"),
        (
            lambda: AutoModelForCausalLM.from_config(
                AutoConfig.for_model(
                    "falcon", vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
                )
            ).eval(),
            "FalconForCausalLM",
        ),
        (lambda: small("bloom", n_head=4, n_layer=2), "BloomForCausalLM"),
        (lambda: model("llama").train(), "training mode"),
        (lambda: model("llama").model, "no language model"),
        (
            lambda: AutoModelForSeq2SeqLM.from_config(
                AutoConfig.for_model(
                    "switch_transformers",
                    vocab_size=50,
                    d_model=16,
                    d_kv=8,
                    d_ff=16,
                    num_layers=1,
                    num_heads=2,
                )
            ).eval(),
            "SwitchTransformersForConditionalGeneration cannot be served",
        ),
        (
            lambda: AutoModelForSpeechSeq2Seq.from_config(
                AutoConfig.for_model(
                    "whisper",
                    d_model=16,
                    encoder_layers=1,
                    decoder_layers=1,
                    encoder_attention_heads=2,
                    decoder_attention_heads=2,
                    encoder_ffn_dim=16,
                    decoder_ffn_dim=16,
                    vocab_size=50,
                    pad_token_id=0,
                    bos_token_id=1,
                    eos_token_id=2,
                )
            ).eval(),
            "WhisperForConditionalGeneration reads input_features",
        ),
    ],
    ids=["mamba", "falcon", "bloom", "training", "no head", "switch", "whisper"],
)
def test_a_model_that_cannot_be_served_is_refused_by_name(make: Any, says: str) -> None:
    try:
        with pytest.raises(ConfigError, match=says):
            TorchTarget(make())
    finally:
        model("llama").eval()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"context": 4}, "context is 4, allowed: 8 to 128"),
        ({"context": 129}, "context is 129"),
        ({"cache_tokens": 0}, "cache_tokens is 0"),
        ({"rows": 0}, "rows is 0, allowed: 1 to"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TorchTarget(model("llama"), **options)


def test_a_model_whose_logits_differ_through_our_attention_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = Pool.keep

    def unmoved(pool: Pool, kept: list[tuple[int, int, list[int]]]) -> None:
        right(pool, [(slot, known, range(known, known + len(path))) for slot, known, path in kept])

    monkeypatch.setattr(Pool, "keep", unmoved)
    with pytest.raises(ConfigError, match="other logits"):
        TorchTarget(model("llama"))


def test_a_text_ends_where_rotary_frequencies_would_begin_to_change() -> None:
    config = SimpleNamespace(
        model_type="phi3",
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "longrope", "original_max_position_embeddings": 1024},
    )
    assert longest(config) == 1024
    config.rope_parameters = {"full_attention": dict(config.rope_parameters), "sliding_attention": {}}
    assert longest(config) == 1024
    config.rope_parameters = {"rope_type": "default"}
    assert longest(config) == 4096


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "gpt2"])
def test_attention_to_all_sequences_at_a_time_agrees_with_that_to_one_node_after_the_other(
    family: str,
) -> None:
    """Texts of different lengths whose pages lie between each other's, with trees, chains and nothing."""
    texts = {slot: words(length, length) for slot, length in enumerate((23, 5, 17, 40))}
    trees = [Tree(words(5, 1), [-1, 0, 0, 2, -1]), NOTHING, Tree.chain(words(3, 2)), Tree([9, 8], [-1, -1])]
    found = []
    for rows in (None, 8):
        target = TorchTarget(model(family), rows=rows)
        starts = dict.fromkeys(texts, 0)
        for end in (9, 20, 39):
            going = {slot: text for slot, text in texts.items() if starts[slot] < min(end, len(text) - 1)}
            ends = [min(end, len(text) - 1) for text in going.values()]
            view = View(
                list(going), list(going.values()), [starts[slot] for slot in going], ends, *([[None] * 4] * 4)
            )
            packed = Draft.pack(view, [NOTHING] * len(going))
            target.forward(packed, frozenset())
            target.commit(packed, Verdict([[]] * len(going), [-1] * len(going)))
            starts.update(zip(going, ends, strict=True))
        assert np.diff(target.pages(3)).max() > 1
        view = View(
            list(texts),
            list(texts.values()),
            list(starts.values()),
            list(map(len, texts.values())),
            *([[None] * 4] * 4),
        )
        found.append(target.forward(Draft.pack(view, trees), frozenset()).logits)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_requests_that_begin_alike_share_what_was_read() -> None:
    target = TorchTarget(model("gemma2"), rows=ROWS)
    prompts = [words(40) + words(3, seed) for seed in range(3)]
    answers = []
    for shares in (False, True):
        made = Engine(
            target, {"none": load("none", target.info)}, drafter="none", max_batch=1, share_prefixes=shares
        )
        answers.append([done.token_ids for done in made.generate(prompts, SAMPLED)])
        assert made.load.prefix_hit_tokens == shares * 2 * 32
    assert answers[0] == answers[1]


def trained_eagle3(folder: Path) -> Path:
    sizes = {"hidden": 32, "target_hidden": 32, "vocab_size": VOCABULARY, "draft_vocab_size": 40}
    config = replace(eagle3.CONFIG, **sizes, layer_ids=(0, 1, 2))
    return eagle3.folder_of(eagle3.random_drafter(config), folder)


def trained_dflash(folder: Path) -> Path:
    """One that takes the target's head."""
    sizes = {"hidden": 32, "vocab_size": VOCABULARY, "draft_vocab_size": VOCABULARY}
    config = replace(dflash.CONFIG, **sizes, layer_ids=(0, 1, 2), mask_token=0)
    return dflash.folder_of(dflash.random_drafter(config, head=False), folder)


def trained_dspark(folder: Path) -> Path:
    sizes = {"hidden": 32, "vocab_size": VOCABULARY, "draft_vocab_size": 40}
    config = replace(dspark.CONFIG, **sizes, layer_ids=(0, 1, 2), mask_token=0)
    return dspark.folder_of(dspark.random_drafter(config), folder)


def trained_peagle(folder: Path) -> Path:
    sizes = {"hidden": 32, "target_hidden": 32, "vocab_size": VOCABULARY, "draft_vocab_size": 40}
    config = replace(peagle.CONFIG, **sizes, layer_ids=(0, 1, 2), mask_token=0)
    return peagle.folder_of(peagle.random_drafter(config), folder)


def trained_mtp(folder: Path) -> Path:
    sizes = {"hidden": 32, "vocab_size": VOCABULARY, "draft_vocab_size": 40}
    return mtp.folder_of(mtp.random_drafter(replace(mtp.CONFIG, **sizes)), folder)


def test_what_trained_drafters_share_is_the_models_own() -> None:
    target, own = TorchTarget(model("llama"), rows=ROWS), model("llama")
    for (kind, packed, *shape), part in (
        (target.embedding(), own.get_input_embeddings()),
        (target.head(), own.get_output_embeddings()),
    ):
        exact = part.weight.detach().numpy()
        np.testing.assert_allclose(dequantise(kind, *shape[:2], packed), exact, rtol=0.01)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("dflash", trained_dflash),
        ("dspark", trained_dspark),
        ("eagle3", trained_eagle3),
        ("mtp", trained_mtp),
        ("peagle", trained_peagle),
    ],
)
def test_a_trained_drafter_reads_the_models_hidden_states(
    name: str, made: Callable[[Path], Path], tmp_path: Path
) -> None:
    target = TorchTarget(model("llama"), rows=ROWS)
    spec = f"{name}:model={made(tmp_path / 'drafter')},min_probability=0"
    drafters = {spec: load(spec, target.info, **offers(target, None)), "none": load("none", target.info)}
    engine = Engine(target, drafters, drafter=spec)
    prompts = [words(length, length) for length in (3, 30)]
    drafted, plain = (engine.generate(prompts, SAMPLED, name) for name in (spec, "none"))
    assert engine.load.draft_failures == {}
    assert sum(one.stats.drafted for one in drafted) > 20
    assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]


@pytest.mark.parametrize("family", EVERYWHERE)
def test_the_last_state_is_what_the_models_head_reads(family: str) -> None:
    of = model(family)
    head = of.get_output_embeddings().weight.detach().numpy()
    scores = TorchTarget(of).forward(draft(words(9), 0), frozenset({LAST}))
    logits = scores.features[LAST][-1] @ head.T
    if cap := getattr(of.config, "final_logit_softcapping", None):
        logits = cap * np.tanh(logits / cap)
    np.testing.assert_allclose(logits, scores.logits[-1], rtol=1e-4, atol=1e-5)


def test_trained_heads_read_the_models_last_state(tmp_path: Path) -> None:
    config = replace(heads.CONFIG, hidden=32, vocab_size=VOCABULARY, draft_vocab_size=40)
    folder = heads.folder_of(heads.random_heads(config), tmp_path / "heads")
    target = TorchTarget(model("llama"), rows=ROWS)
    spec = f"medusa:model={folder},widths=3x2x1,min_probability=0"
    drafters = {spec: load(spec, target.info, **offers(target, None)), "none": load("none", target.info)}
    engine = Engine(target, drafters, drafter=spec)
    prompts = [words(length, length) for length in (3, 30)]
    drafted, plain = (engine.generate(prompts, SAMPLED, name) for name in (spec, "none"))
    assert engine.load.draft_failures == {}
    assert sum(one.stats.drafted for one in drafted) > 20
    assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
