"""What a pass costs as models grow: random Llamas of 0.1 to 3 billion parameters beside the floor of memory.

    python -m benchmarks.scale                              all sizes; some minutes each for the large ones
    python -m benchmarks.scale --sizes 0.1,0.5 --contexts 256 --rows 1,8

Time does not depend on what the weights say, so they are random; every layer has memory of its own, as a
real model's has. A pass reads all weights once: the floor is their bytes by the bandwidth that a plain stream
over as many bytes reaches in the same run. Each model runs in a process of its own, so its memory is its own.

Prints a table on stderr and one JSON object as the last line of stdout, which also goes into a file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline import kernels
from paceline.bench.machine import machine, usable_cores, versions
from paceline.bench.step import bytes_per_pass
from paceline.core import Draft, Target, Verdict
from paceline.kernels.packing import FORMATS, GROUP, LANES, pack
from paceline.models.cache import write_atomically
from paceline.models.config import ModelConfig
from paceline.targets.native import NativeTarget
from paceline.targets.weights import PackedWeights, aligned

OUTPUT = Path(__file__).with_name("results") / "scale.json"
REPEATS = 7
STREAM_REPEATS = 5
CHUNK = 256
HEAD = "Q8_0"
"""The type of the embedding, which is the output matrix as well: small models' files keep it in 8 bits."""

SHAPES = {
    # hidden, layers, heads, key/value heads, head width, feed-forward width, vocabulary; as those of
    "0.1": (576, 30, 9, 3, 64, 1536, 49152),  # SmolLM2-135M
    "0.5": (896, 24, 14, 2, 64, 4864, 151936),  # Qwen2.5-0.5B
    "1": (2048, 16, 32, 8, 64, 8192, 128256),  # Llama-3.2-1B
    "3": (3072, 28, 24, 8, 128, 8192, 128256),  # Llama-3.2-3B
}
KINDS = ("Q4_1", "Q8_0")

Report = dict[str, Any]


def config(size: str, context: int) -> ModelConfig:
    """A Llama of this size (a key of SHAPES) for so many positions."""
    hidden, layers, heads, kv_heads, head_dim, ffn, vocabulary = SHAPES[size]
    return ModelConfig(
        architecture="llama",
        name=f"random Llama, {size} billion",
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        vocab_size=vocabulary,
        context=context,
        rope_theta=10000.0,
        rope_interleaved=True,
        query_scale=head_dim**-0.5,
        norm_eps=1e-5,
        tied=True,
    )


def random_weights(config: ModelConfig, kind: str) -> PackedWeights:
    """Matrices of this type (Q4_1 or Q8_0), the embedding in HEAD. One layer is drawn, the others copy it."""
    rng = np.random.default_rng(0)
    narrow, wide = config.kv_heads * config.head_dim, config.heads * config.head_dim
    matrices = {
        "attn_q": (wide, config.hidden),
        "attn_k": (narrow, config.hidden),
        "attn_v": (narrow, config.hidden),
        "attn_output": (config.hidden, wide),
        "ffn_gate": (config.ffn, config.hidden),
        "ffn_up": (config.ffn, config.hidden),
        "ffn_down": (config.hidden, config.ffn),
    }
    ones = np.ones(config.hidden, np.float32).view(np.uint8)
    layer = {name: pack(kind, _blocks(kind, *shape, rng)) for name, shape in matrices.items()}
    head = pack(HEAD, _blocks(HEAD, config.vocab_size, config.hidden, rng))
    tensors: dict[str, Any] = {
        "token_embd.weight": aligned(head),
        "token_embd.weight.type": HEAD,
        "output_norm.weight": aligned(ones),
    }
    for at in range(config.layers):
        for name, packed in layer.items():
            tensors[f"blk.{at}.{name}.weight"] = aligned(packed)
            tensors[f"blk.{at}.{name}.weight.type"] = kind
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{at}.{name}.weight"] = aligned(ones)
    return PackedWeights(config, "{}", tensors)


