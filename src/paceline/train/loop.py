"""The loop: batches, gradients, steps, measurements, checkpoints.

All that is random is a function of the seed and the step, so a run that was killed goes on from its last
checkpoint to the very same drafter; on a CPU with as many threads and processes, bit by bit.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paceline.errors import ConfigError, TrainingError
from paceline.models.bfloat16 import to_float32
from paceline.train import card, checkpoint, start
from paceline.train.architectures import load
from paceline.train.architectures._base import Architecture
from paceline.train.batches import collate, epoch, split
from paceline.train.checkpoint import Progress
from paceline.train.corpus import Corpus
from paceline.train.head_loss import head_divergence
from paceline.train.losses import Estimate, Laws, compared
from paceline.train.optimizer import Optimizer
from paceline.train.processes import Processes
from paceline.train.settings import Settings
from paceline.train.teacher import Teacher

RUN, LOG = "run.json", "log.jsonl"
_SAMPLE = 16
"""Answers that the size of the taps is measured over."""


class Run:
    """One training run: a data set, settings, a folder. Goes on from the folder's checkpoint if there is one.

    also: further data sets, whose answers are seen among those of the first. device: of PyTorch, such as
    "cpu" or "cuda". threads: for what runs on the CPU; None: PyTorch's own choice. Where several
    processes were launched all of them make the same run, and it is one (`paceline.train.processes`).
    Raises ConfigError, TrainingError.
    """

    def __init__(
        self,
        data: Path,
        folder: Path,
        settings: Settings,
        *,
        also: Sequence[Path] = (),
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.processes = Processes(device)
        if settings.accumulate < self.processes.count:
            raise ConfigError(
                f"accumulate is {settings.accumulate}, allowed for {self.processes.count} processes, which "
                f"share the passes of a step: {self.processes.count} or more"
            )
        if threads is not None:
            torch.set_num_threads(threads)
        # In float32 sums of products of bfloat16, also outside of autocast: the target's logits.
        torch.set_float32_matmul_precision("medium" if settings.dtype == "bfloat16" else "highest")
        self.device = _device(self.processes.device)
        self.settings = settings
        self.folder = folder
        self.corpus = Corpus((data, *also), settings.max_length, threads)
        corpus = self.corpus
        self._train, held_out = split(len(corpus), settings.held_out, settings.seed)
        self._held_out = held_out[: settings.held_out_most]
        self.plan = Plan(corpus, self._train, settings)
        self.teacher = Teacher(
            corpus.manifest.target.shape,
            corpus.manifest.taps,
            corpus.shared,
            corpus.counts(self._train.tolist()),
            _scales(corpus, self._train[:_SAMPLE].tolist()),
            self.device,
            corpus.manifest.target,
        )
        self.drafter, self._averaged = self._fresh(), self._fresh().requires_grad_(False)
        self._named = dict(self.drafter.named_parameters())
        self._optimizer = Optimizer(self.drafter, settings.weight_decay)
        self._average = dict(self._averaged.named_parameters())
        self._best = {name: weight.detach().clone() for name, weight in self._named.items()}
        self.progress = Progress()
        if not self.processes.first:
            self.processes.wait()  # until the folder is as the first begins with it
        self._begin(data)
        if self.processes.first:
            self.processes.wait()

    def _fresh(self) -> Architecture:
        """The drafter as training begins; always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            fresh = load(self.settings.arch, self.teacher)
        if self.settings.start_from:
            start.take_over(fresh, Path(self.settings.start_from), self.teacher.counts)
        elif fresh.adapts:
            raise ConfigError(f"{self.settings.arch} adapts a drafter: name it with --start-from")
        fresh.to(self.device)
        return fresh

    def _begin(self, data: Path) -> None:
        """Take up the run in the folder, or begin it there, which the first process does."""
        manifest = self.corpus.manifest
        record: dict[str, Any] = {
            "settings": asdict(self.settings),
            "target": manifest.target.file_sha256,
            "shards": [shard.sha256 for one in self.corpus.manifests for shard in one.shards],
            "start": start.checksum(self.settings.start_from),
        }
        path = self.folder / RUN
        if not path.exists():
            checkpoint.put(path, json.dumps(record, indent=1).encode())
        try:
            begun = json.loads(path.read_bytes())
            theirs = begun["settings"]
            for name, value in record["settings"].items():
                if theirs[name] != value:
                    raise TrainingError(
                        f"{self.folder}: was begun with {name} {theirs[name]}, not {value}; use that, or "
                        "choose another folder"
                    )
            if begun["start"] != record["start"]:
                raise TrainingError(
                    f"{self.settings.start_from}: has changed since {self.folder} was begun from it; choose "
                    "another folder"
                )
            if (begun["target"], begun["shards"]) != (record["target"], record["shards"]):
                raise TrainingError(
                    f"{self.folder}: was begun with other data than {data}; choose another folder"
                )
        except (ValueError, KeyError, TypeError):
            raise TrainingError(f"{path}: is damaged; choose another folder") from None
        found = checkpoint.read(self.folder, self._state())
        if found is not None:
            self.progress, tensors = found
            self._restore(tensors)
        log = self.folder / LOG
        held = log.read_bytes() if log.exists() else b""
        if len(held) < self.progress.log_bytes:
            raise TrainingError(f"{log}: is cut short; choose another folder")
        if self.processes.first:
            checkpoint.put(log, held[: self.progress.log_bytes])

    def train(
        self,
        advance: Callable[[int, dict[str, Any]], object],
        *,
        license: str = "",
        watch: Callable[[dict[str, Any]], object] | None = None,
    ) -> dict[str, Any]:
        """Train to the end and write the drafter; its card. advance: called after each step with its number
        and what was logged last. license: of the drafter, for its card; empty: not said. watch: called with
        each line of the log."""
        self._watch = watch
        log: dict[str, Any] = {}
        started = perf_counter() - self.progress.seconds
        for step, batches in self.plan.steps(self.progress.step):
            line = self._step(step, batches)
            seconds = perf_counter() - started
            last = step + 1 == self.plan.total
            if last or (step + 1) % self.settings.log_every == 0:
                log = {"step": step + 1, "seconds": round(seconds, 3), **line}
                self._log(log)
            self.progress = replace(self.progress, step=step + 1, seconds=seconds)
            if last or (step + 1) % self.settings.measure_every == 0:
                self._measure()
            if last or (step + 1) % self.settings.checkpoint_every == 0:
                self._save()
            advance(step + 1, log)
        if self.processes.first:
            self._finish(license)
        self.processes.wait()
        finished: dict[str, Any] = json.loads((self.folder / card.CARD).read_bytes())
        return finished

    def _step(self, step: int, places: list[list[int]]) -> dict[str, Any]:
        """One step of the optimiser over some batches; what is logged of it."""
        settings, rate = self.settings, self._rate(step)
        depths = self.drafter.lessons
        totals = [max(1, self.plan.bases(places, depth)) for depth in depths]  # of all processes
        weights = [settings.depth_decay**depth for depth in depths]
        losses, overlaps = [0.0] * len(depths), [0.0] * len(depths)
        for own in self.processes.share(places):
            batch = collate(self.corpus, own, self.device)
            total: Tensor | float = 0.0
            with self._autocast():
                laws = Laws(self.teacher, self.drafter.vocabulary, batch, max(depths) + 1, whole=False)
                for place, read in enumerate(self.drafter.study(batch)):
                    loss, overlap = head_divergence(
                        settings.loss, read, self.drafter.head, laws.laws, laws.rows(depths[place])
                    )
                    further = self.drafter.aside(read, overlap)
                    total = total + weights[place] / totals[place] * (loss + further)
                    losses[place] += float(loss.detach()) / totals[place]
                    overlaps[place] += float(overlap.sum()) / totals[place]
            if isinstance(total, Tensor) and total.requires_grad:
                total.backward()
        self.processes.add_up(self._named.values())
        losses, overlaps = self.processes.total(losses), self.processes.total(overlaps)
        norm = torch.nn.utils.clip_grad_norm_(self._named.values(), settings.clip)
        if not math.isfinite(float(norm)):
            raise TrainingError(
                f"step {step + 1}: the gradient is no number; lower the learning rate, or use float32"
            )
        self._optimizer.step(rate)
        keep = min(settings.ema, (1 + step) / (10 + step))  # few steps make a short average
        with torch.no_grad():
            for name, weight in self._named.items():
                self._average[name].lerp_(weight, 1 - keep)
        return {
            "learning_rate": rate,
            "gradient_norm": round(float(norm), 4),
            "loss": [round(value, 4) for value in losses],
            "train_overlap": [round(value, 4) for value in overlaps],
        }

    def _rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = self.settings.warmup * self.plan.total
        if step < warm:
            return (
                self.settings.learning_rate * (step + 1) / warm if warm >= 1 else self.settings.learning_rate
            )
        left = (step - warm) / max(1.0, self.plan.total - warm)
        return self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * left))

    def measure(self, drafter: Architecture) -> dict[str, Any]:
        """Estimates over the answers that were held out."""
        depths, vocabulary = drafter.depths, drafter.vocabulary
        estimate = Estimate(depths)
        with torch.no_grad():
            batches = epoch(self.corpus.lengths, self._held_out, self.settings.batch_tokens, 0, 0)
            for places in batches:
                batch = collate(self.corpus, places, self.device)
                laws = Laws(self.teacher, vocabulary, batch, depths, whole=True)
                with self._autocast():
                    rows = [
                        compared(logits, laws.at(depth), laws.likeliest(depth), vocabulary)
                        for depth, logits in enumerate(drafter.logits(batch))
                    ]
                estimate.add(batch, rows)
        return estimate.summary()

    def _measure(self) -> None:
        """Measure, log it, and keep the parameters if they are the best so far."""
        found = {"step": self.progress.step, **self.measure(self._averaged)}
        self._log({**found, "seconds": round(self.progress.seconds, 3), "measured": True})
        best = self.progress.best
        if best is None or _merit(found) > _merit(best):
            self.progress = replace(self.progress, best=found)
            for name, weight in self._average.items():
                self._best[name].copy_(weight)

    def _finish(self, license: str) -> None:
        """Write the drafter's folder, config.json last: a folder that has one is whole."""
        from safetensors.torch import save

        target = self.corpus.manifest.target
        config, tensors = self.drafter.folder(self._best, target.model)
        data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        record = card.record(
            self.corpus.manifests,
            {**asdict(self.settings), "start_from": Path(self.settings.start_from).name},
            self.progress,
            before=start.history(self.settings.start_from),
            curve=[line for line in self._logged() if line.get("measured")],
            parameters=sum(weight.numel() for weight in self._named.values()),
            bytes=len(data),
            device=self.processes.described,
            trained_tokens=self.plan.tokens,
            license=license,
        )
        checkpoint.put(self.folder / "model.safetensors", data)
        card.write(self.folder, record)
        checkpoint.put(self.folder / "config.json", json.dumps(config, indent=2).encode())

    def _log(self, line: dict[str, Any]) -> None:
        if not self.processes.first:
            return
        with (self.folder / LOG).open("ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint counts on it
        if self._watch is not None:
            self._watch(line)

    def _logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / LOG).read_bytes().splitlines()]

    def _save(self) -> None:
        if not self.processes.first:
            return
        size = (self.folder / LOG).stat().st_size
        self.progress = replace(self.progress, log_bytes=size)
        checkpoint.write(self.folder, self.progress, self._state())

    def _state(self) -> dict[str, Tensor]:
        """All tensors that a run consists of."""
        state = self._optimizer.state()
        for name, weight in self._named.items():
            state[f"weight/{name}"] = weight
            state[f"average/{name}"] = self._average[name]
            state[f"best/{name}"] = self._best[name]
        return state

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._named.items():
                weight.copy_(tensors[f"weight/{name}"])
                self._average[name].copy_(tensors[f"average/{name}"])
                self._best[name].copy_(tensors[f"best/{name}"])
        self._optimizer.restore(tensors, self.progress.step)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.dtype == "float32":
            return nullcontext()
        mixed: AbstractContextManager[Any] = torch.autocast(self.device.type, torch.bfloat16)
        return mixed


