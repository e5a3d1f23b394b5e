"""Clients that go away or read slowly, engines that die, servers that are told to end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from tests.serve.program import Program, chat, events, running

CHAT = "/v1/chat/completions"
PACE = "table:pace=0.05"
LONG = {"max_tokens": 400, "speculative": {"off": True}, "ignore_eos": True, "min_tokens": 400}


@pytest.fixture(scope="module")
def slow() -> Iterator[Program]:
    """A server whose passes take 50 ms, for three requests: two that run, one that waits."""
    with running("--model", PACE, "--max-batch", "2", "--max-waiting", "1") as program:
        yield program


def until(condition: Callable[[], bool], seconds: float = 10) -> float:
    """Wait for something; how long it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, "waited in vain"
        time.sleep(0.005)
    return time.monotonic() - begin


def first_bytes(program: Program, *headers: str) -> bytes:
    """What the server says to a request whose body comes late; that it says nothing before."""
    host, _, port = program.url.removeprefix("http://").partition(":")
    body = json.dumps(chat()).encode()
    sent = (f"POST {CHAT} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", *headers)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall("\r\n".join((*sent, f"Content-Length: {len(body)}", "\r\n")).encode())
        assert select.select([connection], [], [], 0.3)[0] == [], "it did not wait"
        connection.sendall(body)
        return connection.recv(4096)


def load(client: httpx2.Client) -> tuple[int, int]:
    state = client.get("/health").json()["models"]["table"]
    return state["running"], state["waiting"]


def idle(client: httpx2.Client) -> Callable[[], bool]:
    return lambda: load(client) == (0, 0)


@pytest.mark.parametrize("chunks", [0, 1, 5])
def test_a_client_that_goes_away_costs_two_more_steps_at_most(slow: Program, chunks: int) -> None:
    with slow.client() as client:
        until(idle(client))
        with client.stream("POST", CHAT, json=chat(**LONG, stream=True)) as response:
            data = events(response)
            for _ in range(chunks):
                next(data)
            until(lambda: load(client) == (1, 0))
        # Two passes of 50 ms, and what the machine takes beside.
        assert until(idle(client)) < 0.1 + 0.5
        assert client.post(CHAT, json=chat(max_tokens=2)).status_code == 200
        slow.wait_for('"status": 499')


def test_a_client_that_goes_away_without_a_stream_does_too(slow: Program) -> None:
    with slow.client() as client:
        until(idle(client))
        with pytest.raises(httpx2.ReadTimeout):
            client.post(CHAT, json=chat(**LONG), timeout=0.3)
        assert until(idle(client)) < 0.6


def test_connections_that_are_torn_off_do_no_harm(slow: Program) -> None:
    body = json.dumps(chat(**LONG, stream=True)).encode()
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    address = ("127.0.0.1", int(slow.url.rsplit(":", 1)[1]))
    with slow.client() as client:
        until(idle(client))
        for cut in (1, 40, -10, None) * 5:
            connection = socket.create_connection(address, timeout=10)
            linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)  # close with a reset
            connection.sendall((head % (CHAT.encode(), len(body)) + body)[:cut])
            if cut is None:
                connection.recv(64)
            connection.close()
        until(idle(client))
        assert client.post(CHAT, json=chat(max_tokens=2)).status_code == 200


def test_a_full_queue_is_said_at_once(slow: Program) -> None:
    with slow.client() as client, contextlib.ExitStack() as stack:
        until(idle(client))
        for _ in range(3):
            stream = client.stream("POST", CHAT, json=chat(**LONG, stream=True))
            response = stack.enter_context(stream)
            assert response.status_code == 200
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            response = client.post(CHAT, json=chat())
            times.append(time.perf_counter() - begin)
            assert response.status_code == 429
            assert response.json()["error"]["code"] == "queue_full"
            assert response.json()["error"]["type"] == "rate_limit_error"
            assert 1 <= int(response.headers["retry-after"]) <= 60
        assert min(times) < 0.05
        assert client.get("/health").status_code == 200
        assert client.post(CHAT, json=chat(n=8)).status_code == 429


def test_a_client_that_does_not_read_is_cut(server: Program) -> None:
    """What it leaves unread stays bounded, and the engine is free again before it reads on."""
    body = chat(max_tokens=1900, ignore_eos=True, min_tokens=1900, logprobs=True, top_logprobs=20, n=4)
    data = json.dumps(body | {"stream": True}).encode()
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
    with connection, server.client() as client:
        connection.sendall(head % (CHAT.encode(), len(data)) + data)
        until(lambda: load(client)[0] > 0)
        until(idle(client), 30)
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(1 << 16)
    assert b'"code":"slow_client"' in received
    assert b"data: [DONE]" in received
    assert len(received) < 8 << 20


