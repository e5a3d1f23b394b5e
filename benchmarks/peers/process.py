"""A worker seen from the runner: a process that answers requests, one line each (workers/protocol.py)."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from benchmarks.peers.contender import Launch, PeerError
from benchmarks.peers.environment import LOGS, ROOT, last_words

PAUSE_S = 0.3
"""Time for the threads of the engine that just worked to go to sleep; Intel's OpenMP spins for 0.2 s."""
MODULES = "benchmarks.peers.workers"
"""Where workers are found."""
LIMIT_S = 900
"""No start and no answer takes longer, or the worker counts as hanging."""

Reply = dict[str, Any]


class Process:
    """One engine in a process of its own. Raises PeerError if it does not start."""

    def __init__(self, launch: Launch, name: str) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self._log = LOGS / f"{re.sub(r'[^a-zA-Z0-9]+', '-', name)}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    str(launch.python),
                    "-m",
                    f"{MODULES}.{launch.worker}",
                    json.dumps(dict(launch.settings)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=ROOT,
                start_new_session=True,  # so that its children can be ended with it
            )
        try:
            self.does: list[str] = self._read()["does"]
        except BaseException:
            self._end()
            raise

    def ask(self, do: str, **values: Any) -> Reply:
        """The reply to one request. Raises PeerError with the engine's error, or if it crashed or hangs."""
        time.sleep(PAUSE_S)
        assert self._process.stdin is not None, "opened as a pipe"
        with suppress(BrokenPipeError):  # the read below says why
            self._process.stdin.write(json.dumps({"do": do, **values}) + "\n")
            self._process.stdin.flush()
        return self._read()

    def answer(self, prompt: list[int], tokens: int) -> Reply:
        """The answer's token ids and times; raises PeerError unless it has that many tokens."""
        reply = self.ask("answer", prompt=prompt, tokens=tokens)
        if len(reply["tokens"]) != tokens:
            raise PeerError(f"expected {tokens} tokens, got {len(reply['tokens'])}")
        return reply

    def _read(self) -> Reply:
        stdout = self._process.stdout
        assert stdout is not None, "opened as a pipe"
        # A worker sends one line per request, so nothing waits in the buffer of `stdout` here.
        if not select.select([stdout], [], [], LIMIT_S)[0]:
            raise PeerError(f"no reply within {LIMIT_S} s")
        line = stdout.readline()
        if not line:
            raise PeerError(f"ended with {self._process.wait()}: {last_words(self._log)}")
        reply: Reply = json.loads(line)
        if "error" in reply:
            raise PeerError(reply["error"])
        return reply

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
