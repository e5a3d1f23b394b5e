"""Timing one answer, by a clock outside the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from paceline.engine import Engine
from paceline.results import Completion
from paceline.sampling import SamplingParams
from paceline.stopwatch import TARGET_STAGES

DRAFT_STAGES = ("propose", "observe")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and its time.

    seconds        from the request to the last token
    first_seconds  from the request to the first token
    target_s       of the time after the first token: inside the target pass
    draft_s        of the time after the first token: inside the drafter
    """

    completion: Completion
    seconds: float
    first_seconds: float
    target_s: float
    draft_s: float

    @property
    def decode_s(self) -> float:
        """Seconds after the first token."""
        return self.seconds - self.first_seconds


def answer(
    engine: Engine,
    prompt: Sequence[int],
    params: SamplingParams,
    drafter: str,
    show: Callable[[str], None] | None = None,
) -> Answer:
    """Answer one prompt alone and take the time. `show` gets the text as it grows; its time counts."""
    start = perf_counter()
    first_seconds = target = draft = 0.0
    completion = None
    for event in engine.stream(prompt, params, drafter):
        if not first_seconds:
            first_seconds = perf_counter() - start
            target, draft = _spent(engine, TARGET_STAGES), _spent(engine, DRAFT_STAGES)
        if show is not None:
            show(event.text)
        completion = event.finish
    seconds = perf_counter() - start
    assert completion is not None, "a stream's last event has the completion"
    return Answer(
        completion,
        seconds,
        first_seconds,
        _spent(engine, TARGET_STAGES) - target,
        _spent(engine, DRAFT_STAGES) - draft,
    )


def same(left: Completion, right: Completion) -> bool:
    """Whether two answers are the same: tokens, text and how they ended."""
    return (left.token_ids, left.text, left.finish_reason, left.stop_reason) == (
        right.token_ids,
        right.text,
        right.finish_reason,
        right.stop_reason,
    )


def _spent(engine: Engine, stages: Sequence[str]) -> float:
    return sum(engine.watch.seconds[stage] for stage in stages)
