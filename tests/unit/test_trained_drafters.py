"""What holds of every trained drafter, on tables that each of them knows in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.core import LAST
from paceline.drafters import load
from paceline.drafters._trained import TrainedDrafter
from paceline.drafters.tasks import Tasks
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter, ModelFileError
from paceline.models.dflash2_folder import read_dflash2
from paceline.models.dflash_folder import read_dflash
from paceline.models.dspark_folder import read_dspark
from paceline.models.eagle3_folder import read_eagle3
from paceline.models.heads_folder import read_heads
from paceline.models.mtp_folder import read_mtp
from paceline.models.pads_folder import read_pads
from paceline.models.redrafter_folder import read_redrafter
from paceline.models.tasks_folder import read_tasks
from paceline.rules import load as load_rule
from paceline.sampling import SamplingParams
from paceline.trained.tasks import NativeTasks
from tests import dflash as dflash_drafters
from tests import dflash2 as dflash2_drafters
from tests import dspark as dspark_drafters
from tests import eagle3 as eagle3_drafters
from tests import heads as heads_drafters
from tests import mtp as mtp_drafters
from tests import pads as pads_drafters
from tests import peagle as peagle_drafters
from tests import redrafter as redrafters
from tests import tasks as tasks_drafters
from tests.pads import pads_for
from tests.toys import AHEAD, SketchingTable
from tests.trained import Late, answers, embedding_of, same, tokens_per_pass
from tests.unit import test_dflash as dflash
from tests.unit import test_dflash2 as dflash2
from tests.unit import test_dspark as dspark
from tests.unit import test_eagle3 as eagle3
from tests.unit import test_hydra as hydra
from tests.unit import test_medusa as medusa
from tests.unit import test_mtp as mtp
from tests.unit import test_peagle as peagle
from tests.unit import test_redrafter as redrafter
from tests.unit import test_tasks as tasks

STATES = frozenset({"hidden.1", "hidden.2", "hidden.3"})


@dataclass(frozen=True, kw_only=True)
class Case:
    """A drafter and a target that it knows.

    made    {width of a level: the drafter}, which never stops early
    least   {temperature: tokens per pass, of 5 that are possible}
    late    tokens per pass that it stays below where it sees the wrong positions; None: it looks at tokens
            alone, see `tests.unit.test_hydra`
    write   puts the drafter into a folder
    read    runs what is in a folder
    kept    what the drafter holds of requests that run
    tokens  of the target that prompts hold, 0: all
    """

    target: SketchingTable
    made: Callable[..., TrainedDrafter | Tasks]
    least: Mapping[float, float]
    late: float | None
    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    kept: Callable[[Any], list[Any]]
    needs: frozenset[str]
    tokens: int = 0


def cases() -> dict[str, Case]:
    additive, additive_weights = eagle3.additive()
    blocks, embedding = dflash_drafters.following_drafter(dflash.SUCCESSORS)
    parallel = peagle_drafters.following_drafter(dflash.SUCCESSORS)
    convolved, _, convolved_head = dflash2_drafters.following_drafter(dflash.SUCCESSORS)
    around, around_heads = medusa.chain(8)
    chain, reading, _ = hydra.chain(2)
    recurring, recurrent = redrafter.chain(2)
    known = pads_drafters.table_pads(around.info.vocab_size)
    parted = tasks_drafters.tasks_of(additive_weights, size=0)
    nothing = embedding_of(np.zeros((additive.info.vocab_size, parted.weight.shape[1]), np.float32))
    return {
        "eagle3": Case(
            target=additive,
            made=partial(eagle3.drafter, additive_weights),
            least={0.0: 4.2, 1.0: 4.2},
            late=2.5,
            write=lambda folder: eagle3_drafters.folder_of(additive_weights, folder),
            read=lambda folder: eagle3.on_kernels(read_eagle3(folder)),
            kept=lambda drafter: [drafter._trained._readings, drafter._trained._room._held],
            needs=STATES,
        ),
        "dflash": Case(
            target=dflash.following(),
            made=dflash.drafter,
            least={0.0: 4.6, 1.0: 3.3},
            late=2,
            write=lambda folder: dflash_drafters.folder_of(blocks, folder),
            read=lambda folder: dflash_drafters.run(read_dflash(folder), embedding, layers=4),
            kept=lambda drafter: [
                drafter._blocks._begins,
                drafter._blocks._drafted,
                drafter._blocks._room._held,
                drafter._blocks._model._texts,
            ],
            needs=STATES,
            tokens=dflash.MASK,
        ),
        "dflash2": Case(
            target=dflash.following(),
            made=dflash2.following,
            least={0.0: 4.6, 1.0: 3.3},
            late=2,
            write=lambda folder: dflash2_drafters.folder_of(convolved, folder),
            read=lambda folder: dflash2_drafters.run(
                read_dflash2(folder), embedding, convolved_head, layers=4
            ),
            kept=lambda drafter: [
                drafter._blocks._begins,
                drafter._blocks._drafted,
                drafter._blocks._room._held,
                drafter._blocks._model._texts,
            ],
            needs=STATES,
            tokens=dflash.MASK,
        ),
        "dspark": Case(
            target=dspark.following(6.0),
            made=dspark.drafter,
            least={0.0: 3.8, 1.0: 3.1},
            late=2.3,
            write=lambda folder: dspark_drafters.folder_of(dspark.knowing(), folder),
            read=lambda folder: dspark.on_kernels(read_dspark(folder)),
            kept=lambda drafter: [
                drafter._blocks._begins,
                drafter._blocks._drafted,
                drafter._blocks._room._held,
                drafter._blocks._model._texts,
            ],
            needs=STATES,
            tokens=dflash.MASK,
        ),
        "peagle": Case(
            target=dflash.following(),
            made=peagle.drafter,
            least={0.0: 4.6, 1.0: 3.3},
            late=2,
            write=lambda folder: peagle_drafters.folder_of(parallel, folder),
            read=lambda folder: peagle.on_kernels(read_eagle3(folder, "peagle")),
            kept=lambda drafter: [
                drafter._trained._readings,
                drafter._trained._drafted,
                drafter._trained._room._held,
            ],
            needs=STATES,
            tokens=dflash.MASK,
        ),
        "mtp": Case(
            target=dflash.following(),
            made=mtp.drafter,
            least={0.0: 4.6, 1.0: 3.3},
            late=2,
            write=lambda folder: mtp_drafters.folder_of(mtp.MODULE, folder),
            read=lambda folder: mtp.on_kernels(read_mtp(folder)),
            kept=lambda drafter: [drafter._trained._readings, drafter._trained._room._held],
            needs=frozenset({LAST}),
            tokens=dflash.MASK,
        ),
        "medusa": Case(
            target=around,
            made=partial(medusa.drafter, around_heads),
            least={0.0: 4.3, 1.0: 4.3},
            late=1.5,
            write=lambda folder: heads_drafters.folder_of(around_heads, folder),
            read=lambda folder: heads_drafters.run(read_heads(folder, "medusa")),
            kept=lambda drafter: [
                drafter._levels._states,
                drafter._levels._levels,
                drafter._siblings._proposed,
            ],
            needs=frozenset({LAST}),
        ),
        "hydra": Case(
            target=chain,
            made=partial(hydra.drafter, reading),
            least={0.0: 4.3, 1.0: 4.0},
            late=None,
            write=lambda folder: heads_drafters.folder_of(reading, folder),
            read=lambda folder: heads_drafters.run(read_heads(folder, "hydra")),
            kept=lambda drafter: [drafter._trained._states],
            needs=frozenset({LAST}),
        ),
        "pads": Case(
            target=around,
            made=partial(padded, around),
            least={0.0: 4.3, 1.0: 4.3},
            late=1.5,
            write=lambda folder: pads_drafters.folder_of(known, folder),
            read=lambda folder: pads_drafters.run(read_pads(folder), around),
            kept=lambda drafter: [
                drafter._levels._states,
                drafter._levels._levels,
                drafter._siblings._proposed,
            ],
            needs=frozenset({AHEAD}),
        ),
        "redrafter": Case(
            target=recurring,
            made=partial(redrafter.drafter, recurrent),
            least={0.0: 4.3, 1.0: 4.0},
            late=None,
            write=lambda folder: redrafters.folder_of(recurrent, folder),
            read=lambda folder: redrafters.run(read_redrafter(folder)),
            kept=lambda drafter: [drafter._trained._states, drafter._trained._reached],
            needs=frozenset({LAST}),
        ),
        "tasks": Case(
            target=additive,
            made=lambda options=medusa.CHAIN: tasks.drafter(
                *(eagle3.on_kernels(additive_weights) for _ in range(2)), options=options
            ),
            least={0.0: 4.2, 1.0: 4.2},
            late=2.5,
            write=lambda folder: tasks_drafters.folder_of(parted, folder),
            read=lambda folder: NativeTasks(read_tasks(folder), nothing, eagle3.on_kernels),
            kept=lambda drafter: [
                drafter._chosen,
                *(part._trained._readings for part in drafter._parts),
                *(part._trained._room._held for part in drafter._parts),
            ],
            needs=STATES,
        ),
    }


def padded(target: SketchingTable, options: str = medusa.CHAIN) -> TrainedDrafter:
    made = load(f"pads:model=here,{options}", target.info, load_trained=lambda *_: pads_for(target))
    assert isinstance(made, TrainedDrafter)
    return made


CASES = cases()


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def case(name: str) -> Case:
    return CASES[name]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch", [1, 7])
def test_one_that_knows_the_law_is_nearly_always_right(case: Case, temperature: float, batch: int) -> None:
    """What it reads comes from the right positions and what it says goes to the right ones, through chunks of
    prompt, drafts accepted in part, and several requests at once."""
    options = {"max_batch": batch, "chunk_tokens": 16, "nodes": 4 * batch, "tokens": case.tokens}
    done = answers(case.target, case.made(), temperature, **options)
    assert same(done, answers(case.target, None, temperature, tokens=case.tokens))
    assert tokens_per_pass(done) > case.least[temperature], "of 5 that are possible"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.late is not None])
def test_one_that_sees_the_wrong_positions_is_hardly_ever_right(case: Case) -> None:
    """The twin: the same drafter, shown each hidden state one position too late."""
    assert case.late is not None
    done = answers(Late(case.target), case.made(), 1.0, max_batch=1, tokens=case.tokens)
    assert same(done, answers(case.target, None, 1.0, tokens=case.tokens))
    assert tokens_per_pass(done) < case.late


@pytest.mark.parametrize("rule", ["rejection", "recursive", "traversal", "block"])
def test_it_is_accepted_under_rules_that_compare_laws(case: Case, rule: str) -> None:
    for drawn in ("iid", "without_replacement"):
        chosen = load_rule(rule)
        drafter = case.made(f"widths={'2x1x1' if chosen.trees else '1x1x1'},min_probability=0,drawn={drawn}")
        if not chosen.trees:
            drafter.branches = False
        if drawn == "iid" or {*drafter.drawn} <= chosen.takes:
            done = answers(case.target, drafter, 1.0, rule=chosen, nodes=32, tokens=case.tokens)
            assert tokens_per_pass(done) > 2.5


def test_a_request_that_lost_its_place_is_drafted_for_again(case: Case) -> None:
    engine = Engine(case.target, {"d": case.made()}, drafter="d")
    params = SamplingParams(temperature=0, max_tokens=60)
    request = engine.submit([1, 2, 3], params)
    finish, steps = None, 0
    while finish is None:
        finish = next((event.finish for event in engine.step() if event.finish), None)
        steps += 1
        if steps == 5:
            engine.preempt(request)
    assert engine.load.preemptions == 1
    assert steps < 20
    plain = Engine(case.target, {"none": load("none", case.target.info)}, drafter="none")
    assert finish.token_ids == plain.generate([1, 2, 3], params)[0].token_ids


def test_ended_and_cancelled_requests_leave_nothing_behind(case: Case) -> None:
    drafter = case.made()
    engine = Engine(case.target, {"d": drafter}, drafter="d")
    requests = [engine.submit([1, 2, 3, seed], SamplingParams(max_tokens=30)) for seed in range(4)]
    for _ in range(3):
        engine.step()
    assert any(case.kept(drafter))
    for request in requests:
        engine.cancel(request)
    assert not any(case.kept(drafter))


def test_it_is_read_from_its_folder(name: str, case: Case, tmp_path: Path) -> None:
    folder = case.write(tmp_path / "drafter")
    drafter = load(
        f"{name}:model={folder},min_probability=0",
        case.target.info,
        load_trained=lambda kind, path: case.read(Path(path)),
    )
    assert drafter.needs == case.needs
    done = answers(case.target, drafter, 0.0, prompts=3, max_batch=1, tokens=case.tokens)
    assert tokens_per_pass(done) > 4


def test_bad_options_are_refused(name: str, case: Case) -> None:
    info = case.target.info
    offered = {"load_trained": lambda kind, path: case.read(Path(path))}
    for options, message in (
        ("", ":model must name a trained drafter's folder, as in .*:model=FOLDER"),
        (":model=x,widths=0", ":widths must be numbers from 1 to 64"),
        (":model=x,min_probability=1", ":min_probability must be at least 0, below 1"),
        (":model=x,drawn=twice", ":drawn must be iid or without_replacement"),
    ):
        with pytest.raises(ConfigError, match=name + message):
            load(name + options, info, **offered)
    with pytest.raises(ModelFileError, match=r"config\.json cannot be read"):
        load(f"{name}:model=nowhere", info, **offered)
    with pytest.raises(IncompatibleDrafter, match=f"{name} needs a load_trained, and table offers none"):
        load(f"{name}:model=x", info)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("eagle3:model=x,frontier=-1", "eagle3:frontier must be from 0 to 64, got -1"),
        ("mtp:model=x,frontier=-1", "mtp:frontier must be from 0 to 64, got -1"),
        ("peagle:model=x,frontier=-1", "peagle:frontier must be from 0 to 64, got -1"),
        ("redrafter:model=x,frontier=65", "redrafter:frontier must be from 0 to 64, got 65"),
        ("hydra:model=x,frontier=65", "hydra:frontier must be from 0 to 64, got 65"),
        ("dflash:model=x,candidates=0", "dflash:candidates must be from 1 to 64, got 0"),
        ("dflash2:model=x,candidates=65", "dflash2:candidates must be from 1 to 64, got 65"),
        ("medusa:model=x,frontier=2", "medusa has no option 'frontier'"),
        ("pads:model=x,frontier=2", "pads has no option 'frontier'"),
    ],
)
def test_bad_options_of_one_of_them_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(spec, SketchingTable().info, load_trained=lambda kind, path: None)