def _blocks(kind: str, rows: int, columns: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A GGUF's blocks uint8 [rows, bytes]: scales, then numbers; weights deviate by 1 / sqrt(columns)."""
    format = FORMATS[kind]
    blocks = columns // GROUP
    scale = np.full((rows, blocks, 1), np.sqrt(12) / 2**format.bits / np.sqrt(columns))
    halves = [scale, -(2 ** (format.bits - 1)) * scale][: 1 + format.minima]
    numbers = rng.integers(0, 256, (rows, blocks, GROUP * format.bits // 8), np.uint8)
    parts = [half.astype(np.float16).view(np.uint8) for half in halves]
    return np.concatenate([*parts, numbers], axis=-1).reshape(rows, -1)


class Passes:
    """Sequences that grow, and passes over rows of them that leave nothing behind."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._random = np.random.default_rng(0)
        self._lengths: dict[int, int] = {}

    def extend(self, slot: int, length: int) -> None:
        """Let sequence `slot` hold so many tokens."""
        while (start := self._lengths.get(slot, 0)) < length:
            count = min(CHUNK, length - start)
            draft = self._draft([slot], start, count, scored=False)
            self._target.forward(draft, frozenset())
            self._target.commit(draft, Verdict([[]], [-1]))
            self._lengths[slot] = start + count

    def milliseconds(self, shapes: Sequence[tuple[int, int]], context: int) -> list[float]:
        """Medians for each (sequences, rows of each), taken in turn, after so many tokens of every one."""
        seconds: list[list[float]] = [[] for _ in shapes]
        for turn in range(REPEATS + 1):
            for at, (batch, rows) in enumerate(shapes):
                draft = self._draft(list(range(batch)), context, rows, scored=True)
                start = perf_counter()
                self._target.forward(draft, frozenset())
                if turn:  # the first does not count
                    seconds[at].append(perf_counter() - start)
        return [median(times) * 1e3 for times in seconds]

    def _draft(self, slots: list[int], start: int, count: int, *, scored: bool) -> Draft:
        total = len(slots) * count
        starts = np.arange(0, total, count, dtype=np.int32)
        parents = np.arange(-1, total - 1, dtype=np.int32)
        parents[starts] = -1
        return Draft(
            slots=np.array(slots, np.int32),
            offsets=np.arange(0, total + 1, count, dtype=np.int32),
            starts=np.full(len(slots), start, np.int32),
            tokens=self._random.integers(self._target.info.vocab_size, size=total, dtype=np.int32),
            parents=parents,
            positions=np.tile(np.arange(start, start + count, dtype=np.int32), len(slots)),
            roots=starts.tolist() if scored else [-1] * len(slots),
            scored=np.arange(total if scored else 0, dtype=np.int32),
        )


def measure(
    size: str, kind: str, contexts: list[int], rows: list[int], batches: list[int], threads: int
) -> Report:
    """One model's report: passes [{context, batch, rows, ms}], floor_ms, and memory in bytes.

    Several sequences hold contexts[0] tokens each, and have one row each in a pass.
    """
    before = resident()
    positions = contexts[-1] + max(rows) + LANES
    shape = config(size, positions)
    weights = random_weights(shape, kind)
    others = (max(batches) - 1) * (contexts[0] + 2 * LANES)
    target = NativeTarget(weights, threads=threads, context=positions, cache_tokens=positions + others)
    passes = Passes(target)
    weight_bytes = bytes_per_pass(weights)
    stream = [_bandwidth(weight_bytes, threads)]
    measured = []
    for context in contexts:
        passes.extend(0, context)
        shapes = [(1, n) for n in rows]
        if context == contexts[0]:
            for slot in range(1, max(batches)):
                passes.extend(slot, context)
            shapes += [(n, 1) for n in batches if n > 1]
        for (batch, n), ms in zip(shapes, passes.milliseconds(shapes, context), strict=True):
            measured.append({"context": context, "batch": batch, "rows": n, "ms": ms})
    stream.append(_bandwidth(weight_bytes, threads))
    bandwidth = max(filter(None, stream), default=None)
    held = contexts[-1] + (max(batches) - 1) * contexts[0]
    cache = held * shape.layers * 2 * shape.kv_heads * shape.head_dim * np.dtype(np.float16).itemsize
    after = resident()
    return {
        "size": size,
        "weights": kind,
        "parameters": parameters(shape),
        "weight_bytes": weight_bytes,
        "bandwidth_gb_per_s": bandwidth,
        "floor_ms": None if bandwidth is None else weight_bytes / bandwidth / 1e6,
        "passes": measured,
        "cache_tokens": held,
        "cache_bytes": cache,
        "resident_before_bytes": before,
        "resident_bytes": after,
    }


def parameters(shape: ModelConfig) -> int:
    """Numbers in all matrices."""
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = shape.hidden * (2 * wide + 2 * narrow + 3 * shape.ffn)
    return shape.layers * layer + shape.vocab_size * shape.hidden


def resident() -> int | None:
    """Bytes of this process in memory; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * 4096


def _bandwidth(size: int, threads: int) -> float | None:
    if kernels.compiled is None:
        return None
    return float(kernels.compiled.measure_bandwidth(size, threads, STREAM_REPEATS))


def costs(model: Report, context: int) -> dict[int, float]:
    """{rows: ms} of one sequence after so many tokens."""
    return {
        one["rows"]: one["ms"] for one in model["passes"] if one["batch"] == 1 and one["context"] == context
    }


def table(report: Report) -> str:
    """The report for people."""
    where = report["machine"]
    lines = [f"{where['cpu']}, {where['isa']}, {where['threads']} threads"]
    for model in report["models"]:
        floor = f"{model['floor_ms']:.2f} ms" if model["floor_ms"] else "not measured"
        megabytes = f"{model['weight_bytes'] / 1e6:.0f} MB of weights"
        lines += ["", f"{model['size']} billion, {model['weights']}: {megabytes}, floor {floor}"]
        for context in report["contexts"]:
            own = costs(model, context)
            cells = (f"{n}: {ms:.1f} ({ms / own[min(own)]:.2f})" for n, ms in own.items())
            lines.append(f"  after {context}, ms by rows (in passes over {min(own)}): {', '.join(cells)}")
        cells = (f"{one['batch']}: {one['ms']:.1f}" for one in model["passes"] if one["batch"] > 1)
        lines.append(f"  ms by sequences of one row each: {', '.join(cells)}")
        if model["resident_bytes"] is not None:
            lines.append(
                f"  memory {model['resident_bytes'] / 1e6:.0f} MB: "
                f"weights {model['weight_bytes'] / 1e6:.0f}, "
                f"cache of {model['cache_tokens']} tokens {model['cache_bytes'] / 1e6:.0f}, "
                f"Python before them {model['resident_before_bytes'] / 1e6:.0f}"
            )
    return "\n".join(lines)


def plot(report: Report, path: Path) -> None:
    """Two panels: a pass by the floor, and what n rows cost, by the number of rows. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharex=True)
    colours = dict(zip(SHAPES, ("#4477aa", "#228833", "#ee7733", "#aa3377"), strict=True))
    context = report["contexts"][0]
    for model in report["models"]:
        own = costs(model, context)
        style = {
            "color": colours[model["size"]],
            "linestyle": "-" if model["weights"] == "Q8_0" else "--",
            "marker": "o",
            "markersize": 4,
            "label": f"{model['size']} billion, {model['weights']}",
        }
        if model["floor_ms"]:
            panels[0].plot(list(own), [ms / model["floor_ms"] for ms in own.values()], **style)
        panels[1].plot(list(own), [ms / own[min(own)] for ms in own.values()], **style)
    titles = ("Time of a pass by reading the weights once", "v(n): a pass over n rows by one over one")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, loc="left", fontsize=11)
        panel.set_xscale("log", base=2)
        panel.set_xticks(report["rows"], labels=[str(n) for n in report["rows"]])
        panel.set_xlabel(f"rows in the pass, after {context} tokens")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[1].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", type=_names(tuple(SHAPES)), default=list(SHAPES), help="billions")
    parser.add_argument("--weights", type=_names(KINDS), default=list(KINDS), help="types")
    parser.add_argument("--contexts", type=_numbers, default=[256, 2048, 8192], help="tokens in the cache")
    parser.add_argument("--rows", type=_numbers, default=[1, 2, 4, 8, 16, 32], help="of one sequence")
    parser.add_argument("--batches", type=_numbers, default=[1, 2, 4, 8, 16], help="sequences, one row each")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--plot", type=Path, help="a PNG file to draw; needs matplotlib (paceline[plot])")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the JSON goes as well")
    options = parser.parse_args(arguments)
    models = []
    for size in options.sizes:
        for kind in options.weights:
            print(f"{size} billion, {kind}", file=sys.stderr, flush=True)
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                job = pool.submit(
                    measure, size, kind, options.contexts, options.rows, options.batches, options.threads
                )
                models.append(job.result())
    report = {
        "machine": machine(kernels.chosen(), options.threads),
        "contexts": options.contexts,
        "rows": options.rows,
        "batches": options.batches,
        "models": models,
        "versions": versions(),
    }
    line = json.dumps(report)
    with write_atomically(options.output) as file:
        file.write(line.encode() + b"\n")
    print(table(report), file=sys.stderr)
    if options.plot:
        plot(report, options.plot)
    print(line)
    return 0


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers above 0, such as 1,8")
    return sorted(set(map(int, parts)))


def _names(allowed: tuple[str, ...]) -> Any:
    def parse(text: str) -> list[str]:
        for name in text.split(","):
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is not known; allowed: {', '.join(allowed)}")
        return text.split(",")

    return parse


if __name__ == "__main__":
    sys.exit(main())