class Plan:
    """Which answers each step sees. total: steps; tokens: those that all of them see, padding not counted."""

    def __init__(self, corpus: Corpus, places: Any, settings: Settings) -> None:
        self._corpus, self._places, self._settings = corpus, places, settings
        sizes = [len(self._batches(number)) for number in range(settings.epochs)]
        self._ends = np.cumsum([-(-size // settings.accumulate) for size in sizes]).tolist()
        self.total: int = self._ends[-1]
        self.tokens = int(corpus.lengths[places].sum()) * settings.epochs

    def _batches(self, number: int) -> list[list[int]]:
        settings = self._settings
        return epoch(self._corpus.lengths, self._places, settings.batch_tokens, settings.seed, number)

    def steps(self, done: int) -> Iterator[tuple[int, list[list[int]]]]:
        """The batches of each step but the first `done`, with the step's number."""
        width = self._settings.accumulate
        for number, end in enumerate(self._ends):
            if done >= end:
                continue
            batches = self._batches(number)
            first = self._ends[number - 1] if number else 0
            for step in range(max(first, done), end):
                at = (step - first) * width
                yield step, batches[at : at + width]

    def bases(self, batches: list[list[int]], depth: int) -> int:
        """Bases of these answers at a depth, as `Batch.bases` counts them."""
        places = [place for batch in batches for place in batch]
        room = self._corpus.lengths[places] - self._corpus.prompts[places] - 1 - depth
        return int(np.maximum(room, 0).sum())


def _merit(found: Mapping[str, Any]) -> float:
    return float(found["tau_greedy"] + found["tau_sampled"])


def _scales(corpus: Corpus, places: list[int]) -> list[float]:
    """Root mean square of each tap over these answers, more than 0."""
    states = np.concatenate([to_float32(own) for own in corpus.states(places)])
    return np.maximum(np.sqrt(np.square(states, dtype=np.float64).mean((0, 2))), 1e-6).tolist()  # type: ignore[no-any-return]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device
