"""Paceline and every other engine this machine can run, measured in one run.

    make peers                                    all of them
    make peers ONLY=llama_cpp,openvino            some of them; Paceline's own rows are always there
    python -m benchmarks.peers --help

Each rival is installed in its own environment below build/peers/ the first time, and its model files are made
there from the same GGUF file. A rival that will not install or start is a row with its error. Prints a table
on stderr and one JSON object as the last line of stdout, which also goes into a file.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections import Counter
from itertools import chain, cycle, islice
from pathlib import Path
from types import ModuleType

from benchmarks.peers import contest, report
from benchmarks.peers.adapters.paceline import reference
from benchmarks.peers.contender import Contender, PeerError, Plan
from paceline import kernels
from paceline.bench.machine import machine, usable_cores, versions
from paceline.bench.prompts import choose
from paceline.errors import PacelineError
from paceline.models.cache import write_atomically
from paceline.models.registry import resolve
from paceline.models.tokenizer import Tokenizer
from paceline.targets.weights import PackedWeights, load_weights

ADAPTERS = Path(__file__).with_name("adapters")
OUTPUT = Path(__file__).parents[1] / "results" / "peers.json"
OWN = "paceline"
STREAMS = (8, 16)
PREFILL_TOKENS = 1024


def main(arguments: list[str] | None = None) -> int:
    try:
        return _run(_options(arguments))
    except (PacelineError, PeerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def rivals() -> list[str]:
    """Names of all adapters but our own."""
    return sorted(file.stem for file in ADAPTERS.glob("*.py") if file.stem != OWN)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", help=f"rivals, with commas between them: {', '.join(rivals())}")
    parser.add_argument("--model", default="smollm2-135m", help="name or path of a GGUF file")
    parser.add_argument("--prompts", type=Path, help="a file that `paceline bench speed` takes")
    parser.add_argument("--limit", type=_count, help="so many prompts, of all categories")
    parser.add_argument("--tokens", type=_count, default=128, help="of every answer")
    parser.add_argument("--threads", type=_count, default=usable_cores(), help="of every engine")
    parser.add_argument(
        "--drafter",
        action="append",
        help="of Paceline, with options where wanted; several times for several (default: ngram, suffix)",
    )
    parser.add_argument(
        "--assistant", type=Path, help="a smaller model's folder, for transformers to draft with"
    )
    parser.add_argument(
        "--llama-python",
        type=Path,
        action="append",
        default=[],
        help="a Python that has llama-cpp-python, instead of building it; several take part in the search",
    )
    parser.add_argument(
        "--llama-server",
        type=Path,
        action="append",
        default=[],
        help="a llama-server program, such as a fork's",
    )
    parser.add_argument("--laws", type=_count, default=8, help="answers on which laws are compared")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the JSON goes as well")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    chosen = _chosen(options.only)
    file = resolve(options.model)
    weights = load_weights(file)
    tokenizer = Tokenizer.from_json(weights.tokenizer_json)
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt.text}])
        for prompt in choose(options.prompts, options.limit)
    ]
    # A multiple of 256, as llama.cpp rounds it.
    longest = max(*map(len, prompts), PREFILL_TOKENS) + options.tokens
    plan = Plan(
        model=file,
        own_weights=main_type(weights),
        context=-(-longest // 256) * 256,
        threads=options.threads,
        drafters=tuple(options.drafter or ("ngram", "suffix")),
        assistant=options.assistant,
        llama_pythons=tuple(python.absolute() for python in options.llama_python),
        llama_servers=tuple(program.absolute() for program in options.llama_server),
        chosen=chosen,
        note=note,
    )
    entries = contest.choose(found(plan), prompts, options.tokens, note)

    def record() -> str:
        """What is known so far; written into the file, so that a later failure costs nothing measured."""
        results = report.rows(entries, PREFILL_TOKENS)
        known = {
            "machine": machine(kernels.chosen(), options.threads),
            "prompts": len(prompts),
            "tokens": options.tokens,
            "model": options.model,
            "title": weights.config.name,
            "prefill_tokens": PREFILL_TOKENS,
            "summary": report.summary(entries, results),
            "results": results,
            "versions": versions(),
        }
        line = json.dumps(known)
        with write_atomically(options.output) as file:
            file.write(line.encode() + b"\n")
        return line

    long_prompt = list(islice(cycle(chain.from_iterable(prompts)), PREFILL_TOKENS))
    contest.race(entries, prompts, options.tokens, long_prompt, note)
    record()
    contest.batches(entries, prompts, options.tokens, STREAMS, note)
    record()
    own = next(entry for entry in entries if entry.contender.engine == report.ENGINE)
    if own.error is None:
        texts = [
            ([*prompt, *answer["tokens"]], len(prompt))
            for prompt, answer in zip(prompts, own.answers, strict=True)
        ]
        contest.laws(entries, reference(plan), texts[: options.laws], note)
    line = record()
    note(report.table(json.loads(line)))
    print(line)
    return 0


def _chosen(only: str | None) -> tuple[str, ...]:
    """The adapters that take part. Raises PeerError for a name that is none."""
    names = rivals() if only is None else [name.strip() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in (*rivals(), OWN):
            raise PeerError(f"--only: no rival is called {name!r}; allowed: {', '.join(rivals())}")
    return (OWN, *(name for name in dict.fromkeys(names) if name != OWN))


def main_type(weights: PackedWeights) -> str:
    """What most matrices are stored as."""
    return Counter(kind for name, kind in weights.tensors.items() if name.endswith(".type")).most_common(1)[
        0
    ][0]


def found(plan: Plan) -> list[Contender]:
    """The contenders of all chosen adapters; one that cannot be had is one with an error."""
    contenders: list[Contender] = []
    for name in plan.chosen:
        adapter: ModuleType = importlib.import_module(f"benchmarks.peers.adapters.{name}")
        try:
            contenders += adapter.contenders(plan)
        except PeerError as error:
            contenders.append(Contender(adapter.ENGINE, adapter.VERSION, None, None, error=str(error)))
    return contenders


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
