"""The audit of a server, on a small server that can be told to lie."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.audit import server
from paceline.audit.page import page
from paceline.audit.report import text
from paceline.errors import ConfigError
from paceline.sampling import SamplingParams

TOKENS = [*(f" w{n}" for n in range(7)), "\ufffd"]
LOGITS = np.random.default_rng(0).normal(0, 1.2, (8, 8))
LOGITS[::2, 7] = -5  # behind half of the tokens no half of a character is likely


class Server(ThreadingHTTPServer):
    """bias: added to the logits of what is drawn, not of what is stated."""

    bias = 0.0
    change: Callable[[dict[str, Any]], Any] = staticmethod(lambda answer: answer)
    status = 200
    raw: bytes | None = None
    asked: list[tuple[dict[str, Any], str | None]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *rest: Any) -> None: ...

    def do_GET(self) -> None:
        self.reply({"data": [{"id": "first"}, {"id": "second"}]} if self.server.status == 200 else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((body, self.headers.get("Authorization")))
        rng = np.random.default_rng([body["seed"], 1])
        tokens, tops, last = [], [], 0
        for _ in range(body["max_tokens"]):
            stated = LOGITS[last] - np.log(np.exp(LOGITS[last]).sum())
            drawn = stated.copy()
            drawn[np.argmax(stated)] += self.server.bias
            weights = np.exp(drawn)
            last = int(rng.choice(8, p=weights / weights.sum()))
            top = {TOKENS[t]: float(stated[t]) for t in np.argsort(-stated)[: body["logprobs"]]}
            top.setdefault(TOKENS[last], float(stated[last]))
            tokens.append(TOKENS[last])
            tops.append(top)
        self.reply({"choices": [{"logprobs": {"tokens": tokens, "top_logprobs": tops}}]})

    def reply(self, answer: dict[str, Any]) -> None:
        content = self.server.raw or json.dumps(self.server.change(answer)).encode()
        self.send_response(self.server.status)
        self.send_header("Location", "http://localhost:1/")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def stub() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as made:
        made.asked = []
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def audit(stub: Server, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "url": f"http://127.0.0.1:{stub.server_port}",
        "model": None,
        "prompts": None,
        "limit": 5,
        "params": SamplingParams(max_tokens=100, seed=3),
        "tokens": 2000,
        "alpha": 1e-3,
        "note": lambda text: None,
        **more,
    }
    report = server.run(**options)
    assert json.loads(json.dumps(report, allow_nan=False))
    assert f"Verdict: {report['verdict']}" in text(report)
    assert "<svg" in page(report)
    return report


def test_a_server_that_draws_from_what_it_states_holds(stub: Server) -> None:
    report = audit(stub)
    assert (report["verdict"], report["reasons"], report["model"]) == ("held", [], "first")
    assert report["law"]["tokens"] >= 2000
    assert report["skipped_tokens"] > 0, "positions where halves of characters are stated are left out"
    body, key = stub.asked[0]
    assert (body["temperature"], body["logprobs"], body["max_tokens"], key) == (1.0, 5, 100, None)
    assert len({body["seed"] for body, _ in stub.asked}) == len(stub.asked)


def test_a_server_that_favours_its_first_guess_fails(stub: Server) -> None:
    stub.bias = 0.5
    report = audit(stub, tokens=20_000, model="second")
    assert report["verdict"] == "failed"
    assert "the law's e-value is 10^" in report["reasons"][0]
    assert report["law"]["tokens"] < 10_000, "it stops as soon as it knows"
    assert report["model"] == stub.asked[0][0]["model"] == "second"


def test_a_token_from_beyond_a_list_that_sums_to_one_fails(stub: Server) -> None:
    def certain(answer: dict[str, Any]) -> dict[str, Any]:
        for part in answer.get("choices", ()):
            for top in (tops := part["logprobs"]["top_logprobs"]):
                top.clear()
                top.update({" w1": -0.7, " w2": -0.7})
            assert tops
        return answer

    stub.change = certain  # type: ignore[method-assign]
    report = audit(stub)
    assert report["verdict"] == "failed"


def test_the_key_goes_along(stub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACELINE_API_KEY", "k1")
    audit(stub, tokens=100)
    assert stub.asked[0][1] == "Bearer k1"


def logprobs(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def changed(answer: dict[str, Any]) -> dict[str, Any]:
        for part in answer.get("choices", ()):
            part["logprobs"] = change(part["logprobs"])
        return answer

    return changed


def each(top: Callable[[dict[str, float]], Any]) -> Callable[[dict[str, Any]], Any]:
    return logprobs(lambda stated: {**stated, "top_logprobs": [top(one) for one in stated["top_logprobs"]]})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (logprobs(lambda stated: None), 'its answers lack "logprobs"'),
        (logprobs(lambda stated: {**stated, "tokens": stated["tokens"][1:]}), 'its answers lack "logprobs"'),
        (logprobs(lambda stated: {"tokens": [], "top_logprobs": []}), "answers without tokens only"),
        (each(lambda top: dict.fromkeys(top, 0.0)), "its logprobs are wrong: those of 5 tokens sum to 5"),
        (each(lambda top: {next(iter(top)): 0.0}), "every token was certain"),
        (each(lambda top: {}), "expected texts and numbers"),
        (each(lambda top: dict.fromkeys(top, "x")), 'a log-probability is "x"'),
        (each(lambda top: dict.fromkeys(top, 0.7)), "a log-probability is 0.7"),
        (each(lambda top: {"\ufffd": -0.5}), "halves of characters only"),
        (lambda answer: {}, "lists no models"),
        (lambda answer: [1], "lists no models"),
    ],
)
def test_a_server_that_does_not_state_its_law_cannot_be_audited(
    stub: Server, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    stub.change = change  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=words):
        audit(stub)


@pytest.mark.parametrize(
    ("status", "raw", "words"),
    [
        (500, b"no", "/models answered 500 Internal Server Error no"),
        (302, b"", "/models answered 302 Found"),
        (200, b"<html>", "/models did not answer JSON"),
        (200, b" " * (server.MAX_BYTES + 2), "more than 16777216 bytes"),
    ],
)
def test_other_answers_are_refused(stub: Server, status: int, raw: bytes, words: str) -> None:
    stub.status, stub.raw = status, raw
    with pytest.raises(ConfigError, match=words):
        audit(stub)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", "http://", "ftp://a"])
def test_only_http_addresses_are_asked(stub: Server, url: str) -> None:
    with pytest.raises(ConfigError, match="--url must be http://host:port"):
        audit(stub, url=url)


def test_nobody_there_is_one_line(stub: Server) -> None:
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:9: cannot be reached: "):
        audit(stub, url="http://127.0.0.1:9")


def test_the_program_ends_with_the_verdicts_code(stub: Server, tmp_path: Path, capsys: Any) -> None:
    from paceline.cli.main import run

    url = f"http://127.0.0.1:{stub.server_port}/v1/"
    arguments = ["audit", "--url", url, "--tokens", "3000", "--max-tokens", "200"]
    assert run([*arguments, "--json", "--html", str(tmp_path / "a.html")]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "held"
    assert "held" in (tmp_path / "a.html").read_text()
    stub.bias = 1.0
    assert run(arguments) == 1
    stub.change = lambda answer: {}  # type: ignore[method-assign]
    assert run(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("paceline: error: ")
    for wrong in (["--top-p", "0.5"], ["--rule", "match"], ["--drafter", "suffix"]):
        assert run([*arguments, *wrong]) == 2
        assert "does not go with --url" in capsys.readouterr().err
