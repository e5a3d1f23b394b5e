"""Answers through HTTP are the library's plain answers, whatever else the server does at the time."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import httpx2

from paceline import Engine, Grammar, SamplingParams
from paceline.serve import stub
from paceline.serve.wire import Build
from tests.serve.program import Program

STREAMS = 32
WORDS = ["pace", "line", "draft", "token", "tree", "exact", "plain", "law", "noise"]
SCHEMA = {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 8}
PLAIN = {"off": True}


def requests(count: int, seed: int = 5) -> list[dict[str, Any]]:
    """Mixed requests; every fourth is given up on the way."""
    pick = random.Random(seed)
    made = []
    for number in range(count):
        body: dict[str, Any] = {
            "model": "table",
            "messages": [{"role": "user", "content": " ".join(pick.choices(WORDS, k=pick.randint(1, 40)))}],
            "seed": pick.randrange(2**63),
            "max_tokens": pick.randint(1, 60),
            "temperature": pick.choice([0, 0.7, 1.0, 2.0]),
            "top_p": pick.choice([1.0, 0.8]),
            "top_k": pick.choice([0, 5]),
            "min_p": pick.choice([0.0, 0.05]),
            "stop": pick.choice([None, ["e", "th"], " "]),
            "frequency_penalty": pick.choice([0, 0.5]),
            "repetition_penalty": pick.choice([1.0, 1.2]),
            "logit_bias": pick.choice([None, {"5": -50, "7": 3}]),
            "logprobs": pick.choice([False, True]),
            "speculative": pick.choice(
                [None, PLAIN, {"drafter": "ngram"}, {"drafter": "recycling", "depth": 2}, {"nodes": 1}]
            ),
        }
        if number % 8 == 3:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
            body["response_format"]["json_schema"]["schema"] = {
                "type": "object",
                "properties": {"list": SCHEMA},
                "required": ["list"],
                "additionalProperties": False,
            }
        made.append(body)
    return made


def library(body: dict[str, Any]) -> str:
    """What the library answers, one request at a time and without a drafter."""
    engine: Engine = stub.build(Build("table", drafters=("none",)))
    form = body.get("response_format")
    names = ("seed", "max_tokens", "temperature", "top_p", "top_k", "min_p", "frequency_penalty")
    params = SamplingParams(
        **{name: body[name] for name in (*names, "repetition_penalty")},
        stop=body["stop"] or (),
        logit_bias={int(token): bias for token, bias in (body["logit_bias"] or {}).items()},
        grammar=Grammar.json_schema(form["json_schema"]["schema"]) if form else None,
    )
    (answer,) = engine.generate([body["messages"]], params)
    return answer.text


async def streamed(client: httpx2.AsyncClient, body: dict[str, Any], leave_after: int | None) -> str:
    """The text of a stream; leave_after: chunks after which the client goes away."""
    said = []
    chunks = 0
    async with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            (choice,) = json.loads(line.removeprefix("data: "))["choices"]
            said.append(choice["delta"].get("content", ""))
            chunks += 1
            if chunks == leave_after:
                break
    return "".join(said)


def test_32_streams_equal_the_library(server: Program) -> None:
    bodies = requests(STREAMS)

    async def all_at_once() -> list[str]:
        limits = httpx2.Limits(max_connections=STREAMS)
        async with httpx2.AsyncClient(base_url=server.url, timeout=60, limits=limits, verify=False) as client:
            return await asyncio.gather(
                *(
                    streamed(client, body, 1 + number % 5 if number % 4 == 1 else None)
                    for number, body in enumerate(bodies)
                )
            )

    texts = asyncio.run(all_at_once())
    for number, (body, text) in enumerate(zip(bodies, texts, strict=True)):
        plain = library(body)
        if number % 4 == 1:
            assert plain.startswith(text), number
        else:
            assert text == plain, number
    assert len(set(texts)) > STREAMS // 2
