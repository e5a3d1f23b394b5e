"""The server under 1 to 16 streams, with speculation and plainly, beside llama-server.

    python -m benchmarks.serving --prompts prompts.jsonl --llama-server build/llama-server

So many clients each ask, read the stream to its end, and ask again. For each number of streams Paceline is
started afresh and asked with `--drafter` and plainly in turn, block after block of prompts, no prompt twice
and with a cache for each way, so that neither can know an answer; each goes first equally often. A ratio is
the median over blocks of plain's seconds by the drafter's, with its 95 % bootstrap interval. llama-server has
as many slots as there are streams and answers the first eight requests or first block in the same run. All
answer greedily and end where the model ends. Printed, and written as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np
from rich.console import Console

from paceline import kernels
from paceline.bench.figures import speed_up
from paceline.bench.machine import machine, provenance, versions
from paceline.bench.prompts import choose
from paceline.errors import ConfigError
from paceline.models.cache import write_atomically
from paceline.models.registry import resolve

START_S = 300
ANSWER_S = 600
BLOCKS = 5
"""Blocks of prompts that are timed for each number of streams, at least."""
REQUESTS = 40
"""Requests that are timed for each number of streams and each way, at least."""
MODES: dict[str, dict[str, Any]] = {"plain": {"speculative": {"off": True}}, "drafted": {}}

Report = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """text; tokens: how many; first_s: seconds to its first chunk; gaps: seconds between chunks after it."""

    text: str
    tokens: int
    first_s: float
    gaps: list[float]


@dataclass(frozen=True, slots=True)
class Block:
    """Answers to one block of prompts, in their order, and the seconds that all together took."""

    answers: list[Answer]
    seconds: float

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)


class Server(NamedTuple):
    """A running server's address, and the name of its model."""

    url: str
    model: str


