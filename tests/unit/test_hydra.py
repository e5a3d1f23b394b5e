"""The drafter hydra on a table whose law its heads know in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from paceline.core import LAST, Budget, Tree, View
from paceline.drafters import load
from paceline.drafters.hydra import Hydra
from paceline.engine import Engine
from paceline.errors import ConfigError, ModelFileError
from paceline.models.heads_folder import HeadsWeights, read_heads
from paceline.rules import load as load_rule
from paceline.sampling import SamplingParams
from tests.eagle3 import embedding_of
from tests.heads import chain_heads, embeddings, folder_of, reading_heads, run
from tests.toys import VOCABULARY, SketchingTable
from tests.unit.test_medusa import answers as medusa_answers
from tests.unit.test_medusa import drafter as medusa
from tests.unit.test_medusa import same, tokens_per_pass

CHAIN = "widths=1x1x1x1,min_probability=0"


def chain(spread: float, seed: int = 0) -> tuple[SketchingTable, HeadsWeights, HeadsWeights]:
    """A table whose law hangs on the last token alone, Hydra's heads that know it, and Medusa's that know
    what follows on average."""
    logits = np.random.default_rng(seed).normal(0, spread, (VOCABULARY, VOCABULARY))
    target = SketchingTable()
    target.table = np.repeat(logits[None], VOCABULARY, 0)
    law = np.exp(logits)
    law /= law.sum(1, keepdims=True)
    return target, reading_heads(law), chain_heads(law)


def drafter(weights: HeadsWeights, options: str = CHAIN) -> Hydra:
    made = load(f"hydra:model=here,{options}", SketchingTable().info, load_heads=lambda kind, _: run(weights))
    assert isinstance(made, Hydra)
    return made


@pytest.mark.parametrize(("temperature", "least"), [(0.0, 4.3), (1.0, 4.0)])
@pytest.mark.parametrize("batch", [1, 7])
def test_heads_that_know_the_law_are_nearly_always_right(
    temperature: float, least: float, batch: int
) -> None:
    target, weights, _ = chain(2)
    options = {"max_batch": batch, "chunk_tokens": 16, "nodes": 4 * batch}
    done = medusa_answers(target, drafter(weights), temperature, **options)
    assert same(done, medusa_answers(target, None, temperature))
    assert tokens_per_pass(done) > least, "of 5 that are possible"


def test_heads_that_read_no_tokens_know_less_of_the_same_law() -> None:
    """The twin: without the tokens above it no head can be as good at a temperature."""
    target, reading, blind = chain(2)
    done = medusa_answers(target, drafter(reading), 1.0, max_batch=1)
    other = medusa_answers(target, medusa(blind), 1.0, max_batch=1)
    assert tokens_per_pass(done) > 2 * tokens_per_pass(other)


def test_heads_that_read_other_embeddings_are_hardly_ever_right() -> None:
    """The twin: the embedding of each token is that of its neighbour."""
    target, weights, _ = chain(2)
    from paceline.trained.heads import NativeHeads

    shifted = np.roll(embeddings(weights.config), 1, axis=0)
    heads = NativeHeads(weights, embedding_of(shifted))
    kinds = next(iter(drafter(weights).drawn))
    done = medusa_answers(target, Hydra(heads, VOCABULARY, [1, 1, 1, 1], kinds, 0.0), 1.0, max_batch=1)
    assert same(done, medusa_answers(target, None, 1.0))
    assert tokens_per_pass(done) < 1.5


@pytest.mark.parametrize("rule", ["rejection", "recursive", "traversal", "block"])
def test_they_are_accepted_under_rules_that_compare_laws(rule: str) -> None:
    target, weights, _ = chain(2)
    for drawn in ("iid", "without_replacement"):
        chosen = load_rule(rule)
        widths = "2x1x1" if chosen.trees else "1x1x1"
        hydra = drafter(weights, f"widths={widths},min_probability=0,drawn={drawn}")
        if drawn == "iid" or {*hydra.drawn} <= chosen.takes:
            assert tokens_per_pass(medusa_answers(target, hydra, 1.0, rule=chosen, nodes=32)) > 2.5


def test_the_likeliest_of_a_few_nodes_of_each_level_are_accepted_too() -> None:
    target, weights, _ = chain(1)
    tree = drafter(weights, "widths=3x3x3x3,frontier=2,min_probability=0")
    done = medusa_answers(target, tree, 1.0, max_batch=3, nodes=24)
    assert same(done, medusa_answers(target, None, 1.0))
    assert tokens_per_pass(done) > 2.5


def test_every_law_is_that_behind_its_own_path() -> None:
    target, weights, _ = chain(1)
    law = np.exp(target.table[0])
    law /= law.sum(1, keepdims=True)
    compared = 0

    class Seen(Hydra):
        def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
            nonlocal compared
            trees = super().propose(view, budgets)
            for row, tree in enumerate(trees):
                for node, parent in enumerate(tree.parents):
                    above = tree.tokens[parent] if parent >= 0 else view.histories[row][-1]
                    assert np.abs(tree.origins[node].law - law[above]).max() < 0.02
                    compared += 1
            return trees

    kinds = next(iter(drafter(weights).drawn))
    hydra = Seen(run(weights), VOCABULARY, [2, 2, 1], kinds, 0.0)
    medusa_answers(target, hydra, 1.0, prompts=4, rule=load_rule("traversal"), nodes=40)
    assert compared > 100


def test_ended_requests_leave_nothing_behind() -> None:
    target, weights, _ = chain(2)
    hydra = drafter(weights)
    engine = Engine(target, {"hydra": hydra}, drafter="hydra")
    requests = [engine.submit([1, 2, 3, seed], SamplingParams(max_tokens=30)) for seed in range(4)]
    for _ in range(3):
        engine.step()
    assert hydra._heads._states
    for request in requests:
        engine.cancel(request)
    assert not hydra._heads._states


def test_they_are_read_from_their_folder_and_medusas_are_refused(tmp_path: Path) -> None:
    target, weights, others = chain(2)
    for name, held in (("heads", weights), ("others", others)):
        folder_of(held, tmp_path / name)
    hydra = load(
        f"hydra:model={tmp_path / 'heads'},min_probability=0",
        target.info,
        load_heads=lambda kind, path: run(read_heads(Path(path), kind)),
    )
    assert hydra.needs == {LAST}
    assert isinstance(hydra, Hydra)
    assert tokens_per_pass(medusa_answers(target, hydra, 0.0, prompts=3, max_batch=1)) > 4
    with pytest.raises(ModelFileError, match=r'model_type is "medusa", expected "hydra"'):
        load(
            f"hydra:model={tmp_path / 'others'}",
            target.info,
            load_heads=lambda kind, path: run(read_heads(Path(path), kind)),
        )


def test_bad_options_are_refused() -> None:
    for spec, message in (
        ("hydra", "hydra:model must name the folder of trained heads"),
        ("hydra:model=x,widths=0", "hydra:widths must be numbers from 1 to 64"),
        ("hydra:model=x,frontier=65", "hydra:frontier must be from 0 to 64, got 65"),
        ("hydra:model=x,min_probability=1", "hydra:min_probability must be at least 0, below 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(spec, SketchingTable().info, load_heads=lambda kind, path: run(read_heads(Path(path), kind)))
