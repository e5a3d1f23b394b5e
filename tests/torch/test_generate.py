"""Paceline inside transformers' `generate`: the same answers, the same types, nothing ignored."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

import paceline
from paceline.core import Draft, Scores
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.hf import speculative
from paceline.targets.torch import TorchTarget
from tests.chi_square import chi_square
from tests.torch.families import VOCABULARY, model, small
from tests.torch.test_target import trained_eagle3

DRAFTER = "recycling:min_probability=1e-6"


def inputs(lengths: tuple[int, ...] = (9,)) -> dict[str, torch.Tensor]:
    """Prompts that repeat themselves, padded on their left."""
    rng, width = random.Random(6), max(lengths)
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.int64), torch.zeros(len(lengths), width)
    for row, length in enumerate(lengths):
        part = [rng.randrange(3, VOCABULARY) for _ in range(-(-length // 2))]
        ids[row, width - length :] = torch.tensor((part * 2)[:length])
        mask[row, width - length :] = 1
    return {"input_ids": ids, "attention_mask": mask.to(torch.int64)}


def drafting() -> Any:
    """A decoder that always drafts."""
    return speculative(DRAFTER, policy="fixed")


class OnlyEvenAfterThree(LogitsProcessor):
    """What may follow depends on the path."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        odd = torch.arange(scores.shape[1]) % 2 == 1
        return scores.masked_fill(odd & (input_ids[:, -1:] % 3 == 0), -torch.inf)


class UntilRepeated(StoppingCriteria):
    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return (input_ids[:, -2] == input_ids[:, -1]) | (input_ids[:, -1] % 7 == 0)


CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "min_new_tokens": {"min_new_tokens": 12, "eos_token_id": [2, 5, 11, 30, 31, 32, 60, 61, 62]},
    "eos_token_id": {"eos_token_id": [*range(10, 30)]},
    "bad_words_ids": {"bad_words_ids": [[5], [8, 9], [40]]},
    "suppress_tokens": {"suppress_tokens": [*range(30)]},
    "forced_eos_token_id": {"forced_eos_token_id": 2},
    "sequence_bias": {"sequence_bias": {(7,): 4.0, (8, 9): 5.0}},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (5, 1.2)},
    "own logits processor": {"logits_processor": LogitsProcessorList([OnlyEvenAfterThree()])},
    "own stopping criterion": {"stopping_criteria": StoppingCriteriaList([UntilRepeated()])},
    "generation config": {
        "generation_config": GenerationConfig(max_new_tokens=17, repetition_penalty=1.2, pad_token_id=0)
    },
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 3},
    "assistant_early_exit": {"assistant_early_exit": 2, "num_assistant_tokens": 3},
    "use_cache": {"use_cache": False},
    "prefix_allowed_tokens_fn": {
        "prefix_allowed_tokens_fn": lambda row, ids: [10 + row, 20 + len(ids) % 7, 30]
    },
}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("lengths", [(9,), (4, 11, 7)], ids=["one prompt", "a batch"])
@pytest.mark.parametrize("name", CALLS)
def test_greedy_answers_are_those_of_generate(name: str, lengths: tuple[int, ...], family: str) -> None:
    call = {"do_sample": False, "pad_token_id": 0, **CALLS[name]}
    if "generation_config" in call:
        call = CALLS[name]
    else:
        call["max_new_tokens"] = 20
    of, given = model(family), inputs(lengths)
    plain = {
        key: value
        for key, value in call.items()
        if not any(said in key for said in ("prompt_lookup", "matching", "assistant"))
    }
    expected = of.generate(**given, **plain)
    found = of.generate(**given, **call, custom_generate=drafting())
    assert found.dtype == expected.dtype
    assert found.tolist() == expected.tolist()


