"""What a trained drafter brings in the engine, on the answers that it was trained on."""

from __future__ import annotations

from pathlib import Path

from paceline.drafters import load
from paceline.engine import Engine
from paceline.pretrained import offers
from paceline.sampling import SamplingParams
from paceline.targets.native import NativeTarget
from paceline.train.corpus import Corpus


def acceptance_rate(spec: str, model: Path, data: Path, max_tokens: int) -> float:
    """The share of drafted tokens that is accepted in greedy answers to the prompts of a data set, which are
    plain decoding's, with the drafter that `spec` names."""
    target, corpus = NativeTarget.load(model, threads=1), Corpus(data, 1024, 1)
    prompts = sorted({tuple(corpus.tokens(at)[: corpus.prompts[at]].tolist()) for at in range(len(corpus))})
    drafters = {name: load(name, target.info, **offers(target, None)) for name in (spec, "none")}
    engine = Engine(target, drafters, drafter=spec)
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    drafted, plain = (engine.generate(list(map(list, prompts)), params, name) for name in drafters)
    assert engine.load.draft_failures == {}
    assert [one.token_ids for one in drafted] == [one.token_ids for one in plain]
    count = sum(one.stats.drafted for one in drafted)
    assert count >= sum(len(one.token_ids) for one in drafted) / 2
    return sum(one.stats.accepted for one in drafted) / count
