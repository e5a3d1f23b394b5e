"""A llama-server program, asked over HTTP on localhost."""

from __future__ import annotations

import atexit
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

from benchmarks.peers.workers.protocol import serve

START_S = 300


class Worker:
    """program: the binary; options: further ones of its own."""

    def __init__(
        self, program: str, model: str, threads: int, context: int, sequences: int, options: list[str]
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [program, "--model", model, "--threads", threads, "--ctx-size", context, "--parallel", 1]
        words += ["--host", "127.0.0.1", "--port", port, *options]
        self._process = subprocess.Popen(list(map(str, words)), stdin=subprocess.DEVNULL, stdout=sys.stderr)
        atexit.register(self._process.kill)
        self._address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + START_S
        while not self._healthy():
            if self._process.poll() is not None:
                raise RuntimeError(f"{program} ended with {self._process.returncode}")
            if time.monotonic() > end:
                raise RuntimeError(f"{program} is not ready after {START_S} s")
            time.sleep(0.2)

    def answer(self, prompt: list[int], tokens: int) -> dict[str, Any]:
        request = {
            "prompt": prompt,
            "n_predict": tokens,
            "temperature": 0,
            "top_k": 1,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
        }
        data = json.dumps(request).encode()
        headers = {"Content-Type": "application/json"}
        start = time.perf_counter()
        with urllib.request.urlopen(
            urllib.request.Request(f"{self._address}/completion", data, headers)
        ) as response:
            reply = json.load(response)
        seconds = time.perf_counter() - start
        timings = reply.get("timings", {})
        # Forks that do not return ids say at least how many there are.
        ids = reply.get("tokens") or [-1] * (reply.get("tokens_predicted") or timings["predicted_n"])
        return {"tokens": ids, "first_s": timings.get("prompt_ms", 0) / 1e3 or None, "seconds": seconds}

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._address}/health", timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


if __name__ == "__main__":
    serve(Worker)
