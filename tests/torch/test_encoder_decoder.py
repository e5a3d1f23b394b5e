"""Encoder-decoder models: a source that is encoded once, and speculation on the decoder's side."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

import paceline
from paceline.core import NOTHING, Draft, Tree, Verdict, View
from paceline.drafters import load
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.hf import speculative
from paceline.sampling import SamplingParams
from paceline.targets.torch import TorchTarget
from paceline.targets.torch_attention import Pass
from tests.torch.families import VOCABULARY, model
from tests.torch.test_generate import DRAFTER, Collected, drafting

T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4,
    "initializer_factor": 3.0, "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
}  # fmt: skip
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "init_std": 0.3,
    "max_position_embeddings": 128, "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
SETTINGS = {
    "t5": T5, "mt5": T5, "umt5": T5, "longt5": T5,
    "bart": BART, "mbart": BART, "marian": BART, "pegasus": BART, "pegasus_x": BART, "plbart": BART,
    "blenderbot": BART, "blenderbot-small": BART,
}  # fmt: skip
SHAPES = ("t5", "bart")
"""One with biases by distance, one with positions."""


@cache
def translator(family: str) -> Any:
    """A model whose answers are varied, though greedy ones of random weights soon repeat themselves."""
    torch.manual_seed(1)
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, **ids, **SETTINGS[family])
    made = AutoModelForSeq2SeqLM.from_config(config, attn_implementation="eager").eval()
    made.generation_config.pad_token_id = 0
    return made


def sources() -> dict[str, torch.Tensor]:
    """Of different lengths, padded on their right, as is usual for an encoder."""
    ids = torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


PENALISED = {"max_new_tokens": 20, "repetition_penalty": 1.8}
"""Under which greedy answers do not repeat themselves."""


@pytest.mark.parametrize("family", SETTINGS)
def test_greedy_answers_are_those_of_generate(family: str) -> None:
    of = translator(family)
    for asked in ({"max_new_tokens": 20}, PENALISED):
        expected = of.generate(**sources(), **asked, do_sample=False)
        by = drafting()
        found = of.generate(**sources(), **asked, do_sample=False, custom_generate=by)
        assert found.tolist() == expected.tolist()
    assert len({tuple(answer) for answer in expected.tolist()}) == 3


@pytest.mark.parametrize("family", SHAPES)
def test_sampled_answers_equal_plain_decodings(family: str) -> None:
    of, answers = translator(family), []
    asked = {**sources(), "do_sample": True, "top_p": 0.9, "max_new_tokens": 16}
    for drafter in ("none", DRAFTER):
        torch.manual_seed(7)
        by = speculative(drafter, policy="fixed", rows=8)
        answers.append(of.generate(**asked, custom_generate=by).tolist())
    assert answers[0] == answers[1]
    torch.manual_seed(8)
    assert of.generate(**asked, custom_generate=by).tolist() != answers[0]


@pytest.mark.parametrize("family", SHAPES)
def test_a_tree_is_scored_as_the_models_own_pass_over_each_path(family: str) -> None:
    of, text = translator(family), [0, 5, 6, 7, 8, 9, 10]
    ids = sources()["input_ids"][:1]
    target = TorchTarget(of)
    with torch.no_grad():
        beside = {0: target.source(of.get_encoder()(input_ids=ids).last_hidden_state[0])}

    def draft(history: list[int], start: int, tree: Tree = NOTHING) -> Draft:
        return Draft.pack(
            View([0], [history], [start], [len(history)], *([[None]] * 4), inputs=beside), [tree]
        )

    first = draft(text[:5], 0)
    target.forward(first, frozenset())
    target.commit(first, Verdict([[]], [-1]))
    packed = draft(text, 5, Tree([11, 12, 13, 14, 15, 16], [-1, 0, 1, 0, -1, 4]))
    scores = target.forward(packed, frozenset({"hidden.0", "hidden.3"}))
    parents, tokens = packed.parents.tolist(), packed.tokens.tolist()
    for place, node in enumerate(packed.scored.tolist()):
        path, above = [], node
        while above >= 0:
            path.append(tokens[above])
            above = parents[above]
        whole = torch.tensor([text[:5] + path[::-1]])
        with torch.no_grad():
            own = of(input_ids=ids, decoder_input_ids=whole, use_cache=False, output_hidden_states=True)
        np.testing.assert_allclose(scores.logits[place], own.logits[0, -1], rtol=1e-3, atol=2e-4)
        for tap, features in scores.features.items():
            layer = own.decoder_hidden_states[int(tap.removeprefix("hidden."))]
            np.testing.assert_allclose(features[node], layer[0, -1], rtol=1e-3, atol=2e-4)


def test_a_bias_by_place_in_the_cache_instead_of_by_position_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = Pass.relate

    def wrong(running: Pass, module: Any) -> None:
        (span,) = running.spans
        places = torch.arange(len(span.places))[None]
        running.layout = replace(running.layout, known=places)
        running._at = places[:, span.entry :]
        right(running, module)

    monkeypatch.setattr(Pass, "relate", wrong)
    with pytest.raises(ConfigError, match="other logits"):
        TorchTarget(translator("t5"))


def test_a_source_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    of, by = translator("t5"), drafting()
    by.prepare(of)
    calls = {"encoder": 0, "cross": 0}

    def count(what: str) -> Any:
        def hook(*_: Any) -> None:
            calls[what] += 1

        return hook

    cross = of.decoder.block[0].layer[1].EncDecAttention.k
    hooks = [of.encoder.register_forward_hook(count("encoder")), cross.register_forward_hook(count("cross"))]
    try:
        of.generate(**sources(), **PENALISED, custom_generate=by)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == {"encoder": 1, "cross": 3}  # one batch; three sequences


def test_accelerate_streamers_and_outputs_work_as_for_decoders() -> None:
    of = translator("bart")
    asked = {
        **PENALISED, "do_sample": False, "return_dict_in_generate": True, "output_scores": True,
        "decoder_input_ids": torch.tensor([[1, 9, 4]]),
    }  # fmt: skip
    one = {key: value[:1] for key, value in sources().items()}
    expected, plain = of.generate(**one, **asked), of.generate
    try:
        paceline.accelerate(of, drafter=DRAFTER, policy="fixed")
        streamer = Collected()
        found = of.generate(**one, **asked, streamer=streamer)
    finally:
        of.generate = plain
    assert type(found) is type(expected)
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert streamer.tokens == found.sequences[0].tolist()
    for ours, theirs in zip(found.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_an_assistant_with_an_encoder_reads_sources_once_and_drafts() -> None:
    of, same, other = translator("t5"), copy.deepcopy(translator("t5")), translator("umt5")
    asked = {**sources(), **PENALISED, "do_sample": False}
    own = {"assistant_confidence_threshold": 0.0, "num_assistant_tokens": 4}
    by, calls = speculative("none", policy="fixed"), {"assistant reads": 0, "passes": 0}

    def count(what: str) -> Any:
        def hook(*_: Any) -> None:
            calls[what] += 1

        return hook

    expected = of.generate(**asked).tolist()
    for assistant in (other, same):
        found = of.generate(**asked, **own, assistant_model=assistant, custom_generate=by)
        assert found.tolist() == expected
    hooks = [same.encoder.register_forward_hook(count("assistant reads"))]
    hooks.append(of.lm_head.register_forward_hook(count("passes")))
    try:
        of.generate(**asked, **own, assistant_model=same, custom_generate=by)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls["assistant reads"] == 1
    assert calls["passes"] < len(expected[0]) / 2
    encoded = of.get_encoder()(input_ids=sources()["input_ids"])
    with pytest.raises(ConfigError, match="needs input_ids"):
        of.generate(
            encoder_outputs=encoded, **own, max_new_tokens=4, assistant_model=same, custom_generate=by
        )


def test_several_answers_to_a_source_differ() -> None:
    asked = {"do_sample": True, "temperature": 3.0, "num_return_sequences": 3, "max_new_tokens": 12}
    out = translator("t5").generate(**sources(), **asked, custom_generate=drafting())
    assert len({tuple(answer) for answer in out.tolist()}) == 9


def test_a_request_that_lost_its_place_goes_on_with_its_own_source() -> None:
    of = translator("t5")
    target = TorchTarget(of, rows=8)
    ids, mask = sources().values()
    encoded = of.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state.detach()
    given = [target.source(states[keep.bool()]) for states, keep in zip(encoded, mask, strict=True)]
    answers = []
    for preempted in (False, True):
        engine = Engine(target, {"none": load("none", target.info)}, drafter="none")
        params = SamplingParams(temperature=1.5, seed=3, max_tokens=10)
        ours = [engine.submit([0], params, inputs=source) for source in given]
        done = {}
        for step in range(100):
            if preempted and step == 4:
                engine.preempt(ours[0])
            done.update({event.request: event.finish for event in engine.step() if event.finish})
        assert engine.load.preemptions == preempted
        answers.append([done[request].token_ids for request in ours])
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 3


def test_what_is_not_honoured_is_refused_by_name() -> None:
    of = translator("t5")
    mask = torch.tensor([[1, 1, 0]] * 3)
    given = {"decoder_input_ids": torch.tensor([[0, 4, 0]] * 3), "decoder_attention_mask": mask}
    with pytest.raises(ConfigError, match="decoder_attention_mask: prompts must be padded on their left"):
        of.generate(**sources(), **given, max_new_tokens=4, custom_generate=drafting())
    with pytest.raises(ConfigError, match="beam search"):
        of.generate(**sources(), num_beams=2, max_new_tokens=4, custom_generate=drafting())
    prompt = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, 2)}
    with pytest.raises(IncompatibleDrafter, match="assistant_model has an encoder, the model has none"):
        model("llama").generate(**prompt, assistant_model=of, max_new_tokens=4, custom_generate=drafting())


def test_a_source_goes_with_models_that_have_an_encoder_and_no_others() -> None:
    def asked_of(of: Any) -> Engine:
        target = TorchTarget(of)
        return Engine(target, {"none": load("none", target.info)}, drafter="none")

    with pytest.raises(ConfigError, match="needs inputs beside the prompt"):
        asked_of(translator("t5")).submit([0])
    with pytest.raises(ConfigError, match="takes tokens only"):
        asked_of(model("llama")).submit([5], inputs=object())
    with pytest.raises(ConfigError, match="LlamaForCausalLM has no encoder"):
        TorchTarget(model("llama")).source(torch.zeros(2, 32))
