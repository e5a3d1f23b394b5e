"""The head with its loss, and the attention of drafts, against their slow references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from paceline.train.batches import STEP
from paceline.train.draft_attention import draft_attention, reference
from paceline.train.head_loss import head_divergence
from paceline.train.losses import divergence
from paceline.train.settings import LOSSES


def near(found: Tensor, expected: Tensor, bits: int) -> None:
    """Equal up to that many bits of the largest number."""
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() <= expected.abs().max() * 2.0**-bits


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("mixed", [False, True])
def test_the_head_and_its_loss_are_those_of_the_whole_matrix_of_logits(kind: str, mixed: bool) -> None:
    torch.manual_seed(1)
    count, width, size = 2 * STEP + 5, 16, 50
    read = torch.randn(count, width).requires_grad_()
    head = torch.randn(size, width).requires_grad_()
    laws = torch.randn(30, size).mul(3).softmax(-1)
    laws[0] = torch.eye(size)[7]  # most probabilities are 0
    rows = torch.randint(30, (count,))
    rows[:3] = 0
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        loss, overlap = head_divergence(kind, read, head, laws, rows)
        logits = torch.nn.functional.linear(read, head)
        expected = divergence(kind, logits, laws[rows]).sum()
    shared = torch.minimum(logits.float().softmax(-1), laws[rows]).sum(-1)
    near(loss.detach(), expected.detach(), 20)
    near(overlap, shared.detach(), 18)
    assert not overlap.requires_grad
    found = torch.autograd.grad(3 * loss, (read, head))
    for own, other in zip(found, torch.autograd.grad(3 * expected, (read, head)), strict=True):
        near(own, other, 5 if mixed else 18)
        assert other.abs().max() > 0.1


@pytest.mark.parametrize("depths", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_attention_of_drafts_is_that_of_all_scores_at_once(depths: int, dtype: torch.dtype) -> None:
    torch.manual_seed(2)

    def part() -> Tensor:
        return torch.randn(2, 3, 37, 16).to(dtype).requires_grad_()

    q, seen = part(), [(part(), part()) for _ in range(depths)]
    parts = [q, *(side for pair in seen for side in pair)]
    slope = torch.randn(2, 3, 37, 16).to(dtype)
    results = []
    for attend in (draft_attention, reference):
        out = attend(q, seen)
        results.append([out.detach(), *torch.autograd.grad(out, parts, slope)])
    for own, other in zip(*results, strict=True):
        near(own, other, 5 if dtype == torch.bfloat16 else 18)
