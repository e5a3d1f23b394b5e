"""Many streams at once: python -m tests.serve.load [--streams 256] [--seconds 600]

Every stream is one long answer of the tiny model, paced to 10 tokens a second. Of each are checked: all of
its text, in order, against the library's; when its chunks came; and what memory the server takes. Then
four times as many requests as the server takes at a time: how fast the rest is refused, and what is still
answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from paceline import SamplingParams
from paceline.serve import stub
from paceline.serve.wire import Build
from tests.serve.program import Program, running

RATE = 10
SEEDS = 8
LATE_S = 0.1
PAGE = os.sysconf("SC_PAGE_SIZE")
PLAIN = {"off": True}


@dataclass(frozen=True, slots=True)
class Figures:
    """What a load came to.

    wrong     streams whose text is not the library's
    lateness  of a chunk: how much later it came than a tenth of a second after the one before
    growth    of the memory of both processes, from a fifth of the time on
    """

    streams: int
    seconds: float
    tokens: int
    wrong: int
    lateness_p50_s: float
    lateness_p99_s: float
    memory_bytes: int
    growth: float


def question(seed: int, tokens: int) -> dict[str, Any]:
    return {
        "model": "table",
        "messages": [{"role": "user", "content": "Hello"}],
        "seed": seed,
        "max_tokens": tokens,
        "min_tokens": tokens,
        "ignore_eos": True,
        "speculative": PLAIN,
        "stream": True,
    }


def library(seed: int, tokens: int, context: int) -> str:
    engine = stub.build(Build("table", drafters=("none",), context=context))
    params = SamplingParams(seed=seed, max_tokens=tokens, min_tokens=tokens, ignore_eos=True)
    (answer,) = engine.generate([[{"role": "user", "content": "Hello"}]], params)
    return answer.text


async def ask(url: str, body: dict[str, Any]) -> tuple[int, str, list[float], float]:
    """Status, text, times of the chunks with text, and when the status came. A client as lean as can be."""
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    try:
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(data) + data
        )
        status = int((await reader.readline()).split()[1])
        answered = time.perf_counter()
        text, times = [], []
        while line := await reader.readline():
            choices = json.loads(line[6:]).get("choices") if line.startswith(b"data: {") else None
            if choices and (said := choices[0]["delta"].get("content")):
                text.append(said)
                times.append(time.perf_counter())
        return status, "".join(text), times, answered
    finally:
        writer.close()


def memory(program: Program) -> int:
    """Bytes that both processes have resident."""
    total = 0
    for process in (program.process.pid, program.engine()):
        with open(f"/proc/{process}/statm", encoding="ascii") as file:  # noqa: PTH123
            total += int(file.read().split()[1]) * PAGE
    return total


def streams(count: int, seconds: float) -> Figures:
    """`count` streams for so long."""
    tokens = max(2, int(seconds * RATE))
    context = tokens + 64
    with running(
        *("--model", f"table:pace={1 / RATE}", "--max-batch", str(count), "--context", str(context)),
        *("--cache-tokens", str(count * (context + 64))),
    ) as program:
        before = 0

        async def settled() -> None:
            nonlocal before
            await asyncio.sleep(seconds / 5)
            before = memory(program)

        async def all_at_once() -> list[Any]:
            asked = [ask(program.url, question(number % SEEDS, tokens)) for number in range(count)]
            return await asyncio.gather(*asked, settled())

        begin = time.perf_counter()
        *answers, _ = asyncio.run(all_at_once())
        taken = time.perf_counter() - begin
        after = memory(program)
    right = [library(seed, tokens, context) for seed in range(min(SEEDS, count))]
    late = np.concatenate([np.diff(times) - 1 / RATE for _, _, times, _ in answers])
    return Figures(
        streams=count,
        seconds=taken,
        tokens=count * tokens,
        wrong=sum(text != right[number % SEEDS] for number, (_, text, _, _) in enumerate(answers)),
        lateness_p50_s=float(np.quantile(late, 0.5)),
        lateness_p99_s=float(np.quantile(late, 0.99)),
        memory_bytes=after,
        growth=after / before - 1,
    )


def overload(batch: int, seconds: float, times: int = 4) -> dict[str, Any]:
    """As many clients as the server takes at a time, then `times` as many; each asks again and again."""
    capacity = 2 * batch
    arguments = ("--model", "table:pace=0.02", "--max-batch", str(batch), "--max-waiting", str(batch))

    async def clients(url: str, count: int) -> tuple[float, list[float]]:
        end = time.perf_counter() + seconds
        refusals: list[float] = []
        tokens = 0

        async def client(seed: int) -> None:
            nonlocal tokens
            while time.perf_counter() < end:
                begin = time.perf_counter()
                status, text, _, answered = await ask(url, question(seed, 20))
                if status == 429:
                    refusals.append(answered - begin)
                    await asyncio.sleep(0.25)
                else:
                    assert status == 200, status
                    tokens += len(text)

        begin = time.perf_counter()
        await asyncio.gather(*(client(seed) for seed in range(count)))
        return tokens / (time.perf_counter() - begin), refusals

    with running(*arguments, "--log-level", "warning") as program:
        peak, none = asyncio.run(clients(program.url, capacity))
        goodput, refusals = asyncio.run(clients(program.url, times * capacity))
    return {
        "clients": times * capacity,
        "peak_tokens_per_s": peak,
        "goodput": goodput / peak,
        "refused_before": len(none),
        "refused": len(refusals),
        "refused_in_s_p50": float(np.quantile(refusals, 0.5)),
        "refused_in_s_p99": float(np.quantile(refusals, 0.99)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args()
    figures = streams(options.streams, options.seconds)
    print(json.dumps(asdict(figures)))
    over = overload(8, min(60, options.seconds))
    print(json.dumps(over))
    failed = Counter(
        wrong=figures.wrong,
        late=figures.lateness_p99_s > LATE_S,
        memory=figures.growth > 0.02,
        refusals=over["refused_in_s_p99"] > 0.05,
        goodput=over["goodput"] < 0.9,
    )
    raise SystemExit(f"not held: {[name for name, bad in failed.items() if bad]}" if +failed else 0)


if __name__ == "__main__":
    main()