def test_an_engine_that_is_killed_is_replaced() -> None:
    with running("--model", PACE) as program, program.client() as client, program.client() as other:
        before = client.post(CHAT, json=chat()).json()["choices"][0]["message"]
        with client.stream("POST", CHAT, json=chat(**LONG, stream=True)) as response:
            data = events(response)
            next(data)
            os.kill(program.engine(), signal.SIGKILL)
            said = list(data)
            assert json.loads(said[-2])["error"]["type"] == "server_error"
            assert said[-1] == "[DONE]"
        assert until(lambda: other.get("/health").status_code == 503, 1) < 1
        refusal = other.post(CHAT, json=chat())
        assert refusal.status_code in (503, 200)
        until(lambda: other.get("/health").status_code == 200)
        assert other.post(CHAT, json=chat()).json()["choices"][0]["message"] == before
        assert other.get("/health").json()["models"]["table"]["restarts"] == 1


def test_an_engine_ends_with_its_server() -> None:
    program = Program()
    engine = program.engine()
    program.tell(signal.SIGKILL)
    program.end()

    line = Path(f"/proc/{engine}/cmdline")
    until(lambda: not line.exists() or not line.read_bytes())  # nothing, or a zombie


def test_told_to_end_a_server_finishes_what_it_has() -> None:
    with running("--model", PACE) as program, program.client() as client, program.client() as other:
        assert other.get("/health").status_code == 200  # a connection from before
        body = chat(max_tokens=60, min_tokens=60, ignore_eos=True, speculative={"off": True}, stream=True)
        with client.stream("POST", CHAT, json=body) as response:
            data = events(response)
            next(data)
            program.tell()
            until(lambda: other.get("/health").status_code == 503)
            refusal = other.post(CHAT, json=chat())
            assert refusal.status_code == 503
            assert refusal.json()["error"]["code"] == "shutting_down"
            assert refusal.headers["connection"] == "close"
            said = list(data)
        assert said[-1] == "[DONE]"
        assert json.loads(said[-2])["choices"][0]["finish_reason"] == "length"
        assert program.end() == 0


def test_a_refusal_that_closes_the_connection_waits_for_the_body() -> None:
    # Closed with bytes unread, a connection is reset, and the client may never see why it was refused.
    with running("--model", PACE) as program, program.client() as client, program.client() as other:
        with client.stream("POST", CHAT, json=chat(**LONG, stream=True)) as response:
            data = events(response)
            next(data)
            assert first_bytes(program, f"x: {'y' * 40_000}").startswith(b"HTTP/1.1 431 ")
            program.tell()
            until(lambda: other.get("/health").status_code == 503)
            assert first_bytes(program).startswith(b"HTTP/1.1 503 ")
            data.close()  # held until here: a stream that nobody holds is closed, and the server ends
        assert program.end() == 0


@pytest.mark.parametrize(("options", "signals", "code"), [(("--drain-timeout", "0"), 1, 0), ((), 2, 130)])
def test_told_twice_or_without_patience_it_ends_at_once(
    options: tuple[str, ...], signals: int, code: int
) -> None:
    program = Program("--model", PACE, *options)
    with program.client() as client:
        with client.stream("POST", CHAT, json=chat(**LONG, stream=True)) as response:
            data = events(response)
            next(data)
            begin = time.monotonic()
            for _ in range(signals):
                program.tell(signal.SIGINT)
                time.sleep(0.2)
            said = list(data)
        assert json.loads(said[-2])["error"]["code"] == "shutting_down"
    assert program.end() == code
    assert time.monotonic() - begin < 4
    assert program.faults == []


def test_a_unix_socket_is_private_and_replaces_one_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = Program("--socket", str(path))
    again = Program("--socket", str(path), wait=False)
    assert again.end() == 2
    assert "another server listens there" in again.lines[-1]
    first.tell(signal.SIGKILL)
    first.end()
    with running("--socket", str(path)) as program:
        assert path.stat().st_mode & 0o777 == 0o600
        transport = httpx2.HTTPTransport(uds=str(path))
        with httpx2.Client(transport=transport, base_url=program.url) as client:
            assert client.post(CHAT, json=chat()).status_code == 200
    assert not path.exists()


def test_starts_that_cannot_be(server: Program, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("long-enough-key\n")
    keys.chmod(0o644)
    port = server.url.rsplit(":", 1)[1]
    for arguments, words in (
        (("--port", port), "choose another --port"),
        (("--host", "0.0.0.0"), "set API keys"),
        (("--host", "::"), "set API keys"),
        (("--api-key-file", str(keys)), "others can read the keys"),
        (("--model", "table:pace=99"), "pace must be 0 to 10"),
        (("--model", "/no/such.gguf"), "/no/such.gguf"),
        (("--drafter", "nothing"), "there is no drafter 'nothing'"),
        (("--max-batch", "0"), "max_batch must be 1 to 1024"),
        (("--models", "x.toml", "--threads", "1"), "--threads goes with --model"),
        (("--models", str(tmp_path / "x.toml")), "No such file"),
    ):
        program = Program(*arguments, wait=False)
        assert program.end(30) == 2, (arguments, program.lines)
        assert re.search(re.escape(words), program.lines[-1]), program.lines
        assert program.lines[-1].startswith("paceline: error: ")
