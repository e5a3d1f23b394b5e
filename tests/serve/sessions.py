"""A scripted session with OpenAI's own client, of version 2 or 3: python sessions.py URL"""

from __future__ import annotations

import json
import sys
from typing import Any

import openai

MESSAGES: Any = [{"role": "user", "content": "Hello"}]
FORM: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {
            "type": "object",
            "properties": {"yes": {"type": "boolean"}},
            "required": ["yes"],
            "additionalProperties": False,
        },
    },
}
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "parameters": {
                "type": "object",
                "properties": {"page": {"enum": [10, 20]}},
                "required": ["page"],
                "additionalProperties": False,
            },
        },
    }
]


def run(url: str) -> None:
    """What an application does, and what it must find."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    (model,) = [one.id for one in client.models.list()]
    common: Any = {"model": model, "messages": MESSAGES, "seed": 3, "max_tokens": 40}

    whole = client.chat.completions.create(**common, logprobs=True, top_logprobs=1)
    text = whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 40
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.content or ()) == 40

    said, usage = "", None
    options: Any = {"include_usage": True}
    for chunk in client.chat.completions.create(**common, stream=True, stream_options=options):
        usage = chunk.usage or usage
        if chunk.choices:
            said += chunk.choices[0].delta.content or ""
    assert said == text
    assert usage is not None
    assert usage.completion_tokens == 40

    same = client.chat.completions.create(**common, extra_body={"speculative": {"off": True}})
    assert same.choices[0].message.content == text
    predicted: Any = {"type": "content", "content": text}
    same = client.chat.completions.create(**common, prediction=predicted)
    assert same.choices[0].message.content == text
    assert same.usage is not None
    assert same.usage.completion_tokens_details is not None
    assert (same.usage.completion_tokens_details.accepted_prediction_tokens or 0) > 10

    parsed = client.chat.completions.create(**common, response_format=FORM)
    assert set(json.loads(parsed.choices[0].message.content or "")) == {"yes"}

    required: Any = {**common, "max_tokens": 200, "tools": TOOLS, "tool_choice": "required"}
    called = client.chat.completions.create(**required, parallel_tool_calls=False)
    (call,) = called.choices[0].message.tool_calls or ()
    assert called.choices[0].finish_reason == "tool_calls"
    function: Any = call.function  # type: ignore[union-attr]
    assert json.loads(function.arguments)["page"] in (10, 20)
    with client.chat.completions.stream(**required, parallel_tool_calls=False) as stream:
        final = stream.get_final_completion()
    (again,) = final.choices[0].message.tool_calls or ()
    assert again.function.arguments == function.arguments

    completion = client.completions.create(model=model, prompt=["ab", "cd"], max_tokens=5, n=2, logprobs=1)
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]

    response = client.responses.create(
        model=model, input="Hello", max_output_tokens=40, extra_body={"seed": 3}
    )
    assert response.output_text == text
    with client.responses.stream(
        model=model, input="Hello", max_output_tokens=40, extra_body={"seed": 3}
    ) as events:
        deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == text

    for wrong, kind in (
        ({**common, "temperature": 9}, openai.BadRequestError),
        ({**common, "model": "gpt-9"}, openai.NotFoundError),
        ({**common, "messages": []}, openai.BadRequestError),
    ):
        refused: Any = None
        try:
            client.chat.completions.create(**wrong)  # type: ignore[call-overload]
        except kind as error:
            refused = error
        assert refused is not None, f"{wrong} was taken"
        assert refused.body["message"]
        assert refused.code

    with client.chat.completions.create(**common, stream=True) as going_away:
        next(iter(going_away))
    client.close()


if __name__ == "__main__":
    run(sys.argv[1])
    print(f"openai {openai.__version__}: the session went as it should")
