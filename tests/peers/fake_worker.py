"""An engine for the tests of the comparison: counts upwards from the last token of the prompt."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.workers.protocol import serve


class Worker:
    def __init__(
        self,
        sequences: int,
        name: str = "",
        log: str = "",
        slow: dict[str, float] | None = None,
        refuses: int = -1,
        crashes: int = -1,
        short: bool = False,
        chatty: bool = False,
        fails_batches: bool = False,
        shift: int = 0,
        noise: float = 0.0,
    ) -> None:
        self._name, self._log, self._slow = name, log, slow or {}
        self._refuses, self._crashes, self._short = refuses, crashes, short
        self._fails_batches = fails_batches
        self._chatty, self._shift, self._noise = chatty, shift, noise

    def answer(self, prompt: list[int], tokens: int) -> dict[str, Any]:
        if self._chatty:
            print("loading 100 %")
            os.system("echo from a child")
        if self._log:
            with Path(self._log).open("a") as file:
                file.write(json.dumps([self._name, prompt]) + "\n")
        if self._refuses in prompt:
            raise ValueError(f"not {self._refuses}\nand more")
        if self._crashes in prompt:
            print("last words", file=sys.stderr, flush=True)
            os._exit(3)
        seconds = 0.001 + self._slow.get(str(prompt[0]), self._slow.get("*", 0))
        time.sleep(seconds)
        first = prompt[-1] + self._shift
        ids = list(range(first, first + tokens - self._short))
        return {"tokens": ids, "first_s": seconds / 4, "seconds": seconds}

    def batch(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        if self._fails_batches:
            raise MemoryError("too many")
        answers = [self.answer(prompt, tokens) for prompt in prompts]
        seconds = sum(answer["seconds"] for answer in answers)
        return {"tokens": [answer["tokens"] for answer in answers], "seconds": seconds}

    def logits(self, tokens: list[int], first: int, file: str) -> dict[str, Any]:
        own = np.eye(16, dtype=np.float32)[tokens[first:]]
        np.save(file, own + self._noise * np.arange(16, dtype=np.float32))
        return {}


class Mute(Worker):
    logits: Any = property()


def make(mute: bool = False, **settings: Any) -> Worker:
    return Mute(**settings) if mute else Worker(**settings)


if __name__ == "__main__":
    serve(make)
