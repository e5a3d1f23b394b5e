"""Plain greedy decoding: Paceline against llama.cpp, on the same file, in the same run.

    python benchmarks/peers/llama_cpp.py [--prompts FILE] [--limit 28] [--tokens 128] [--threads 2]

The first run builds llama-cpp-python from source in an environment of its own below build/, with the
compiler set to this processor (some minutes). --python takes an environment that has it already; given
several times, the builds take part in the search for the fastest setting.

Each engine runs in its own process and is idle while another works. Prompts are given as the same token
ids, every answer has the same number of tokens (ends are ignored), and who goes first alternates. llama.cpp
is tried with flash attention off and on and with repacked weights off and on, on a few prompts first; the
fastest setting that works then runs against Paceline. Greedy answers of the two engines may differ, for
their arithmetic does; the number of tokens, and so the work, is the same.

Prints a table, and one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import venv
from itertools import product
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import numpy as np

from paceline import kernels
from paceline.bench.figures import bootstrap_interval
from paceline.bench.machine import machine, usable_cores, versions
from paceline.bench.prompts import choose
from paceline.models.registry import resolve
from paceline.pretrained import load_model

VERSION = "0.3.36"
WORKERS = Path(__file__).with_name("workers")
ENVIRONMENT = WORKERS.parents[2] / "build" / "peers" / "llama_cpp"
TRIALS = 3
"""Prompts on which llama.cpp's settings are tried."""
PAUSE_S = 0.05
"""Time for the threads of the engine that just worked to go to sleep."""

Timed = dict[str, Any]


class WorkerError(Exception):
    """A worker crashed."""


class Worker:
    """One engine in a process of its own."""

    def __init__(self, *command: object) -> None:
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def answer(self, prompt: list[int], tokens: int) -> Timed:
        """The worker's answer of so many tokens, and its times."""
        time.sleep(PAUSE_S)
        assert self._process.stdin is not None, "opened as a pipe"
        self._process.stdin.write(json.dumps({"prompt": prompt, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        timed = self._read()
        if len(timed["tokens"]) != tokens:
            sys.exit(f"expected {tokens} tokens, got {len(timed['tokens'])}")
        return timed

    def _read(self) -> Timed:
        assert self._process.stdout is not None, "opened as a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self._process.args!r} ended with {self._process.wait()}")
        timed: Timed = json.loads(line)
        return timed

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument(
        "--python", type=Path, action="append", help=f"a Python that has llama-cpp-python {VERSION}"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    arguments = parser.parse_args()

    pythons = arguments.python or [built()]
    _, tokenizer = load_model(arguments.model, threads=1)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt.text}])
        for prompt in choose(arguments.prompts, arguments.limit)
    ]
    # A multiple of 256, as llama.cpp rounds it.
    context = -(-(max(map(len, prompts)) + arguments.tokens) // 256) * 256
    common = (arguments.threads, context)

    def llama(python: Path, flash: int, repack: int) -> Worker:
        return Worker(python, WORKERS / "run_llama_cpp.py", resolve(arguments.model), *common, flash, repack)

    trials: dict[tuple[Path, int, int], float] = {}
    for setting in product(pythons, (0, 1), (0, 1)):
        try:
            with llama(*setting) as worker:
                worker.answer(prompts[0], 8)
                timed = [worker.answer(prompt, arguments.tokens) for prompt in prompts[:TRIALS]]
        except WorkerError as crash:
            note(f"llama.cpp, {named(setting)}: left out, {crash}")
            continue
        trials[setting] = decode_speed(timed)
        note(f"llama.cpp, {named(setting)}: {trials[setting]:.1f} tokens/s")
    if not trials:
        sys.exit("llama.cpp runs with none of the settings")
    best = max(trials, key=lambda setting: trials[setting])

    answers: dict[str, list[Timed]] = {"paceline": [], "llama_cpp": []}
    with (
        Worker(sys.executable, WORKERS / "run_paceline.py", arguments.model, *common) as paceline,
        llama(*best) as peer,
    ):
        workers = {"paceline": paceline, "llama_cpp": peer}
        for worker in workers.values():
            worker.answer(prompts[0], 8)
        for number, prompt in enumerate(prompts):
            for name in (list(workers), list(reversed(workers)))[number % 2]:
                answers[name].append(workers[name].answer(prompt, arguments.tokens))
            note(f"{number + 1} of {len(prompts)} prompts")

    ratios = np.array(
        [decode_s(b) / decode_s(a) for a, b in zip(answers["paceline"], answers["llama_cpp"], strict=True)]
    )
    low, high = bootstrap_interval(ratios)
    report = {
        "model": arguments.model,
        "prompts": len(prompts),
        "tokens": arguments.tokens,
        "paceline": figures(answers["paceline"]),
        "llama_cpp": {
            "version": VERSION,
            "setting": named(best),
            **figures(answers["llama_cpp"]),
            "trials": {named(setting): speed for setting, speed in trials.items()},
        },
        "ratio": median(ratios),
        "ratio_low": low,
        "ratio_high": high,
        "total_ratio": sum(map(decode_s, answers["llama_cpp"])) / sum(map(decode_s, answers["paceline"])),
        "machine": machine(kernels.chosen(), arguments.threads),
        "versions": versions(),
    }
    if not arguments.json:
        print(table(report))
    print(json.dumps(report))


def built() -> Path:
    """The Python of an environment with llama-cpp-python, made now if it is not there."""
    python = ENVIRONMENT / "bin" / "python"
    done = ENVIRONMENT / f"built-{VERSION}"
    if not done.exists():
        note(f"building llama-cpp-python {VERSION} from source in {ENVIRONMENT}: some minutes, once")
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        requirement = f"llama-cpp-python=={VERSION}"
        command = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-binary",
            "llama-cpp-python",
            requirement,
        ]
        subprocess.run(command, check=True)
        done.touch()
    return python