@contextlib.contextmanager
def running(command: Callable[[int], Sequence[object]]) -> Iterator[Server]:
    """A server, once its /health says 200. command: what starts it, from its port.

    Raises ConfigError with its last words if it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(word) for word in command(port)]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + START_S
        while not _healthy(url):
            if process.poll() is not None:
                raise ConfigError(f"{words[0]} ended with {process.returncode} before it was ready")
            if time.monotonic() > end:
                raise ConfigError(f"{words[0]} is not ready after {START_S} s")
            time.sleep(0.1)
        yield Server(url, httpx2.get(f"{url}/v1/models").json()["data"][0]["id"])
    finally:
        process.terminate()
        process.wait()


def _healthy(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def ask_all(server: Server, prompts: Sequence[str], streams: int, tokens: int, more: Report) -> Block:
    """Answers to all prompts, so many at a time. more: further fields of each request."""

    async def all_of_them() -> Block:
        answers: dict[int, Answer] = {}
        numbered = iter(enumerate(prompts))

        async def client() -> None:
            for number, prompt in numbered:
                answers[number] = await _ask(server, prompt, tokens, more)

        begin = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(streams)))
        return Block([answers[number] for number in sorted(answers)], time.perf_counter() - begin)

    return asyncio.run(all_of_them())


async def _ask(server: Server, prompt: str, tokens: int, more: Report) -> Answer:
    """One streamed answer. As lean as can be, for it runs on the cores that are measured."""
    body: Report = {
        "model": server.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **more,
    }
    data = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    said, used, times = "", 0, [time.perf_counter()]
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    try:
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)
        )
        status = await reader.readline()
        if b" 200 " not in status:
            raise ConfigError(f"{server.url}: {status.decode()}{(await reader.read()).decode()}")
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                continue
            record = json.loads(line[6:])
            if "error" in record:
                raise ConfigError(f"{server.url}: {record['error']}")
            if record.get("usage"):
                used = record["usage"]["completion_tokens"]
            if record["choices"] and (text := record["choices"][0]["delta"].get("content")):
                said += text
                times.append(time.perf_counter())
    finally:
        writer.close()
    if not said:
        times.append(time.perf_counter())
    first, *gaps = np.diff(times).tolist()
    return Answer(said, used, first, gaps)


def figures(blocks: Sequence[Block]) -> Report:
    """Tokens per second, and medians and 99th percentiles of times in seconds, of all blocks together."""
    answers = [answer for block in blocks for answer in block.answers]
    first = [answer.first_s for answer in answers]
    gaps = [gap for answer in answers for gap in answer.gaps]
    tokens, seconds = sum(block.tokens for block in blocks), sum(block.seconds for block in blocks)
    return {
        "requests": len(answers),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "first_p50_s": float(np.quantile(first, 0.5)),
        "first_p99_s": float(np.quantile(first, 0.99)),
        "between_p50_s": float(np.quantile(gaps, 0.5)),
        "between_p99_s": float(np.quantile(gaps, 0.99)),
    }


def in_blocks(prompts: Sequence[str], streams: int) -> list[Sequence[str]]:
    """Prompts for so many streams: two for each in a block, and at least four. Raises ConfigError if there
    are not enough for BLOCKS."""
    size = max(4, 2 * streams)
    count = max(BLOCKS, -(-REQUESTS // size))
    if len(prompts) < size * BLOCKS:
        raise ConfigError(f"{streams} streams need {size * BLOCKS} prompts that fit, got {len(prompts)}")
    return [prompts[at : at + size] for at in range(0, min(count * size, len(prompts) - size + 1), size)]


def paceline(options: argparse.Namespace, streams: int, port: int) -> list[object]:
    """What starts our server."""
    return [
        *(sys.executable, "-m", "paceline", "serve", "--model", options.model, "--port", port),
        *("--drafter", options.drafter, "--threads", options.threads, "--max-batch", streams),
        *("--context", options.context, "--cache-tokens", streams * options.context),
        *("--log-level", "warning"),
    ]


def llama_server(options: argparse.Namespace, streams: int, port: int) -> list[object]:
    """What starts llama-server: each slot has an equal part of the context."""
    return [
        *(options.llama_server, "--model", resolve(options.model), "--port", port),
        *("--threads", options.threads, "--parallel", streams, "--ctx-size", streams * options.context),
        *options.llama_option,
    ]


def fitting(server: Server, prompts: Sequence[str], room: int) -> list[str]:
    """Those that have no more than `room` tokens as a chat."""

    def count(prompt: str) -> int:
        asked = {"model": server.model, "messages": [{"role": "user", "content": prompt}]}
        return int(http.post("/tokenize", json=asked).raise_for_status().json()["count"])

    with httpx2.Client(base_url=server.url, timeout=60) as http:
        return [prompt for prompt in prompts if count(prompt) <= room]


def level(options: argparse.Namespace, prompts: Sequence[str], streams: int) -> Report:
    """The figures of one number of streams."""
    times: dict[str, list[Block]] = {mode: [] for mode in MODES}
    with running(lambda port: paceline(options, streams, port)) as server:
        blocks = in_blocks(fitting(server, prompts, options.context - options.tokens), streams)

        def ours(mode: str, asked: Sequence[str]) -> Block:
            # A salt for each way: the other's prompts are not found in the cache.
            return ask_all(server, asked, streams, options.tokens, {**MODES[mode], "cache_salt": mode})

        for mode in MODES:
            ours(mode, ["Say hello."] * streams)
        for number, block in enumerate(blocks):
            for mode in list(MODES)[:: 1 if number % 2 else -1]:
                times[mode].append(ours(mode, block))
    plain, drafted = times["plain"], times["drafted"]
    pairs = [
        (p, d) for a, b in zip(plain, drafted, strict=True) for p, d in zip(a.answers, b.answers, strict=True)
    ]
    report: Report = {
        "streams": streams,
        **speed_up([block.seconds for block in plain], [block.seconds for block in drafted]),
        "different_outputs": sum(p.text != d.text for p, d in pairs),
        "plain": figures(plain),
        "drafted": figures(drafted),
    }
    if options.llama_server:
        asked = [prompt for block in blocks[: max(1, 8 // len(blocks[0]))] for prompt in block]
        with running(lambda port: llama_server(options, streams, port)) as server:
            ask_all(server, ["Say hello."] * streams, streams, options.tokens, {})
            report["llama-server"] = figures([ask_all(server, asked, streams, options.tokens, {})])
    return report


def line(one: Report) -> str:
    """One number of streams, in words."""
    interval = f"{one['ratio_low']:.2f} to {one['ratio_high']:.2f}"
    parts = [f"{one['streams']} streams: {one['ratio']:.2f} times plain ({interval})"]
    for name in (*MODES, "llama-server"):
        if name in one:
            own = one[name]
            parts.append(
                f"{name} {own['tokens_per_second']:.0f} tokens/s, first token "
                f"{own['first_p50_s'] * 1e3:.0f} and {own['first_p99_s'] * 1e3:.0f} ms, between "
                f"{own['between_p50_s'] * 1e3:.1f} and {own['between_p99_s'] * 1e3:.1f} ms"
            )
    return "; ".join(parts)


def main() -> None:
    options = _options()
    console = Console(stderr=True, highlight=False)
    prompts = [prompt.text for prompt in choose(options.prompts, sys.maxsize)]
    random.Random(0).shuffle(prompts)  # so that every block has of all categories
    levels = []
    for streams in options.streams:
        levels.append(level(options, prompts, streams))
        console.print(line(levels[-1]))
    report = {
        "machine": machine(kernels.chosen(), options.threads),
        "versions": versions(),
        **provenance(options.model),
        "model": options.model,
        "drafter": options.drafter,
        "max_tokens": options.tokens,
        "llama_server": _version(options.llama_server) if options.llama_server else None,
        "llama_options": options.llama_option,
        "levels": levels,
    }
    with write_atomically(options.out) as out:
        out.write(json.dumps(report, indent=1).encode())
    print(json.dumps(report))


def _version(program: Path) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    words = (done.stdout + done.stderr).splitlines()
    return next((line for line in words if "version" in line.lower()), "unknown").strip()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="a name or a GGUF file")
    parser.add_argument("--drafter", default="auto")
    parser.add_argument("--prompts", type=Path, help="JSON lines; by default those that come along")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--tokens", type=int, default=96, help="tokens of an answer at most")
    parser.add_argument("--context", type=int, default=2048, help="tokens of prompt and answer at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--llama-server", type=Path, metavar="PROGRAM")
    parser.add_argument(
        "--llama-option", action="append", default=[], help="a further word for it; repeatable"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/serving.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
