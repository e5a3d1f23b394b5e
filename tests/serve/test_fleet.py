"""Several models: read from a file, loaded when asked for, unloaded to make room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from paceline.errors import ConfigError
from paceline.serve.fleet import Fleet
from paceline.serve.settings import model_settings, read_models
from tests.serve.program import Program, chat, events, running

FILE = """
memory = "1 GiB"

[models.first]
model = "table"
drafters = ["ngram"]
memory = "600 MiB"
preload = true

[models.second]
model = "table:seed=2,pace=0.05"
memory = "600 MiB"
max_batch = 2

[models.broken]
model = "/no/such/model.gguf"
memory = "1 MiB"
"""
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    path = tmp_path_factory.mktemp("fleet") / "models.toml"
    path.write_text(FILE)
    with running("--models", str(path)) as program:
        yield program


def test_models_make_room_for_each_other(several: Program) -> None:
    def states() -> list[str]:
        return [state["state"] for state in client.get("/health").json()["models"].values()]

    with several.client() as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [
            *("first", "second", "broken")
        ]
        assert states() == ["ready", "unloaded", "unloaded"]
        first = client.post(CHAT, json=chat(model="first")).json()["choices"][0]
        assert first["drafter"] == "ngram"
        second = client.post(CHAT, json=chat(model="second")).json()["choices"][0]
        assert second["message"] != first["message"]
        assert states() == ["unloaded", "ready", "unloaded"]
        assert client.get("/health").status_code == 200
        body = chat(model="second", max_tokens=300, min_tokens=300, ignore_eos=True, stream=True)
        with client.stream("POST", CHAT, json=body | {"speculative": {"off": True}}) as response:
            data = events(response)  # held: a stream that nobody holds is closed
            next(data)
            with several.client() as other:
                refusal = other.post(CHAT, json=chat(model="first"))
            assert refusal.status_code == 503
            assert refusal.json()["error"]["code"] == "models_busy"
            assert "retry-after" in refusal.headers
            data.close()
        again = client.post(CHAT, json=chat(model="first"))
        while again.status_code == 503:  # until the engine has heard that the client went away
            again = client.post(CHAT, json=chat(model="first"))
        assert again.json()["choices"][0]["message"] == first["message"]
        assert states() == ["ready", "unloaded", "unloaded"]


def test_a_model_that_cannot_be_loaded_is_an_error_of_its_requests_only(several: Program) -> None:
    with several.client() as client:
        response = client.post(CHAT, json=chat(model="broken"))
        assert response.status_code == 500
        assert "/no/such/model.gguf" in response.json()["error"]["message"]
        assert response.headers["x-should-retry"] == "false"
        assert client.get("/health").status_code == 200
        response = client.post("/tokenize", json={"prompt": "x"})
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"there is no table \[models.NAME\]"),
        ("x = 1\n[models.a]\nmodel = 'table'", "unknown key 'x'; known are memory, models"),
        ("models = 5", "there is no table"),
        ("[models.a]\nmodl = 'table'", "models.a: unknown key 'modl'; known are allow_lossy, "),
        ("[models.a]\n", "models.a: .*missing required field `model`"),
        ("[models.a]\nmodel = 5", "Expected `str`"),
        ("[models.a]\nmodel = 'table'\nmemory = 'much'", r"models.a.memory must be a size such as"),
        ("[models.a]\nmodel = 'table'\npreload = 1", "preload must be true or false, got 1"),
        ("[models.a]\nmodel = 'table'\nmax_waiting = -1", "max_waiting must be 0 to"),
        ("[models.a]\nmodel = 'table'\nmax_waiting = 'x'", "max_waiting must be a whole number"),
        ("memory = 1e9\n[models.a]\nmodel = 'table'", "memory must be a size"),
        ("[models", "Expected"),
    ],
)
def test_files_that_are_wrong_say_where(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "models.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_models(path)


def test_with_a_limit_every_model_says_its_share() -> None:
    for memory in (0, 2000):
        with pytest.raises(ConfigError, match=r"model a: memory is .* allowed: 1 to .* 1000"):
            Fleet({"a": model_settings(model="table", memory=memory)}, 1000)
