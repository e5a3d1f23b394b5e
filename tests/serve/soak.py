"""Requests of all kinds, with faults among them: python -m tests.serve.soak [--seconds 3600] [--kill-every S]

Clients stay, go away in the middle, tear the connection, send what is no request. With --kill-every the
engine is killed again and again. At the end the server must be as it was: nothing in work, no cache in use,
as many tasks, and in both processes as many file descriptors and threads; and every request must have ended
once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.serve.program import Program, chat, running

CLIENTS = 8
PATIENCE_S = 300
"""Above that, an answer counts as lost; a machine that stops us for a while is no fault of the server's."""
FAULTY = 0.05


async def visit(client: httpx2.AsyncClient, pick: random.Random, texts: dict[int, str], killing: bool) -> str:
    """One request; what became of it."""
    seed = pick.randrange(6)
    body = chat(seed=seed, max_tokens=40, speculative=pick.choice([None, {"off": True}, {"nodes": 2}]))
    if pick.random() < FAULTY:
        return await fault(client, pick, body)
    try:
        if pick.random() < 0.5:
            response = await client.post("/v1/chat/completions", json=body)
            if response.status_code != 200:
                return refused(response, killing)
            text = response.json()["choices"][0]["message"]["content"]
        else:
            text = ""
            async with client.stream(
                "POST", "/v1/chat/completions", json=body | {"stream": True}
            ) as response:
                if response.status_code != 200:
                    await response.aread()
                    return refused(response, killing)
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        record = json.loads(line.removeprefix("data: "))
                        if "error" in record:
                            assert killing, record
                            return "cut"
                        text += record["choices"][0]["delta"].get("content", "")
    except httpx2.TransportError:
        if not killing:
            raise
        return "torn"
    assert texts.setdefault(seed, text) == text, f"seed {seed} was answered in two ways"
    return "answered"


def refused(response: httpx2.Response, killing: bool) -> str:
    error = response.json()["error"]
    assert killing, error
    assert response.status_code in (500, 503), error
    return "refused"


async def fault(client: httpx2.AsyncClient, pick: random.Random, body: dict[str, Any]) -> str:
    """What clients do that are not well."""
    kind = pick.choice(["gone", "gone", "torn", "bad", "garbage"])
    if kind == "bad":
        response = await client.post("/v1/chat/completions", json=body | {"temperature": -1})
        assert response.status_code in (400, 503)
    elif kind == "gone":
        async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
            chunks = pick.randrange(6)
            async for _ in response.aiter_lines():
                chunks -= 1
                if chunks < 0:
                    break
    else:
        data = json.dumps(body | {"stream": True}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        data = (
            b"\x00\xff" * 50
            if kind == "garbage"
            else head + b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
        )
        address = (client.base_url.host, client.base_url.port)
        connection = await asyncio.to_thread(socket.create_connection, address)
        with connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            connection.sendall(data[: pick.randrange(len(data) + 1)])
    return kind


@dataclass(frozen=True, slots=True)
class Held:
    """What the server holds: tasks; file descriptors, threads and bytes of the process that listens; and the
    same three of the engine."""

    tasks: int
    http: tuple[int, int, int]
    engine: tuple[int, int, int]

    def is_back_to(self, before: Held) -> bool:
        """Nothing is held that was not, but the pool that reads requests may have got its four threads."""
        return (
            self.tasks == before.tasks
            and self.http[0] <= before.http[0]
            and self.http[1] <= before.http[1] + 4
            and self.engine[:2] == before.engine[:2]
        )


def held(program: Program, client: httpx2.Client) -> Held:
    def of(process: int) -> tuple[int, int, int]:
        folder = Path(f"/proc/{process}")
        memory = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir())), memory

    found = re.search(r"^paceline:http_tasks (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found
    return Held(int(float(found[1])), of(program.process.pid), of(program.engine()))


async def at_work(program: Program, seconds: float, kill_every: float, seed: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    texts: dict[int, str] = {}
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        pick = random.Random(f"{seed}/{number}")
        async with httpx2.AsyncClient(base_url=program.url, timeout=PATIENCE_S, verify=False) as client:
            while time.monotonic() < end:
                outcomes[await visit(client, pick, texts, kill_every > 0)] += 1
                if kill_every:
                    await asyncio.sleep(0.02)

    async def killer() -> None:
        pick = random.Random(seed)
        while kill_every and time.monotonic() < end - 5:
            await asyncio.sleep(kill_every * pick.uniform(0.5, 1.5))
            with contextlib.suppress(ProcessLookupError):  # it is just being started again
                os.kill(program.engine(), signal.SIGKILL)
                outcomes["kills"] += 1

    await asyncio.gather(killer(), *(client(number) for number in range(CLIENTS)))
    return outcomes


def soak(seconds: float, *, kill_every: float = 0.0, seed: int = 0) -> dict[str, Any]:
    """Run, and check that all is back. Raises AssertionError."""
    with running("--max-batch", "4") as program, program.client() as client:
        for _ in range(20):  # let threads be made and keep-alive connections open
            client.post("/v1/chat/completions", json=chat(max_tokens=1)).raise_for_status()
        before = held(program, client)
        outcomes = asyncio.run(at_work(program, seconds, kill_every, seed))
        deadline = time.monotonic() + 15
        after = None
        while after is None or not after.is_back_to(before):
            health = client.get("/health")
            state = health.json()["models"]["table"]
            if health.status_code == 200 and state["running"] == state["waiting"] == 0:
                after = held(program, client)
            assert time.monotonic() < deadline, (health.text, before, after)
            time.sleep(0.05)
        assert 'kv_cache_usage_perc{model_name="table"} 0.0' in client.get("/metrics").text
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200
    ended = Counter(json.loads(line)["id"] for line in program.lines if '"message": "request"' in line)
    assert set(ended.values()) == {1}, "a request ended twice"
    asked = sum(outcomes.values()) - outcomes["kills"] - outcomes["garbage"] + 21
    lost = outcomes["gone"] + outcomes["torn"]  # may have gone before the server had read them
    assert asked - lost <= len(ended) <= asked, (len(ended), outcomes)
    return {
        "seconds": seconds,
        "requests": len(ended),
        **outcomes,
        "held_before": asdict(before),
        "held_after": asdict(after),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--kill-every", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(soak(options.seconds, kill_every=options.kill_every, seed=options.seed)))


if __name__ == "__main__":
    main()
