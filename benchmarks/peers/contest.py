"""Measuring: the fastest variant of everyone, then all of them in turn on every prompt.

Each engine sits in its own process and is idle while another works. All get the same token ids and give the
same number of tokens, greedily, ends ignored. Everyone goes first equally often. Answers of different engines
may differ, for their arithmetic does; the number of tokens, and so the work, is the same.

Whoever fails at that is out, with its error in its row, and the others go on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.law import compare
from benchmarks.peers.contender import Contender, Launch, PeerError
from benchmarks.peers.process import Process, Reply

WARM_UP_TOKENS = 8
TRIALS = 3
"""Prompts on which variants are tried."""
REPEATS = 3
"""Of passes over a long prompt, and of batches: the median counts."""

Note = Callable[[str], None]


@dataclass(slots=True)
class Entry:
    """A contender and what was measured of it.

    setting    the variant that takes part; trials: {variant: tokens per second, or its error}
    answers    per prompt, in order; fewer than there are prompts if it failed on the way
    prefill_s  median seconds to the first token after the long prompt
    batches    {streams: tokens per second of all of them together}
    kl, top1   of the next-token law to float32 arithmetic on the model's own weights
    remarks    what beside its answers could not be measured, and why
    error      why it is out
    """

    contender: Contender
    launch: Launch | None = None
    setting: str = ""
    trials: dict[str, float | str] = field(default_factory=dict)
    answers: list[Reply] = field(default_factory=list)
    prefill_s: float | None = None
    batches: dict[str, float] = field(default_factory=dict)
    kl: float | None = None
    top1: float | None = None
    remarks: list[str] = field(default_factory=list)
    error: str | None = None


def choose(
    contenders: Sequence[Contender], prompts: Sequence[list[int]], tokens: int, note: Note
) -> list[Entry]:
    """Entries with the fastest variant that works on the first prompts; one variant is taken untried."""
    entries: list[Entry] = []
    for contender in contenders:
        entry = Entry(contender, error=contender.error)
        if entry.error is None:
            with _out_if_it_fails(entry, note):
                _settle(entry, _variants(contender, entries), prompts[:TRIALS], tokens, note)
        else:
            note(f"{contender.name}: {entry.error}")
        entries.append(entry)
    return entries


def _variants(contender: Contender, entries: Sequence[Entry]) -> Mapping[str, Launch]:
    if not contender.changes:
        return contender.variants
    plain = plain_of(entries, contender.engine, contender.weights)
    if plain is None or plain.launch is None:
        raise PeerError("plain decoding, whose settings it would take over, does not run")
    return {
        " and ".join(filter(None, (plain.setting, said))): plain.launch.with_settings(**settings)
        for said, settings in contender.changes.items()
    }


def plain_of(entries: Sequence[Entry], engine: str, weights: str | None) -> Entry | None:
    """An engine's plain entry with these weights, or, for None, its first."""
    for entry in entries:
        contender = entry.contender
        if (contender.engine, contender.mode) == (engine, "plain") and weights in (None, contender.weights):
            return entry
    return None


def _settle(
    entry: Entry, variants: Mapping[str, Launch], prompts: Sequence[list[int]], tokens: int, note: Note
) -> None:
    if len(variants) == 1:
        ((entry.setting, entry.launch),) = variants.items()
        return
    for setting, launch in variants.items():
        try:
            with Process(launch, f"{entry.contender.name} {setting}") as process:
                process.answer(prompts[0], min(WARM_UP_TOKENS, tokens))
                replies = [process.answer(prompt, tokens) for prompt in prompts]
            entry.trials[setting] = tokens * len(replies) / sum(reply["seconds"] for reply in replies)
            note(f"{entry.contender.name}, {setting}: {entry.trials[setting]:.1f} tokens/s")
        except PeerError as error:
            entry.trials[setting] = str(error)
            note(f"{entry.contender.name}, {setting}: {error}")
    speeds = {name: speed for name, speed in entry.trials.items() if isinstance(speed, float)}
    if not speeds:
        raise PeerError(f"runs with none of its settings: {next(iter(entry.trials.values()))}")
    entry.setting = max(speeds, key=lambda name: speeds[name])
    entry.launch = variants[entry.setting]


def race(
    entries: Sequence[Entry],
    prompts: Sequence[list[int]],
    tokens: int,
    long_prompt: list[int] | None,
    note: Note,
) -> None:
    """Every entry's answers to all prompts, in turn; then how long plain ones take to read the long one."""
    with ExitStack() as stack:
        running: list[tuple[Entry, Process]] = []
        for entry in entries:
            with _out_if_it_fails(entry, note):
                if entry.launch is not None:
                    process = stack.enter_context(Process(entry.launch, entry.contender.name))
                    process.answer(prompts[0], min(WARM_UP_TOKENS, tokens))
                    running.append((entry, process))
        for number, prompt in enumerate(prompts):
            for entry, process in _turns(running, number):
                with _out_if_it_fails(entry, note):
                    entry.answers.append(process.answer(prompt, tokens))
            note(f"{number + 1} of {len(prompts)} prompts")
        if long_prompt is not None:
            _prefill([pair for pair in running if pair[0].contender.mode == "plain"], long_prompt, note)


