"""The interface, as clients see it."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.serve.program import chat, events

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "size": {"enum": [1, 2, 3]}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up.",
        "parameters": {
            "type": "object",
            "properties": {"page": {"enum": [10, 20]}},
            "required": ["page"],
            "additionalProperties": False,
        },
    },
}


def post(client: httpx2.Client, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def stream(client: httpx2.Client, path: str, **body: Any) -> list[dict[str, Any]]:
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        data = list(events(response))
    assert data.pop() == "[DONE]"
    return [json.loads(one) for one in data]


CHAT = "/v1/chat/completions"


def test_a_stream_says_what_one_response_says(client: httpx2.Client) -> None:
    whole = post(client, CHAT, **chat(logprobs=True, top_logprobs=2))
    chunks = stream(client, CHAT, **chat(logprobs=True, top_logprobs=2))
    (choice,) = whole["choices"]
    deltas = [one["choices"][0] for one in chunks]
    assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(one["delta"].get("content", "") for one in deltas) == choice["message"]["content"]
    stated = [token for one in deltas if one["logprobs"] for token in one["logprobs"]["content"]]
    assert stated == choice["logprobs"]["content"]
    assert len(stated) == whole["usage"]["completion_tokens"] == 24
    assert all(len(token["top_logprobs"]) == 2 for token in stated)
    assert [one["finish_reason"] for one in deltas] == [None] * (len(deltas) - 1) + ["length"]
    assert "usage" not in chunks[-1]
    assert chunks[-1]["metrics"]["speculative_decoding"]["num_draft_tokens"] >= 0


def test_usage_comes_in_a_chunk_of_its_own(client: httpx2.Client) -> None:
    chunks = stream(client, CHAT, **chat(n=2, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 48
    assert {one["index"] for chunk in chunks for one in chunk["choices"]} == {0, 1}


def test_several_answers_are_those_of_the_library(client: httpx2.Client) -> None:
    whole = post(client, CHAT, **chat(n=3))
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert len(set(texts)) == 3
    assert post(client, CHAT, **chat())["choices"][0]["message"]["content"] == texts[0]


def test_completions_take_texts_token_ids_and_lists(client: httpx2.Client) -> None:
    body = {"model": "table", "max_tokens": 6, "seed": 1}
    (one,) = post(client, "/v1/completions", prompt="ab", **body)["choices"]
    ids = post(client, "/tokenize", prompt="ab")["tokens"]
    assert post(client, "/detokenize", tokens=ids) == {"prompt": "ab"}
    (same,) = post(client, "/v1/completions", prompt=ids, **body)["choices"]
    both = post(client, "/v1/completions", prompt=["ab", "cd"], n=2, **body)["choices"]
    assert same == one
    assert [choice["index"] for choice in both] == [0, 1, 2, 3]
    assert both[0]["text"] == one["text"] != both[2]["text"]
    assert len(one["text"]) <= 6


def test_the_prompt_can_be_echoed_with_its_log_probabilities(client: httpx2.Client) -> None:
    body = {"model": "table", "prompt": "abcd", "echo": True, "logprobs": 3, "seed": 1}
    (alone,) = post(client, "/v1/completions", max_tokens=0, **body)["choices"]
    assert alone["text"] == "abcd"
    assert alone["finish_reason"] == "length"
    lists = alone["logprobs"]
    assert lists["tokens"] == list("abcd")
    assert lists["text_offset"] == [0, 1, 2, 3]
    assert lists["token_logprobs"][0] is None
    assert all(value <= 0 for value in lists["token_logprobs"][1:])
    (more,) = post(client, "/v1/completions", max_tokens=2, **body)["choices"]
    assert more["logprobs"]["token_logprobs"][:4] == lists["token_logprobs"]
    assert len(more["logprobs"]["tokens"]) == 6
    assert more["text"].startswith("abcd")


def test_max_tokens_0_counts_nothing_as_written(client: httpx2.Client) -> None:
    answer = post(client, "/v1/completions", model="table", prompt="abcd", echo=True, max_tokens=0)
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 0, "total_tokens": 4}


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: httpx2.Client) -> None:
    text = post(client, CHAT, **chat())["choices"][0]["message"]["content"]
    (choice,) = post(client, CHAT, **chat(stop=[text[5:7]]))["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == text[5:7]
    assert choice["message"]["content"] == text[: text.index(text[5:7])]


def test_json_mode_and_schemas_hold(client: httpx2.Client) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    for body in (chat(response_format=form, max_tokens=200), chat("x", response_format=form, max_tokens=200)):
        (choice,) = post(client, CHAT, **body)["choices"]
        assert choice["finish_reason"] == "stop"
        parsed = json.loads(choice["message"]["content"])
        assert set(parsed) == {"city", "size"}
    (choice,) = post(client, CHAT, **chat(response_format={"type": "json_object"}, max_tokens=40))["choices"]
    assert choice["message"]["content"].startswith("{")
    (choice,) = post(client, CHAT, **chat(response_format={"type": "text"}))["choices"]
    assert not choice["message"]["content"].startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look_up"}}])
def test_functions_are_called_in_responses_and_streams(client: httpx2.Client, choice: Any) -> None:
    body = chat(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False, max_tokens=200)
    (whole,) = post(client, CHAT, **body)["choices"]
    assert whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] is None
    (call,) = whole["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "look_up"
    assert json.loads(call["function"]["arguments"])["page"] in (10, 20)
    deltas = [one["choices"][0]["delta"] for one in stream(client, CHAT, **body)]
    parts = [part for delta in deltas for part in delta.get("tool_calls", ())]
    assert [part["index"] for part in parts] == [0] * len(parts)
    assert all(len(delta.get("tool_calls", ())) <= 1 for delta in deltas)
    assert parts[0]["function"]["name"] == "look_up"
    assert "".join(part["function"]["arguments"] for part in parts) == call["function"]["arguments"]
    history = [
        *body["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "found", "tool_call_id": call["id"]},
    ]
    assert post(client, CHAT, **{**body, "messages": history, "tool_choice": "auto"})["choices"]


def test_where_functions_may_be_called_an_answer_talks_or_calls(client: httpx2.Client) -> None:
    for seed in range(6):
        (choice,) = post(client, CHAT, **chat(tools=[TOOL], seed=seed))["choices"]
        content = choice["message"]["content"]
        assert (content is None) == ("tool_calls" in choice["message"])
        assert content is None or not content.startswith("<")


def test_speculation_is_chosen_by_request_and_changes_nothing(client: httpx2.Client) -> None:
    plain = post(client, CHAT, **chat(speculative={"off": True}))
    assert plain["metrics"]["speculative_decoding"]["num_draft_tokens"] == 0
    assert plain["timings"]["draft_n"] == 0
    for drafter in ("auto", "ngram", "recycling", "none"):
        answer = post(client, CHAT, **chat(speculative={"drafter": drafter, "nodes": 3}))
        assert answer["choices"][0]["message"] == plain["choices"][0]["message"]
        assert answer["choices"][0]["drafter"] == drafter
        assert answer["metrics"]["speculative_decoding"]["num_spec_tokens"] <= 3
    text = plain["choices"][0]["message"]["content"]
    predicted = post(client, CHAT, **chat(prediction={"type": "content", "content": text}))
    assert predicted["choices"][0]["message"] == plain["choices"][0]["message"]
    details = predicted["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] >= 10
    figures = predicted["metrics"]["speculative_decoding"]
    assert figures["num_accepted_draft_tokens"] == details["accepted_prediction_tokens"]
    assert sum(figures["acceptance_histogram"]) == figures["num_spec_steps"]
    assert figures["mean_acceptance_length"] == pytest.approx(
        1 + figures["num_accepted_draft_tokens"] / figures["num_spec_steps"]
    )


def test_penalties_and_biases_reach_the_engine(client: httpx2.Client) -> None:
    (token,) = post(client, "/tokenize", prompt="a")["tokens"]
    (choice,) = post(client, CHAT, **chat(logit_bias={str(token): 100}, top_k=1))["choices"]
    assert set(choice["message"]["content"]) == {"a"}
    (choice,) = post(
        client, CHAT, **chat(logit_bias={str(token): 100}, frequency_penalty=2, presence_penalty=2)
    )["choices"]
    assert choice["message"]["content"].startswith("a")
    (choice,) = post(client, CHAT, **chat(ignore_eos=True, min_tokens=24, temperature=0))["choices"]
    assert choice["finish_reason"] == "length"


def test_the_responses_form_says_the_same(client: httpx2.Client) -> None:
    chatted = post(client, CHAT, **chat())["choices"][0]["message"]["content"]
    body = {"model": "table", "input": "Hello", "max_output_tokens": 24, "seed": 7}
    answer = post(client, "/v1/responses", **body)
    assert answer["status"] == "incomplete"
    assert answer["output"][0]["content"][0]["text"] == chatted
    assert answer["usage"]["output_tokens"] == 24
    with client.stream("POST", "/v1/responses", json={**body, "stream": True}) as response:
        records = [json.loads(one) for one in events(response)]
    assert [one["sequence_number"] for one in records] == list(range(len(records)))
    assert "".join(one.get("delta", "") for one in records) == chatted
    assert records[-1]["type"] == "response.incomplete"
    assert records[-1]["response"]["output"][0]["content"][0]["text"] == chatted


def test_models_and_the_openapi_file(client: httpx2.Client) -> None:
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["table"]
    assert client.get("/v1/models/table").json() == listed["data"][0]
    file = client.get("/openapi.json").json()
    assert file["openapi"].startswith("3.1")
    assert "/v1/chat/completions" in file["paths"]


def test_metrics_add_up_with_responses(client: httpx2.Client) -> None:
    def read() -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        values = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in values}

    name = 'paceline:spec_decode_num_{}_total{{model_name="table"}}'
    before = read()
    figures = [
        post(client, CHAT, **chat(seed=seed, n=2))["metrics"]["speculative_decoding"] for seed in range(3)
    ]
    after = read()
    for metric, key in (
        ("drafts", "num_spec_steps"),
        ("draft_tokens", "num_draft_tokens"),
        ("accepted_tokens", "num_accepted_draft_tokens"),
    ):
        gained = after[name.format(metric)] - before.get(name.format(metric), 0)
        assert gained == sum(one[key] for one in figures)
    assert after['paceline:num_requests_running{model_name="table"}'] == 0


def test_logs_hold_no_prompts(client: httpx2.Client, server: Any) -> None:
    post(client, CHAT, **chat("a very secret prompt"))
    server.wait_for('"message": "request"')
    assert not [line for line in server.lines if "secret" in line]
    record = json.loads(next(line for line in server.lines if '"message": "request"' in line))
    assert {"time", "level", "id", "path", "model", "status", "seconds"} <= record.keys()
