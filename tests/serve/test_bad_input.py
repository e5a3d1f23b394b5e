"""Every kind of bad input is refused as the table in docs/serving.md says, and the server goes on."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.serve.program import Program, chat, running

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
KEY = "a-key-for-tests"


@pytest.fixture(scope="module")
def canary(client: httpx2.Client) -> str:
    return said(client.post(CHAT, json=chat(max_tokens=8)))


def said(response: httpx2.Response) -> str:
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


@pytest.fixture(autouse=True)
def well_afterwards(client: httpx2.Client, canary: str) -> Iterator[None]:
    yield
    assert client.get("/health").status_code == 200
    assert said(client.post(CHAT, json=chat(max_tokens=8))) == canary


def check(
    response: httpx2.Response,
    status: int,
    code: str | None = None,
    param: str | None = None,
    type: str = "invalid_request_error",
) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == type
    assert code is None or error["code"] == code
    assert param is None or error["param"] == param, error
    assert "\n" not in error["message"]
    assert response.headers["content-type"] == "application/json"


def refused(
    client: httpx2.Client, body: dict[str, Any], param: str | None, path: str = CHAT
) -> httpx2.Response:
    # httpx refuses to write NaN, the server must refuse to read it.
    response = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    check(response, 400, param=param)
    return response


DEEP = "[" * 10_000 + "]" * 10_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"model": "table", "temperature": NaN}',
        b'{"model": "table", "temperature": -Infinity}',
        DEEP.encode(),
        b'{"model": "table", "metadata": ' + DEEP.encode() + b"}",
        b'{"a": ' * 200 + b"1" + b"}" * 200,
        b'{"model": "table", "model": "table"}',
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_not_one_json_object(client: httpx2.Client, body: bytes) -> None:
    response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    check(response, 400, "invalid_json")


def test_too_much(client: httpx2.Client) -> None:
    check(client.post(CHAT, json=chat("x" * (5 << 20))), 413, "request_too_large")
    parts = (b" " * (1 << 20) for _ in range(5))  # no Content-Length
    response = client.post(CHAT, content=parts, headers={"Content-Type": "application/json"})
    check(response, 413, "request_too_large")
    check(client.get("/health", headers={"x": "y" * 40_000}), 431, "request_too_large")
    check(client.get("/health", headers={f"x-{n}": "y" for n in range(120)}), 431, "request_too_large")


def test_headers_without_end_and_what_is_no_http(server: Program) -> None:
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    for data, status, code in (
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 131_100, b"431", b"request_too_large"),
        (b"\x16\x03\x01 hello\r\n\r\n", b"400", b"invalid_http"),
    ):
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(data)
            answer = connection.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert b'"code":"%s"' % code in answer


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_another_content_type(client: httpx2.Client, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    check(client.post(CHAT, content=json.dumps(chat()), headers=headers), 415, "unsupported_media_type")


def test_paths_and_methods_that_are_not_there(client: httpx2.Client) -> None:
    check(client.get("/nothing"), 404, "not_found")
    check(client.get("/v1/chat/completions/"), 404, "not_found")
    check(client.get(CHAT), 405, "method_not_allowed")
    check(client.delete("/v1/models"), 405, "method_not_allowed")
    check(client.post(CHAT, json=chat(model="gpt-9")), 404, "model_not_found", "model")
    check(client.get("/v1/models/gpt-9"), 404, "model_not_found", "model")


@pytest.fixture(scope="module")
def locked() -> Iterator[Program]:
    with running("--strict", keys=f"{KEY},another-key") as program:
        yield program


def test_without_a_key_nobody_comes_in(locked: Program) -> None:
    forms: list[dict[str, str]] = [
        {},
        {"Authorization": "Bearer wrong-key"},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": "Bearer"},
        {"X-Api-Key": KEY},
        {"Host": "x/health?"},
        {"Authorization": "Bearer \xe9".encode("latin-1").decode("latin-1")},
    ]
    with locked.client() as client:
        for headers in forms:
            for path in ("/v1/models", "//v1/models", "/metrics", "/nothing", "/health/", "/Health"):
                response = client.get(path, headers={k: v.encode("latin-1") for k, v in headers.items()})
                check(response, 401, "invalid_api_key", type="authentication_error")
        assert client.get("/health").status_code == 200
        check(client.post(CHAT, content=b"{"), 401, type="authentication_error")
        for key in (KEY, "another-key"):
            assert client.get("/v1/models", headers={"Authorization": f"bearer {key}"}).status_code == 200


def test_unknown_parameters(client: httpx2.Client, locked: Program) -> None:
    response = client.post(CHAT, json=chat(colour="blue", **{'a"b\r\nc': 1}))
    assert response.status_code == 200
    assert "colour" in response.headers["warning"]
    with locked.client(KEY) as strict:
        check(strict.post(CHAT, json=chat(colour="blue")), 400, "unknown_parameter", "colour")
        assert strict.post(CHAT, json=chat()).status_code == 200
        half = json.dumps(chat() | {"\ud800": 1})
        response = strict.post(CHAT, content=half, headers={"Content-Type": "application/json"})
        check(response, 400, "unknown_parameter", "?")


@pytest.mark.parametrize("name", ["\ud800", "of-no-server"], ids=["half-a-character", "unknown"])
def test_a_model_that_is_not_there_leaves_no_figures_of_its_name(client: httpx2.Client, name: str) -> None:
    body = json.dumps(chat() | {"model": name})
    response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    check(response, 404, "model_not_found", "model")
    figures = client.get("/metrics")
    assert figures.status_code == 200
    assert name not in figures.text
    assert re.search(r'model_name="",path="[^"]*",status="404"', figures.text)


@pytest.mark.parametrize(
    "name",
    ["chat_template", "chat_template_kwargs", "prompt_embeds", "image_url", "functions", "audio", "best_of"],
)
def test_parameters_that_are_not_supported(client: httpx2.Client, name: str) -> None:
    body = chat(**{name: {"tokenize": True}})
    check(client.post(CHAT, json=body), 400, "unsupported_parameter", name)


MESSAGES: list[Any] = [
    None,
    "Hello",
    [],
    [{}],
    [{"role": "user"}],
    [{"role": "user", "content": 5}],
    [{"role": "root", "content": "x"}],
    [{"role": 1, "content": "x"}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}],
    [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
    [{"role": "user", "content": "x"}] * 3000,
]


@pytest.mark.parametrize("messages", MESSAGES)
def test_messages(client: httpx2.Client, messages: Any) -> None:
    body = chat() | {"messages": messages}
    refused(client, body, "messages")
    del body["messages"]
    refused(client, body, "messages")


@pytest.mark.parametrize(
    "prompt", ["", [], [-1], [98], ["a", 1], [[1], "a"], [[]], [""], ["a"] * 100, 5, None, {"a": 1}, [True]]
)
def test_prompts(client: httpx2.Client, prompt: Any) -> None:
    refused(client, {"model": "table", "prompt": prompt}, "prompt", TEXT)


def test_a_prompt_that_leaves_no_room(client: httpx2.Client) -> None:
    for body in (chat("x" * 2100), chat(max_tokens=2048), chat(max_completion_tokens=2048)):
        check(client.post(CHAT, json=body), 400, "context_length_exceeded", "messages")
    body = {"model": "table", "prompt": "x" * 2048}
    check(client.post(TEXT, json=body), 400, "context_length_exceeded", "prompt")


ANY: list[Any] = ["5", True, {}, []]
VALUES: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 10**12, 1e12, 1.5, 2**63, *ANY],
    "n": [0, -1, 9, 10**18, 1.5, *ANY],
    "temperature": [-0.1, 2.1, 1e308, 1e-9, *ANY],
    "top_p": [0, 1.1, -1, *ANY],
    "top_k": [-2, 2**40, 0.5, *ANY],
    "min_p": [2, -0.1, *ANY],
    "presence_penalty": [-2.1, 2.1, *ANY],
    "frequency_penalty": [-2.1, 2.1, *ANY],
    "repetition_penalty": [0, -1, 11, *ANY],
    "logit_bias": [
        {"-1": 1},
        {"98": 1},
        {str(n): 1 for n in range(1100)},
        {"1": 101},
        {"a": 1},
        {"1": "x"},
        {"\u0661": 1},
        [1],
        5,
    ],
    "stop": [["a"] * 5, "", [""], "x" * 10_000, [1], 5],
    "stop_token_ids": [["a"], 5],
    "bad_words": [["x"] * 2000, [""], [5]],
    "min_tokens": [25, -1, *ANY],
    "logprobs": [5, "yes"],
    "top_logprobs": [-1, 21, 1, *ANY],
    "seed": [2**63, -1, "x", 1.5, 2**200, True],
    "stream_options": [{"include_usage": True}, 5, {"include_usage": "yes"}],
    "tools": [5, [5], [{"type": "web_search", "function": {"name": "x"}}], [{"function": {"name": "a b"}}]],
    "tool_choice": ["required", 5, {"type": "function", "function": {"name": "f"}}],
    "response_format": [5, {"type": "yaml"}, {}, {"type": "json_schema"}],
    "prediction": [5, {"type": "x", "content": "y"}, {"type": "content"}],
    "speculative": [
        {"nodes": -1},
        {"nodes": 65},
        {"depth": 10**9},
        {"drafter": "secret"},
        {"drafter": 5},
        {"off": 1},
        {"unknown": 1},
        [],
    ],
    "cache_salt": ["", "x" * 300, 5],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in VALUES.items() for value in values]
)
def test_values(client: httpx2.Client, name: str, value: Any) -> None:
    refused(client, chat(**{name: value}), name)


@pytest.mark.parametrize("token", [98, -1, 2**40])
def test_stop_tokens_beyond_the_vocabulary_also_with_min_tokens(client: httpx2.Client, token: int) -> None:
    refused(client, chat(stop_token_ids=[token]), "stop")
    refused(client, chat(stop_token_ids=[token], min_tokens=5), "stop")


def test_min_tokens_with_a_grammar(client: httpx2.Client) -> None:
    refused(client, chat(response_format={"type": "json_object"}, min_tokens=5), "min_tokens")


def test_log_probabilities_of_completions(client: httpx2.Client) -> None:
    for value in (-1, 21, True, "1"):
        refused(client, {"model": "table", "prompt": "x", "logprobs": value}, None, TEXT)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
SCHEMAS: list[Any] = [
    {"type": "nothing"},
    {"type": ["object", 5]},
    {"$ref": "#"},
    {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"$ref": "http://example.com/schema.json"},
    nested(25),
    {"type": "string", "pattern": "(a+)+$"},
    {"type": "string", "pattern": "("},
    {"type": "object", "description": "x" * (1 << 20)},
    {"enum": ["x" * 100] * 10_000},
]


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_schemas(client: httpx2.Client, number: int) -> None:
    schema = SCHEMAS[number]
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    for body, param in ((chat(response_format=form), "response_format"), (chat(tools=[tool]), "tools")):
        begin = time.perf_counter()
        response = client.post(CHAT, json=body)
        assert time.perf_counter() - begin < 2.5
        check(response, 400, "invalid_json_schema", param)


def test_a_schema_that_is_a_thousand_deep(client: httpx2.Client) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": nested(400)}}
    check(client.post(CHAT, json=chat(response_format=form)), 400, "invalid_json")


@pytest.mark.parametrize("text", ["\ud800", "\x00", "e" + "\u0301" * (1 << 19), "<|end|>" * 250])
def test_odd_text_is_read_as_text(client: httpx2.Client, text: str) -> None:
    body = json.dumps(chat(text))  # a lone surrogate travels as \ud800
    response = client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    # Control tokens that a user types are not control tokens.
    assert response.json()["usage"]["prompt_tokens"] >= 18 + (7 * 250 if "<" in text else 0)


def test_the_same_request_id_twice(client: httpx2.Client) -> None:
    ids = {client.post(CHAT, json=chat(), headers={"X-Request-Id": "one"}).json()["id"] for _ in range(2)}
    assert len(ids) == 2


def test_tokenize_and_detokenize(client: httpx2.Client) -> None:
    for body, param in (
        ({}, "prompt"),
        ({"prompt": "a", "messages": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
    ):
        refused(client, body, param, "/tokenize")
    for tokens in ([98], [-1], ["a"], None, [2**70]):
        refused(client, {"tokens": tokens}, "tokens", "/detokenize")


def test_the_responses_form(client: httpx2.Client) -> None:
    for body, param in (
        ({}, "model"),
        ({"input": []}, "input"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]},
            "input",
        ),
        ({"input": "x", "previous_response_id": "resp-1"}, "previous_response_id"),
        (
            {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": {"$ref": "#"}}}},
            "text",
        ),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x" * 3000}, "input"),
    ):
        refused(client, body if param == "model" else {"model": "table", **body}, param, "/v1/responses")
