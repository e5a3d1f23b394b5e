"""What one target pass costs, by the number of tokens in it, beside what memory would allow.

A pass over n tokens is a verification: the pending token and n - 1 drafted ones, all scored, after `context`
tokens of one sequence. Nothing is kept of it, so every pass sees the same cache. Row counts take turns, so
that a machine that gets slower or faster does so for all.

A pass reads all weights once, so it cannot be faster than a plain stream over as many bytes. That floor is
measured by reading a buffer as large as the weights again and again: a part of either may stay in the
processor's cache from one pass to the next, and the stream test gets the same help from it as a pass does.
It is compared with passes over one token again and again, for one behind a pass over many tokens is slower
where long arithmetic lowers a processor's clock. Beside it stands the speed of memory alone, over a buffer
that no cache holds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from paceline import kernels
from paceline.bench.machine import machine, versions
from paceline.core import Draft, Verdict
from paceline.errors import ConfigError
from paceline.targets.native import NativeTarget
from paceline.targets.weights import PackedWeights, load_weights

REPEATS = 21
STAGE_REPEATS = 5
STREAM_REPEATS = 9
STEADY_ROUNDS = 3
MEMORY_BUFFER = 1 << 29  # several times the largest common last-level cache
CHUNK = 256
SLOT = 0

Note = Callable[[str], None]


def run(*, model: str, rows: list[int], context: int, threads: int | None, note: Note) -> dict[str, Any]:
    """Time passes of a model, and return the report that `paceline bench step --json` prints.

    rows: numbers of tokens in a pass; context: tokens in the cache before it; note: called with remarks on
    what is going on. milliseconds holds the median of each row count, ratios what it costs in passes over
    one token, stages where the time of a pass goes, steady_ms what one token takes again and again.

    Raises ConfigError, ModelFileError.
    """
    from paceline.models.registry import resolve

    rows = sorted(set(rows))
    note(f"loading {model}")
    weights = load_weights(resolve(model))
    target = NativeTarget(weights, threads=threads)
    if context + rows[-1] > target.info.max_positions:
        raise ConfigError(
            f"context {context} and {rows[-1]} rows are {context + rows[-1]} tokens; {target.info.name} "
            f"takes {target.info.max_positions}"
        )
    bench = Passes(target, context)
    weight_bytes = bytes_per_pass(weights)
    note(f"timing passes over {', '.join(map(str, rows))} tokens after {context}")
    steady: list[float] = []
    stream: list[float | None] = []
    for _ in range(STEADY_ROUNDS):
        stream.append(_bandwidth(weight_bytes, target.model.threads))
        steady += bench.time([1], REPEATS)[1]
    bandwidth = max(filter(None, stream), default=None)
    seconds = bench.time(rows if 1 in rows else [1, *rows], REPEATS)
    medians = {n: statistics.median(times) for n, times in seconds.items()}
    return {
        "model": model,
        "title": target.info.name,
        "context": context,
        "milliseconds": {str(n): medians[n] * 1e3 for n in rows},
        "quartiles": {str(n): _quartiles(seconds[n]) for n in rows},
        "ratios": {str(n): medians[n] / medians[1] for n in rows},
        "repeats": REPEATS,
        "steady_ms": statistics.median(steady) * 1e3,
        "weight_bytes": weight_bytes,
        "bandwidth_gb_per_s": bandwidth,
        "floor_ms": None if bandwidth is None else weight_bytes / bandwidth / 1e6,
        "memory_bandwidth_gb_per_s": _bandwidth(MEMORY_BUFFER, target.model.threads),
        "stages": {str(n): bench.stages(n) for n in rows},
        "machine": machine(target.isa, target.threads),
        "versions": versions(),
    }


class Passes:
    """A target with `context` tokens of one sequence in its cache."""

    def __init__(self, target: NativeTarget, context: int) -> None:
        self._target = target
        self._context = context
        self._random = np.random.default_rng(0)
        for start in range(0, context, CHUNK):
            draft = self._draft(start, min(CHUNK, context - start), scored=False)
            target.forward(draft, frozenset())
            target.commit(draft, Verdict([[]], [-1]))

    def medians(self, rows: list[int], repeats: int) -> dict[int, float]:
        """{tokens in a pass: median of its seconds}."""
        return {n: statistics.median(times) for n, times in self.time(rows, repeats).items()}

    def time(self, rows: list[int], repeats: int) -> dict[int, list[float]]:
        """Seconds of `repeats` passes per row count, after one that does not count."""
        seconds: dict[int, list[float]] = {n: [] for n in rows}
        for n in rows:
            self._pass(n)
        for turn in range(repeats):
            first = turn % len(rows)
            for n in (*rows[first:], *rows[:first]):
                seconds[n].append(self._pass(n))
        return seconds

    def stages(self, n: int) -> dict[str, float]:
        """Milliseconds that each stage of the compiled kernels takes in a pass over n tokens."""
        model = self._target.model
        if model.isa == "reference":
            return {}
        model.measure_stages(True)
        for _ in range(STAGE_REPEATS):
            self._pass(n)
        stages = {stage: s / STAGE_REPEATS * 1e3 for stage, s in model.stage_seconds.items()}
        model.measure_stages(False)
        return stages

    def _pass(self, n: int) -> float:
        draft = self._draft(self._context, n, scored=True)
        start = perf_counter()
        self._target.forward(draft, frozenset())
        return perf_counter() - start

    def _draft(self, start: int, count: int, *, scored: bool) -> Draft:
        """A chain of random tokens from position `start` on: its first one known and the others drafted,
        or, if nothing is scored, all known."""
        vocabulary = self._target.info.vocab_size
        return Draft(
            slots=np.array([SLOT], np.int32),
            offsets=np.array([0, count], np.int32),
            starts=np.array([start], np.int32),
            tokens=self._random.integers(vocabulary, size=count, dtype=np.int32),
            parents=np.arange(-1, count - 1, dtype=np.int32),
            positions=np.arange(start, start + count, dtype=np.int32),
            roots=[0 if scored else -1],
            scored=np.arange(count if scored else 0, dtype=np.int32),
        )


def bytes_per_pass(weights: PackedWeights) -> int:
    """Bytes of all weights that every pass reads: of an embedding that is not the output matrix as well,
    it reads some rows only, which count as none."""
    embedding = 0 if weights.config.tied else weights.tensors["token_embd.weight"].nbytes
    return weights.nbytes - int(embedding)


def _bandwidth(size: int, threads: int) -> float | None:
    """GB/s of reading `size` bytes, the best of some rounds; None without the compiled kernels."""
    if kernels.compiled is None:
        return None
    return float(kernels.compiled.measure_bandwidth(size, threads, STREAM_REPEATS))


def _quartiles(seconds: list[float]) -> list[float]:
    low, _, high = statistics.quantiles(seconds, n=4)
    return [low * 1e3, high * 1e3]


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    where = report["machine"]
    lines = [
        f"{report['title']}, one sequence, {report['context']} tokens in the cache",
        f"{where['cpu']}, {where['isa']}, threads: {where['threads']}",
        "",
        f"{'tokens':>6}{'ms':>9}{'quartiles':>18}{'cost':>7}{'ms per token':>14}",
    ]
    for n, milliseconds in report["milliseconds"].items():
        quartiles = "{:.2f} to {:.2f}".format(*report["quartiles"][n])
        lines.append(
            f"{n:>6}{milliseconds:9.2f}{quartiles:>18}{report['ratios'][n]:7.2f}{milliseconds / int(n):14.2f}"
        )
    megabytes = f"{report['weight_bytes'] / 1e6:.1f} MB of weights"
    if report["floor_ms"] is None:
        lines += ["", f"{megabytes}; bandwidth not measured: that needs the compiled kernels"]
    else:
        lines += [
            "",
            f"{megabytes} at {report['bandwidth_gb_per_s']:.1f} GB/s, read again and again: "
            f"no pass takes less than {report['floor_ms']:.2f} ms",
            f"one token again and again: {report['steady_ms']:.2f} ms, "
            f"{report['steady_ms'] / report['floor_ms']:.2f} times as long",
            f"memory alone: {report['memory_bandwidth_gb_per_s']:.1f} GB/s",
        ]
    return "\n".join(lines)