def _prefill(running: Sequence[tuple[Entry, Process]], prompt: list[int], note: Note) -> None:
    seconds: dict[int, list[float]] = {id(entry): [] for entry, _ in running}
    for number in range(REPEATS):
        # The first token differs, or an engine that keeps prefixes would have nothing to read.
        varied = [*prompt[number:], *prompt[:number]]
        for entry, process in _turns(running, number):
            with _remarked(entry, "reading a long prompt", note):
                seconds[id(entry)].append(process.answer(varied, 1)["seconds"])
    for entry, _ in running:
        if seconds[id(entry)]:
            entry.prefill_s = median(seconds[id(entry)])
    note(f"read {len(prompt)} tokens {REPEATS} times")


def batches(
    entries: Sequence[Entry], prompts: Sequence[list[int]], tokens: int, sizes: Sequence[int], note: Note
) -> None:
    """Tokens per second of many streams at once, of plain entries whose worker can; prompts are repeated
    where there are too few."""
    for size in sizes:
        asked = [prompts[at % len(prompts)] for at in range(size)]
        with ExitStack() as stack:
            running: list[tuple[Entry, Process]] = []
            for entry in entries:
                if entry.launch is None or entry.error is not None or entry.contender.mode != "plain":
                    continue
                with _remarked(entry, f"{size} streams", note):
                    launch = entry.launch.with_settings(sequences=size)
                    name = f"{entry.contender.name} {size} streams"
                    process = stack.enter_context(Process(launch, name))
                    if "batch" in process.does:
                        process.ask("batch", prompts=asked, tokens=min(WARM_UP_TOKENS, tokens))
                        running.append((entry, process))
            speeds: dict[int, list[float]] = {id(entry): [] for entry, _ in running}
            for number in range(REPEATS):
                for entry, process in _turns(running, number):
                    with _remarked(entry, f"{size} streams", note):
                        reply = process.ask("batch", prompts=asked, tokens=tokens)
                        if [len(answer) for answer in reply["tokens"]] != [tokens] * size:
                            raise PeerError(f"answers of other lengths than {tokens}")
                        speeds[id(entry)].append(size * tokens / reply["seconds"])
            for entry, _ in running:
                if speeds[id(entry)]:
                    entry.batches[str(size)] = median(speeds[id(entry)])
        note(f"{size} streams {REPEATS} times")


def laws(
    entries: Sequence[Entry], reference: Launch, texts: Sequence[tuple[list[int], int]], note: Note
) -> None:
    """The distance of every engine's law, per weights, from the reference's.

    texts: tokens and the number of them that are the prompt; compared is what follows it. An engine's modes
    share their law: its plain entry, or its first, is asked.
    """
    asked: dict[tuple[str, str | None], Entry] = {}
    for entry in sorted(entries, key=lambda entry: entry.contender.mode != "plain"):
        if entry.launch is not None and entry.error is None:
            asked.setdefault((entry.contender.engine, entry.contender.weights), entry)
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{number}.npy") for number in range(len(texts))]
        try:
            with Process(reference, "reference") as process:
                for (tokens, first), file in zip(texts, files, strict=True):
                    process.ask("logits", tokens=tokens, first=first, file=file)
        except PeerError as error:
            note(f"no laws, for there is no reference: {error}")
            return
        note(f"float32 laws of {len(texts)} answers")
        for entry in asked.values():
            with _remarked(entry, "law", note):
                _law(entry, texts, files, str(Path(folder) / "own.npy"))
    for entry in entries:
        if (source := asked.get((entry.contender.engine, entry.contender.weights))) is not None:
            entry.kl, entry.top1 = source.kl, source.top1


def _law(entry: Entry, texts: Sequence[tuple[list[int], int]], files: Sequence[str], own: str) -> None:
    assert entry.launch is not None, "only those that run are asked"
    distances, agreements = [], []
    with Process(entry.launch, f"{entry.contender.name} law") as process:
        if "logits" not in process.does:
            return
        for (tokens, first), file in zip(texts, files, strict=True):
            process.ask("logits", tokens=tokens, first=first, file=own)
            distance, agreement = compare(np.load(file), np.load(own))
            distances.append(distance)
            agreements.append(agreement)
    entry.kl = float(np.concatenate(distances).mean())
    entry.top1 = float(np.concatenate(agreements).mean())


def _turns(running: Sequence[tuple[Entry, Process]], number: int) -> Iterator[tuple[Entry, Process]]:
    """Those that are still in, each first equally often, and forwards and backwards by turns."""
    pairs = [pair for pair in running if pair[0].error is None]
    first = number % max(len(pairs), 1)
    pairs = [*pairs[first:], *pairs[:first]]
    yield from pairs if number % 2 == 0 else pairs[::-1]


@contextmanager
def _out_if_it_fails(entry: Entry, note: Note) -> Iterator[None]:
    """A PeerError in the block becomes the entry's error, and it is out."""
    try:
        yield
    except PeerError as error:
        entry.error = str(error)
        note(f"{entry.contender.name}: out: {error}")


@contextmanager
def _remarked(entry: Entry, what: str, note: Note) -> Iterator[None]:
    """A PeerError in the block becomes a remark on the entry, whose other figures stay."""
    try:
        yield
    except PeerError as error:
        entry.remarks.append(f"{what}: {error}")
        note(f"{entry.contender.name}: {what}: {error}")
