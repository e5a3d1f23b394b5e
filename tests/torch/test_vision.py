"""Vision-language models: images go to the target with the prompt, drafters draft text."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

import paceline
from paceline.core import NOTHING, Draft, Verdict, View
from paceline.errors import ConfigError
from paceline.hf import speculative
from paceline.targets.torch import TorchTarget
from paceline.targets.torch_models import VisionLanguage
from tests.torch.families import COMMON, model
from tests.torch.test_generate import DRAFTER, Collected, drafting

IMAGE, START, END = 90, 92, 93
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": 91,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
PATCHED = {
    "depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "in_channels": 3,
}  # fmt: skip
AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}


def text(kind: str, **settings: Any) -> dict[str, Any]:
    return {"model_type": kind, **COMMON, **settings}


SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "llava": (16, {
        "vision_config": {"model_type": "clip_vision_model", **TOWER}, "text_config": text("llama"),
        "vision_feature_layer": -1,
    }),
    "qwen2_vl": (4, {
        "vision_config": {**PATCHED, "embed_dim": 32, "mlp_ratio": 2, "temporal_patch_size": 2},
        "text_config": text("qwen2_vl_text", **AXES), **IDS,
    }),
    "qwen2_5_vl": (4, {
        "vision_config": {
            **PATCHED, "intermediate_size": 48, "out_hidden_size": 32, "window_size": 16,
            "fullatt_block_indexes": [1], "temporal_patch_size": 2,
        },
        "text_config": text("qwen2_5_vl_text", **AXES), **IDS,
    }),
    "qwen3_vl": (4, {
        "vision_config": {
            **PATCHED, "intermediate_size": 48, "out_hidden_size": 32, "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16, "temporal_patch_size": 2,
        },
        "text_config": text("qwen3_vl_text", **AXES), **IDS,
    }),
    "idefics3": (4, {
        "vision_config": {"model_type": "idefics3_vision", **TOWER}, "text_config": text("llama"),
        "scale_factor": 2,
    }),
    "smolvlm": (4, {
        "vision_config": {"model_type": "smolvlm_vision", **TOWER}, "text_config": text("llama"),
        "scale_factor": 2,
    }),
    "internvl": (4, {
        "vision_config": {
            "model_type": "internvl_vision", **TOWER, "image_size": [16, 16], "patch_size": [4, 4]
        },
        "text_config": text("qwen2"), "downsample_ratio": 0.5,
    }),
    "aya_vision": (4, {
        "vision_config": {"model_type": "siglip_vision_model", **TOWER},
        "text_config": text("cohere2", sliding_window=8), "downsample_factor": 2, "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full", "adapter_layer_norm_eps": 1e-6,
    }),
    "mistral3": (4, {
        "vision_config": {"model_type": "pixtral", **TOWER, "head_dim": 8},
        "text_config": text("mistral", sliding_window=None), "spatial_merge_size": 2,
        "vision_feature_layer": -1,
    }),
    "gemma3": (4, {
        "vision_config": {"model_type": "siglip_vision_model", **TOWER},
        "text_config": text("gemma3_text", query_pre_attn_scalar=8, sliding_window=8),
        "mm_tokens_per_image": 4,
    }),
    "paligemma": (16, {
        "vision_config": {"model_type": "siglip_vision_model", **TOWER, "projection_dim": 32},
        "text_config": text("gemma"), "projection_dim": 32,
    }),
}  # fmt: skip
"""{model type: (tokens of an image, what its config says)}."""
REFUSED = {
    "qwen3_vl": "visual_pos_masks",
    "gemma3": "see images in other ways than text",
    "paligemma": "PaliGemma",
}
SERVED = [family for family in SETTINGS if family not in REFUSED]


@cache
def seeing(family: str) -> Any:
    """A model whose answers are varied, and depend on what it sees."""
    torch.manual_seed(sum(map(ord, family)))
    config = AutoConfig.for_model(family, **{"image_token_id": IMAGE, **SETTINGS[family][1]})
    made = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    made.generation_config.pad_token_id, made.generation_config.eos_token_id = 0, 2
    with torch.no_grad():
        for name, weights in made.named_parameters():
            if ("vision" in name or "visual" in name) and weights.ndim > 1:
                weights.normal_(0, 0.3)
    return made


def inputs(family: str, *, negative: bool = False) -> dict[str, torch.Tensor]:
    """Two prompts with an image each, at different places, the second padded on its left."""
    noise, size = torch.Generator().manual_seed(5), SETTINGS[family][0]
    ids = torch.randint(3, 88, (2, 12 + size), generator=noise)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    for row, place in enumerate((3, 7)):
        ids[row, place - 1], ids[row, place + size] = START, END
        ids[row, place : place + size] = IMAGE
    given = {"input_ids": ids * mask, "attention_mask": mask}
    if family.startswith("qwen"):
        given |= {"image_grid_thw": torch.tensor([[1, 4, 4]] * 2), "mm_token_type_ids": (ids == IMAGE).int()}
        shape: tuple[int, ...] = (32, 96)
    else:
        shape = (2, 1, 3, 16, 16) if family in ("idefics3", "smolvlm") else (2, 3, 16, 16)
    if family == "mistral3":
        given["image_sizes"] = torch.tensor([[16, 16]] * 2)
    if family == "gemma3":
        given["token_type_ids"] = (ids == IMAGE).int()
    pixels = torch.randn(shape, generator=noise)
    return {**given, "pixel_values": -pixels if negative else pixels}


ASKED = {"do_sample": False, "max_new_tokens": 16, "repetition_penalty": 1.5}


@pytest.mark.parametrize("family", SERVED)
def test_greedy_answers_are_those_of_generate(family: str) -> None:
    of, by = seeing(family), drafting()
    answers = []
    for negative in (False, True):
        given = inputs(family, negative=negative)
        expected = of.generate(**given, **ASKED)
        found = of.generate(**given, **ASKED, custom_generate=by)
        assert found.tolist() == expected.tolist()
        answers.append(found.tolist())
    assert answers[0] != answers[1]  # it does look at the images


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_sampled_answers_equal_plain_decodings(family: str) -> None:
    answers = []
    for drafter in ("none", DRAFTER):
        torch.manual_seed(7)
        by = speculative(drafter, policy="fixed", rows=8)
        asked = {"do_sample": True, "temperature": 1.3, "max_new_tokens": 12}
        answers.append(seeing(family).generate(**inputs(family), **asked, custom_generate=by).tolist())
    assert answers[0] == answers[1]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_prompts_without_images_work_beside_those_with_some(family: str) -> None:
    of, by, ids = seeing(family), drafting(), torch.tensor([[5, 6, 7, 5, 6]])
    of.generate(**inputs(family), **ASKED, custom_generate=by)
    for _ in range(2):
        expected = of.generate(input_ids=ids, **ASKED)
        assert of.generate(input_ids=ids, **ASKED, custom_generate=by).tolist() == expected.tolist()


def test_images_are_encoded_once() -> None:
    of, by = seeing("llava"), drafting()
    of.generate(**inputs("llava"), **ASKED, custom_generate=by)  # the first time it is checked
    calls = []
    tower = of.model.vision_tower
    hook = tower.register_forward_hook(lambda *_: calls.append(1))
    try:
        of.generate(**inputs("llava"), **ASKED, custom_generate=by)
    finally:
        hook.remove()
    assert len(calls) == 1


def test_features_at_images_are_the_models_own() -> None:
    of = seeing("qwen2_vl")
    target = TorchTarget(of)
    given = {key: value[:1] for key, value in inputs("qwen2_vl").items()}
    given["pixel_values"] = inputs("qwen2_vl")["pixel_values"][:16]
    ids = given.pop("input_ids")
    (seen,) = target.see(ids, given["attention_mask"].bool(), given)
    text = ids[0].tolist()
    packed = Draft.pack(View([0], [text], [0], [len(text)], *([[None]] * 4), inputs={0: seen}), [NOTHING])
    scores = target.forward(packed, frozenset({"hidden.2"}))
    target.commit(packed, Verdict([[]], [-1]))
    with torch.no_grad():
        own = of(input_ids=ids, **given, use_cache=False, output_hidden_states=True)
    torch.testing.assert_close(
        torch.from_numpy(scores.features["hidden.2"]), own.hidden_states[2][0], rtol=1e-3, atol=2e-4
    )


def test_positions_that_go_on_wrongly_behind_an_image_change_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of, right = seeing("qwen2_vl"), VisionLanguage.arguments

    def wrong(
        calls: Any, tokens: torch.Tensor, positions: torch.Tensor, spans: Any, pads: None
    ) -> dict[str, Any]:
        said = right(calls, tokens, positions, spans, pads)
        if spans[0].entry:  # the prompt has been read
            said["position_ids"] = positions[None].expand(4, -1, -1)
        return said

    expected = of.generate(**inputs("qwen2_vl"), **ASKED)
    monkeypatch.setattr(VisionLanguage, "arguments", wrong)
    found = of.generate(**inputs("qwen2_vl"), **ASKED, custom_generate=drafting())
    assert found.tolist() != expected.tolist()


def test_accelerate_and_streamers_work() -> None:
    of = seeing("smolvlm")
    one = {key: value[:1] for key, value in inputs("smolvlm").items()}
    expected, plain = of.generate(**one, **ASKED), of.generate
    try:
        paceline.accelerate(of, drafter=DRAFTER, policy="fixed")
        streamer = Collected()
        found = of.generate(**one, **ASKED, streamer=streamer)
    finally:
        of.generate = plain
    assert found.tolist() == expected.tolist()
    assert streamer.tokens == found[0].tolist()


@pytest.mark.parametrize("family", REFUSED)
def test_an_architecture_that_cannot_be_served_is_refused_by_name(family: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[family]):
        seeing(family).generate(**inputs(family), max_new_tokens=4, custom_generate=drafting())


def test_what_is_not_honoured_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    of = seeing("llava")
    with monkeypatch.context() as patched:
        patched.setattr(of, "get_decoder", lambda: of.lm_head)
        with pytest.raises(ConfigError, match="gives its decoder no embeddings"):
            of.generate(**inputs("llava"), max_new_tokens=4, custom_generate=drafting())
    given = inputs("llava")
    embedded = of.get_input_embeddings()(given["input_ids"])
    with pytest.raises(ConfigError, match="inputs_embeds"):
        of.generate(inputs_embeds=embedded, max_new_tokens=4, custom_generate=drafting())
    with pytest.raises(ConfigError, match="LlamaForCausalLM takes tokens only"):
        TorchTarget(model("llama")).see(torch.tensor([[5]]), torch.ones(1, 1).bool(), {})
