"""The drafter that comes with the package, on its target."""

from __future__ import annotations

import pytest

from paceline.drafters import load
from paceline.engine import Engine
from paceline.pretrained import offers
from paceline.sampling import SamplingParams
from tests.real_model import prompts, target, tokenizer

pytestmark = pytest.mark.model


@pytest.mark.parametrize(("temperature", "least"), [(0.0, 1.5), (1.0, 1.2)])
def test_it_is_accepted_and_changes_no_answer(temperature: float, least: float) -> None:
    model = target()
    drafter = load("eagle3:min_probability=0.1", model.info, **offers(model, tokenizer()))
    engine = Engine(
        model,
        {"eagle3": drafter, "none": load("none", model.info)},
        drafter="eagle3",
        tokenizer=tokenizer(),
        share_prefixes=False,
    )
    params = SamplingParams(temperature=temperature, max_tokens=48, seed=3)
    drafted = engine.generate(prompts(6), params, "eagle3")
    plain = engine.generate(prompts(6), params, "none")
    assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
    assert sum(one.stats.tokens for one in drafted) > least * sum(one.stats.passes for one in drafted)