def test_scores_and_logits_are_those_of_generate() -> None:
    of, given = model("qwen3"), inputs()
    asked = {
        "max_new_tokens": 12, "do_sample": False, "repetition_penalty": 1.5,
        "return_dict_in_generate": True, "output_scores": True, "output_logits": True,
    }  # fmt: skip
    expected = of.generate(**given, **asked)
    found = of.generate(**given, **asked, custom_generate=drafting())
    assert type(found) is type(expected)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for ours, theirs in ((found.scores, expected.scores), (found.logits, expected.logits)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_without_asking_for_them_no_scores_come() -> None:
    out = model("llama").generate(
        **inputs(), max_new_tokens=3, return_dict_in_generate=True, custom_generate=drafting()
    )
    assert out.scores is None
    assert out.logits is None


class Collected(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_the_prompt_and_then_every_token() -> None:
    streamer = Collected()
    out = model("llama").generate(
        **inputs(), max_new_tokens=15, do_sample=False, streamer=streamer, custom_generate=drafting()
    )
    assert streamer.tokens == out[0].tolist()
    assert streamer.ended


def test_an_assistant_model_drafts() -> None:
    of, given = model("llama"), inputs()
    expected = of.generate(**given, max_new_tokens=20, do_sample=False)
    by = speculative("none", policy="fixed")
    found = of.generate(**given, max_new_tokens=20, do_sample=False, assistant_model=of, custom_generate=by)
    assert found.tolist() == expected.tolist()
    (engine,) = by._engines.values()
    assert type(engine.drafters["drafter"]).__name__ == "ModelDrafter"


def test_an_assistant_with_another_vocabulary_is_refused() -> None:
    other = small("llama", vocab_size=50)
    with pytest.raises(IncompatibleDrafter, match="assistant_model has 50 tokens"):
        model("llama").generate(
            **inputs(), max_new_tokens=4, assistant_model=other, custom_generate=drafting()
        )


def test_sampled_answers_follow_torchs_seed_and_no_drafter() -> None:
    of, given = model("llama"), inputs((4, 9))
    asked = {"do_sample": True, "temperature": 0.9, "top_k": 30, "top_p": 0.95, "max_new_tokens": 20}
    found = []
    for drafter in ("none", DRAFTER, DRAFTER):
        torch.manual_seed(3)
        by = speculative(drafter, policy="fixed", rows=8)
        found.append(of.generate(**given, **asked, pad_token_id=0, custom_generate=by).tolist())
    assert found[0] == found[1] == found[2]
    torch.manual_seed(4)
    assert of.generate(**given, **asked, pad_token_id=0, custom_generate=by).tolist() != found[0]


@pytest.mark.parametrize("rule", ["match", "recursive"])
def test_sampled_answers_have_the_law_of_generate(rule: str) -> None:
    """Of the first two tokens, against the law that the model's own scores give. False alarms: 1e-6."""
    of, given = small("llama", vocab_size=12, eos_token_id=None), {"input_ids": torch.tensor([[3, 4, 3]])}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    asked = {"do_sample": True, "temperature": 1.2, "top_k": 5, "max_new_tokens": 2, "pad_token_id": 0}
    law = {}
    for first in range(12):
        whole = torch.tensor([[3, 4, 3, first]])
        with torch.no_grad():
            logits = of(input_ids=whole).logits[0, 2:] / 1.2
        cut = logits.masked_fill(logits < logits.topk(5).values[:, -1:], -torch.inf).softmax(1)
        law |= {(first, second): float(cut[0, first] * cut[1, second]) for second in range(12)}
    torch.manual_seed(0)
    by = speculative("markov:widths=2", policy="fixed", rule=rule)
    seen = [
        tuple(answer[3:])
        for _ in range(20)
        for answer in of.generate(**given, **asked, num_return_sequences=50, custom_generate=by).tolist()
    ]
    assert chi_square(seen, law) > 1e-6
    assert chi_square([(second, first) for first, second in seen], law) < 1e-6


@pytest.mark.parametrize(
    "drafter",
    ["eagle3:model=FOLDER,min_probability=0", "exit:layers=2,min_probability=0", "skip:min_probability=0"],
)
def test_drafters_that_the_model_takes_part_in_draft_in_generate(
    drafter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, drafted = TorchTarget.forward, list[int]()

    def forward(target: TorchTarget, draft: Draft, taps: frozenset[str]) -> Scores:
        ends = zip(draft.roots, draft.offsets[1:].tolist(), strict=True)
        drafted.extend(end - root - 1 for root, end in ends if root >= 0)
        return own(target, draft, taps)

    monkeypatch.setattr(TorchTarget, "forward", forward)
    drafter = drafter.replace("FOLDER", str(trained_eagle3(tmp_path / "drafter")))
    of, given, by = model("llama"), inputs((5, 12)), speculative(drafter, policy="fixed")
    expected = of.generate(**given, max_new_tokens=15, do_sample=False)
    found = of.generate(**given, max_new_tokens=15, do_sample=False, custom_generate=by)
    assert found.tolist() == expected.tolist()
    assert sum(drafted) > 10


def test_accelerate_makes_generate_speculative() -> None:
    of, given = small("qwen2"), inputs((5, 12))
    expected = of.generate(**given, max_new_tokens=15, do_sample=False)
    assert paceline.accelerate(of, drafter=DRAFTER) is of
    streamer = Collected()
    assert of.generate(**given, max_new_tokens=15, do_sample=False).tolist() == expected.tolist()
    alone = {key: value[1:] for key, value in given.items()}
    out = of.generate(**alone, max_new_tokens=15, do_sample=False, streamer=streamer)
    assert streamer.tokens == out[0].tolist()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"penalty_alpha": 0.6, "top_k": 4, "do_sample": False}, "contrastive search"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
        ({"cache_implementation": "offloaded"}, "cache_implementation"),
        ({"assistant_early_exit": 3}, "exit:layers must be from 1 to 2"),
        ({"max_new_tokens": 1000}, "max_length is 1009"),
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"token_type_ids": torch.zeros(1, 9, dtype=torch.int64)}, "token_type_ids"),
        ({"position_ids": torch.arange(2, 11)[None]}, "position_ids"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_honoured_is_refused_by_name(asked: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=says):
        model("llama").generate(**inputs(), **{"max_new_tokens": 4, **asked}, custom_generate=drafting())


def test_a_batch_has_no_streamer() -> None:
    with pytest.raises(ConfigError, match="streamer"):
        model("llama").generate(
            **inputs((4, 9)), max_new_tokens=4, streamer=Collected(), custom_generate=drafting()
        )


def test_padding_on_the_right_is_refused() -> None:
    given = inputs((4, 9))
    given["attention_mask"] = given["attention_mask"].flip(1)
    with pytest.raises(ConfigError, match="padded on their left"):
        model("llama").generate(**given, max_new_tokens=4, custom_generate=drafting())


def test_after_an_error_the_next_call_works() -> None:
    class Breaks(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            if input_ids.shape[1] > 12:
                raise RuntimeError("broken")
            return scores

    of, by, given = model("llama"), drafting(), inputs()
    with pytest.raises(RuntimeError, match="broken"):
        of.generate(
            **given, max_new_tokens=9, logits_processor=LogitsProcessorList([Breaks()]), custom_generate=by
        )
    found = of.generate(**given, max_new_tokens=9, do_sample=False, custom_generate=by)
    assert found.tolist() == of.generate(**given, max_new_tokens=9, do_sample=False).tolist()


def test_scores_that_leave_no_token_are_an_error() -> None:
    class Nothing(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.full_like(scores, -torch.inf)

    with pytest.raises(ConfigError, match="leave no token"):
        model("llama").generate(
            **inputs(),
            max_new_tokens=4,
            logits_processor=LogitsProcessorList([Nothing()]),
            custom_generate=drafting(),
        )


@pytest.mark.parametrize(
    "options", [{"drafter": "guess"}, {"rule": "maybe"}, {"policy": "none"}, {"rule": "top"}]
)
def test_unknown_names_and_lossy_rules_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        speculative(**options)
