"""Passes played from CUDA graphs are the passes that were recorded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from paceline.targets import torch_graphs
from paceline.targets.torch import TorchTarget
from tests.torch.families import small
from tests.torch.test_graphs import TAPS, again, answers, read, results, step

pytestmark = pytest.mark.gpu
STEPS = ((0,), (1,), (0, 1, 2, 3), (3, 2, 0, 1), (0,), (2, 0))
DENSE = ("gemma2", "gpt2", "llama", "mistral", "qwen3")


def on_gpu(family: str, dtype: torch.dtype) -> Any:
    return small(family, dtype).to("cuda")


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_those_of_the_same_passes_computed(
    family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = on_gpu(family, dtype)
    played = TorchTarget(of, graphs=True)
    assert played.isa.endswith(", graphs")
    with monkeypatch.context() as patched:
        patched.setattr(torch_graphs, "recorder", lambda device: again)
        computed = TorchTarget(of, graphs=True)
        for target in (played, computed):
            read(target)
        expected = [results(computed, step(*slots)) for slots in STEPS]
    for slots, own in zip(STEPS, expected, strict=True):
        assert_array_equal(results(played, step(*slots)), own)


@pytest.mark.parametrize("family", [*DENSE, "gpt_oss", "qwen3_moe"])
def test_they_agree_with_passes_that_are_not_filled_up(family: str) -> None:
    of = on_gpu(family, torch.float32)
    plain, played = TorchTarget(of, graphs=False), TorchTarget(of)
    for target in (plain, played):
        read(target)
    for slots in STEPS:
        first, second = (target.forward(step(*slots), TAPS) for target in (plain, played))
        assert_allclose(np.asarray(second.logits), np.asarray(first.logits), rtol=1e-3, atol=1e-3)
        for tap in TAPS:
            assert_allclose(second.features[tap], first.features[tap], rtol=1e-3, atol=1e-3)


def test_answers_with_drafts_are_plain_decodings() -> None:
    target = TorchTarget(on_gpu("llama", torch.float32))
    assert answers(target, "recycling:min_probability=1e-6") == answers(target, "none")