def decode_s(timed: Timed) -> float:
    """Seconds after the first token."""
    return float(timed["seconds"] - timed["first_s"])


def decode_speed(timed: list[Timed]) -> float:
    """Tokens per second after the first token."""
    return sum(len(one["tokens"]) - 1 for one in timed) / sum(map(decode_s, timed))


def figures(timed: list[Timed]) -> dict[str, float]:
    return {
        "decode_tokens_per_second": decode_speed(timed),
        "tokens_per_second": sum(len(one["tokens"]) for one in timed) / sum(one["seconds"] for one in timed),
        "first_token_seconds": median(one["first_s"] for one in timed),
    }


def table(report: dict[str, Any]) -> str:
    where = report["machine"]
    lines = [
        f"{report['model']}, {report['prompts']} prompts, {report['tokens']} tokens each, plain and greedy",
        f"{where['cpu']}, {where['threads']} threads",
        "",
        f"{'':12}{'tokens/s after the first':>26}{'whole answers':>16}{'first token':>14}",
    ]
    for name in ("paceline", "llama_cpp"):
        entry = report[name]
        lines.append(
            f"{name:12}{entry['decode_tokens_per_second']:26.1f}{entry['tokens_per_second']:16.1f}"
            f"{entry['first_token_seconds'] * 1e3:11.0f} ms"
        )
    lines += [
        "",
        f"after the first token Paceline is {report['ratio']:.2f} times as fast "
        f"({report['ratio_low']:.2f} to {report['ratio_high']:.2f})",
        f"llama.cpp {VERSION} with {report['llama_cpp']['setting']}",
    ]
    return "\n".join(lines)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def named(setting: tuple[Path, int, int]) -> str:
    python, flash, repack = setting
    switches = f"flash attention {'on' if flash else 'off'}, repacking {'on' if repack else 'off'}"
    return f"{switches} ({python.parents[1].name})"


if __name__ == "__main__":
    main()
