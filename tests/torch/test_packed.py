"""Weights laid out a second time: the same bits, also after they changed, and no trace of it in the model."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from paceline.targets import torch_packed
from paceline.targets.torch import TorchTarget
from paceline.targets.torch_packed import Packed
from tests.torch.families import small
from tests.torch.test_target import draft, words

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this CPU has no products of 16 bits",
)


def logits(target: TorchTarget) -> NDArray[Any]:
    found = np.array(target.forward(draft(words(9), 0), frozenset()).logits)
    target.release([0])
    return found


@pytest.mark.parametrize("family", ["gpt_oss", "llama", "qwen2"])  # qwen2 has biases
def test_the_bits_are_those_of_plain_products(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TorchTarget(small(family, torch.bfloat16))
    packed = logits(target)
    assert "packed weights" in target.isa
    monkeypatch.setattr(Packed, "on", lambda packed: nullcontext())
    assert_array_equal(packed, logits(target))


def in_place(of: Any) -> None:
    with torch.no_grad():
        of.model.layers[0].mlp.up_proj.weight *= 1.5


def another(of: Any) -> None:
    of.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(of.model.layers[0].mlp.up_proj.weight * 1.5)


def trained(of: Any) -> None:
    optimizer = torch.optim.SGD(of.parameters(), 0.5)
    of(input_ids=torch.tensor([words(9)]), labels=torch.tensor([words(9)])).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("change", [in_place, another, trained])
def test_weights_that_change_are_laid_out_again(change: Any) -> None:
    of = small("llama", torch.bfloat16)
    target = TorchTarget(of)
    before = logits(target)
    change(of)
    after = logits(target)
    assert (after != before).any()
    assert_array_equal(after, logits(TorchTarget(of)))


def test_a_weight_that_is_not_looked_at_again_is_noticed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    of = small("llama", torch.bfloat16)
    target = TorchTarget(of)

    def begin(layer: Any) -> None:
        layer._own["forward"] = layer._forward

    monkeypatch.setattr(torch_packed._Layer, "begin", begin)
    before = logits(target)
    in_place(of)
    assert_array_equal(before, logits(target))


def test_layers_are_as_they_were_and_their_hooks_run() -> None:
    of = small("llama", torch.bfloat16)
    runs: list[int] = []
    of.lm_head.register_forward_hook(lambda *_: runs.append(1))
    target = TorchTarget(of)
    runs.clear()
    logits(target)
    assert runs == [1]
    assert all("forward" not in vars(module) for module in of.modules())


def test_only_layers_of_pytorchs_own_kind_in_16_bits_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(torch.nn.Linear):
        pass

    def layers(*modules: torch.nn.Module) -> int:
        return Packed(torch.nn.Sequential(*modules).to(torch.bfloat16)).layers

    own = torch.nn.Linear(4, 4)
    own.forward = lambda values: values  # type: ignore[method-assign]
    assert layers(torch.nn.Linear(4, 4), Mine(4, 4), own, torch.nn.Embedding(4, 4)) == 1
    assert Packed(torch.nn.Linear(4, 4)).layers == 0
    monkeypatch.setattr(torch_packed, "SHARE", 1 << 60)
    assert layers(torch.nn.Linear(4, 4)) == 0
