"""`paceline serve` as a program of its own, on the tiny model, for tests and loads."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2

READY_S = 30.0
SEED = 7


class Program:
    """A running server. lines: what it wrote on stderr."""

    def __init__(self, *arguments: str, keys: str = "", wait: bool = True) -> None:
        environment = {**os.environ, "PACELINE_API_KEYS": keys}
        if "--model" not in arguments and "--models" not in arguments:
            arguments = ("--model", "table", *arguments)
        if "--socket" not in arguments:
            arguments = ("--port", "0", *arguments)
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "paceline", "serve", *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if wait:
            self.wait_for("ready: ")
            found = re.search(r"http://\S+:\d+", "\n".join(self.lines))
            self.url = found[0] if found else "http://localhost"

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            for line in self.process.stderr:
                self.lines.append(line.rstrip("\n"))

    def wait_for(self, words: str) -> str:
        """The first line with these words."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if words in line:
                    return line
            if self.process.poll() is not None and not self._reader.is_alive():
                break
            time.sleep(0.01)
        raise AssertionError(f"no {words!r} in {self.lines}")

    @property
    def faults(self) -> list[str]:
        """What it wrote of faults of its own."""
        return [line[-500:] for line in self.lines if "Traceback" in line]

    def client(self, key: str = "", **options: Any) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=30, verify=False, **options)

    def engine(self) -> int:
        """The process id of the engine."""
        started = [line for line in self.lines if '"message": "engine started"' in line]
        return int(json.loads(started[-1])["pid"])

    def tell(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 30) -> int:
        """Wait for the end; the exit code."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        self._reader.join(5)
        return code


@contextlib.contextmanager
def running(*arguments: str, keys: str = "") -> Iterator[Program]:
    program = Program(*arguments, keys=keys)
    try:
        yield program
    finally:
        program.tell()
        code = program.end()
    assert code == 0, program.lines
    assert program.faults == []


def chat(text: str = "Hello", **more: Any) -> dict[str, Any]:
    """A request for a short answer."""
    return {
        "model": "table",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 24,
        "seed": SEED,
        **more,
    }


def events(response: httpx2.Response) -> Iterator[str]:
    """The data of server-sent events."""
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")
