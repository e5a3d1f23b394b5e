"""Many streams at once: python -m tests.serve.load [--streams 256] [--seconds 600]

Every client streams answers of the tiny model, paced to 10 tokens a second, one after the other, so that all
streams are open all the time. Of each answer are checked: all of its text, in order, against the library's;
when its chunks came; and what memory and processor time the server takes. Then four times as many requests
as the server takes at a time: how fast the rest is refused, and what is still answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline import SamplingParams
from paceline.serve import stub
from paceline.serve.wire import Build
from tests.serve.program import Program, running

RATE = 10
ANSWER_S = 15.0
"""What an answer takes: memory must be flat over many of them, not while one grows."""
SEEDS = 8
LATE_S = 0.1
REFUSED_S = 0.05
GOODPUT = 0.9
GROWTH = 0.02
PAGE, TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
PLAIN = {"off": True}


@dataclass(frozen=True, slots=True)
class Figures:
    """What a load came to.

    wrong     answers whose text is not the library's
    lateness  of a chunk: how much later it came than a tenth of a second for each token after the one before
    growth    of the memory of both processes, from a fifth of the time on, or one and a half answers
    cores     processor seconds a second, of the process that listens and of the engine
    """

    streams: int
    seconds: float
    answers: int
    tokens: int
    wrong: int
    lateness_p50_s: float
    lateness_p99_s: float
    memory_bytes: int
    growth: float
    http_cores: float
    engine_cores: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client saw of one request; times: when each chunk with text came; answered: when the status
    did."""

    status: int
    headers: dict[str, str]
    text: str
    times: list[float]
    answered: float


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


@dataclass(frozen=True, slots=True)
class Known:
    """The library's answer: its text, and which tokens have any, for some have none: a chunk with text may
    come two tokens after the one before."""

    text: str
    places: list[int]


def library(seed: int, tokens: int, context: int) -> Known:
    engine = stub.build(Build("table", drafters=("none",), context=context))
    params = SamplingParams(seed=seed, max_tokens=tokens, min_tokens=tokens, ignore_eos=True)
    events = list(engine.stream([{"role": "user", "content": "Hello"}], params))
    return Known(
        "".join(event.text for event in events), [place for place, event in enumerate(events) if event.text]
    )


def lateness(reply: Reply, known: Known) -> NDArray[np.float64]:
    """Seconds by which each chunk came later than its tokens take."""
    assert len(reply.times) == len(known.places), "a chunk for each token that has text"
    return np.diff(reply.times) - np.diff(known.places) / RATE


async def ask(url: str, body: dict[str, Any]) -> Reply:
    """A client as lean as can be."""
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
        headers = {}
        while line := (await reader.readline()).strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        text, times = [], []
        while line := await reader.readline():
            choices = json.loads(line[6:]).get("choices") if line.startswith(b"data: {") else None
            if choices and (said := choices[0]["delta"].get("content")):
                text.append(said)
                times.append(time.perf_counter())
        return Reply(status, headers, "".join(text), times, answered)
    finally:
        writer.close()


def memory(program: Program) -> int:
    """Bytes that both processes have resident."""
    return PAGE * sum(
        int(Path(f"/proc/{process}/statm").read_text().split()[1])
        for process in (program.process.pid, program.engine())
    )


def processor(process: int) -> float:
    """Seconds that a process has computed."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICKS


def streams(count: int, seconds: float) -> Figures:
    """`count` streams for so long; the first answers begin spread over the time that one takes."""
    answer_s = min(ANSWER_S, seconds)
    tokens = max(2, round(answer_s * RATE))
    each = max(1, round(seconds / answer_s))
    settled = min(max(each * answer_s / 5, 1.5 * answer_s), each * answer_s)
    with running(
        *("--model", f"table:pace={1 / RATE}", "--max-batch", str(count), "--context", str(tokens + 64)),
        *("--cache-tokens", str(count * (tokens + 128))),
    ) as program:
        processes = (program.process.pid, program.engine())
        held = []

        async def client(number: int) -> list[Reply]:
            await asyncio.sleep(number / count * answer_s)
            return [await ask(program.url, question(number % SEEDS, tokens)) for _ in range(each)]

        async def watch() -> None:
            await asyncio.sleep(settled)
            held.append(memory(program))
            await asyncio.sleep(each * answer_s - settled)
            held.append(memory(program))

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(watch(), *(client(number) for number in range(count)))

        begin = time.perf_counter()
        computed = [-processor(process) for process in processes]
        _, *replies = asyncio.run(all_of_them())
        taken = time.perf_counter() - begin
        http, engine = (
            (before + processor(process)) / taken for before, process in zip(computed, processes, strict=True)
        )
    right = [library(seed, tokens, tokens + 64) for seed in range(min(SEEDS, count))]
    wrong = [reply.text != right[number % SEEDS].text for number, own in enumerate(replies) for reply in own]
    late = np.concatenate(
        [lateness(reply, right[number % SEEDS]) for number, own in enumerate(replies) for reply in own]
    )
    return Figures(
        streams=count,
        seconds=taken,
        answers=count * each,
        tokens=count * each * tokens,
        wrong=sum(wrong),
        lateness_p50_s=float(np.quantile(late, 0.5)),
        lateness_p99_s=float(np.quantile(late, 0.99)),
        memory_bytes=held[1],
        growth=held[1] / held[0] - 1,
        http_cores=http,
        engine_cores=engine,
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
                reply = await ask(url, question(seed, 20))
                if reply.status == 429:
                    assert int(reply.headers["retry-after"]) >= 1
                    refusals.append(reply.answered - begin)
                    await asyncio.sleep(0.25)  # a client that does not wait as long as it is told
                else:
                    assert reply.status == 200, reply.status
                    tokens += len(reply.text)

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
        memory=figures.growth > GROWTH,
        refusals=over["refused_in_s_p99"] > REFUSED_S,
        goodput=over["goodput"] < GOODPUT,
    )
    raise SystemExit(f"not held: {[name for name, bad in failed.items() if bad]}" if +failed else 0)


if __name__ == "__main__":
    main()
