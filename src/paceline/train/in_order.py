"""Many requests through one engine, their completions in the order of the requests."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

from paceline.engine import Engine
from paceline.errors import TrainingError
from paceline.results import Completion
from paceline.sampling import SamplingParams


class Job(NamedTuple):
    """A request. place: where it stands in the list of all that could be asked."""

    prompt: Sequence[int]
    params: SamplingParams
    place: int = 0


def in_order(
    engine: Engine, jobs: Iterable[Job], window: int, drafter: str
) -> Generator[tuple[Job, Completion], None, None]:
    """Each job with its completion, in the order of the jobs, of which at most `window` are under way.
    Closing the iterator cancels these.

    Raises TrainingError if the target fails, and what `Engine.submit` raises.
    """
    source = iter(jobs)
    under_way: dict[int, Job] = {}  # by request, the oldest first
    done: dict[int, Completion] = {}
    try:
        while True:
            while len(under_way) < window and (job := next(source, None)) is not None:
                under_way[engine.submit(job.prompt, job.params, drafter)] = job
            if not under_way:
                return
            for event in engine.step():
                if event.finish is not None:
                    if event.finish.finish_reason == "error":
                        raise TrainingError(str(event.finish.stop_reason))
                    done[event.request] = event.finish
            while under_way and (first := next(iter(under_way))) in done:
                yield under_way.pop(first), done.pop(first)
    finally:
        for request in under_way:
            engine.cancel(request)
