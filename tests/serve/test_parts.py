"""Parts of the server on their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette

from paceline.results import Event, TokenLogprobs
from paceline.sampling import SamplingParams
from paceline.serve import stream, wire
from paceline.serve.channel import MAX_BYTES, Channel
from paceline.serve.failures import ApiError, refused
from paceline.serve.fleet import Fleet
from paceline.serve.guard import Guard
from paceline.serve.metrics import Metrics
from paceline.serve.reading import MAX_DEPTH, parse
from paceline.serve.server import Server
from paceline.serve.tools import CallReader


@given(st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 40))
def test_frames_arrive_whole_whatever_the_pieces(bodies: list[bytes], size: int) -> None:
    data = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    splitter = wire.Splitter()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert [frame for piece in pieces for frame in splitter.push(piece)] == bodies


def test_a_frame_of_a_length_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed are"):
        wire.Splitter().push(b"\xff\xff\xff\xff")


def test_orders_survive_the_wire() -> None:
    params = SamplingParams(logit_bias={3: 1.5}, stop=["a", "b"], bad_words=["x", (1, 2)], seed=2**63 - 1)
    order = wire.Submit(4, [1, 2], params, "auto", [5], (3, 2), "salt")
    (frame,) = wire.Splitter().push(wire.pack(order))
    assert wire.order_decoder.decode(frame) == order
    with pytest.raises(msgspec.ValidationError):
        wire.order_decoder.decode(wire.pack(wire.Failed("x"))[4:])


def event(text: str, *tokens: int, logprobs: Any = None) -> Event:
    return Event(0, text, tokens, logprobs, None)


def test_a_slow_reader_finds_pieces_joined_and_in_order() -> None:
    async def read() -> list[Any]:
        channel = Channel(bounded=True)
        stated = TokenLogprobs(1, -0.5, ())
        channel.put(1, event("b", 7))
        channel.put(0, event("a", 1, logprobs=(stated,)))
        channel.put(0, event("c", 2, 3, logprobs=(stated, stated)))
        first = await channel.get()
        assert not channel.overflowed
        channel.put(0, event("x" * (MAX_BYTES + 1), 4))
        assert channel.overflowed
        channel.fail(refused("late", None))
        second = await channel.get()
        with pytest.raises(ApiError, match="late"):
            await channel.get()
        return [first, second]

    first, second = asyncio.run(read())
    assert [(index, one.text, one.token_ids) for index, one in first] == [
        (0, "ac", (1, 2, 3)),
        (1, "b", (7,)),
    ]
    assert len(first[0][1].logprobs) == 3
    assert [one.token_ids for _, one in second] == [(4,)]


CALLS = '<tool_call>\n{"name": "f", "arguments": {"a": "}<tool"}}\n</tool_call>'


@given(st.lists(st.integers(0, 200), max_size=12), st.booleans())
def test_calls_are_read_alike_whatever_the_pieces(cuts: list[int], two: bool) -> None:
    text = "\n".join([CALLS] * (1 + two))
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    reader = CallReader()
    pieces = [piece for a, b in pairwise(places) for piece in reader.push(text[a:b])]
    pieces += reader.finish()
    arguments: dict[int | None, str] = {}
    for piece in pieces:
        arguments[piece.call] = arguments.get(piece.call, "") + piece.text
    assert arguments == dict.fromkeys(range(1 + two), '{"a": "}<tool"}')
    assert [piece.name for piece in pieces if piece.name] == ["f"] * (1 + two)


def test_talk_is_no_call_and_a_cut_call_shows_what_it_has() -> None:
    reader = CallReader()
    assert [(piece.call, piece.text) for piece in reader.push("hello <tool_call>")] == [
        (None, "hello <tool_call>")
    ]
    assert not reader.called
    reader = CallReader()
    said = reader.push(CALLS[:50]) + reader.finish()
    assert "".join(piece.text for piece in said) == CALLS[:50].partition('"arguments": ')[2]
    reader = CallReader()
    assert reader.push("<tool_c") + reader.finish() == []


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    )
)
def test_what_is_json_is_read_as_it_is(value: Any) -> None:
    assert parse(msgspec.json.encode({"x": value})) == {"x": value}


@given(st.binary(max_size=40))
def test_other_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    code = "invalid_json"
    try:
        parse(data)
    except ApiError as error:
        code = error.code or ""
    assert code == "invalid_json"


def test_depth_is_counted() -> None:
    def nested(depth: int) -> bytes:
        return b'{"a": ' * depth + b"1" + b"}" * depth

    assert parse(nested(MAX_DEPTH))
    with pytest.raises(ApiError, match="deeper"):
        parse(nested(MAX_DEPTH + 1))


def test_what_takes_too_long_to_read_is_refused() -> None:
    async def read() -> float:
        server = Server(Fleet({}), Metrics(), Guard(Starlette(), ()), strict=False)
        begin = time.perf_counter()
        with pytest.raises(ApiError) as caught:
            await server.aside(time.sleep, 0.5, timeout=0.05)
        assert caught.value.code == "invalid_json_schema"
        return time.perf_counter() - begin

    assert asyncio.run(read()) < 0.4


def test_a_server_without_its_packages_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from paceline.cli import serve
    from paceline.cli.main import run

    monkeypatch.setattr(serve, "PACKAGES", ("msgspec", "no_such_package"))
    assert run(["serve", "--model", "table"]) == 2
    said = capsys.readouterr().err
    assert said == 'paceline: error: serving needs no_such_package: pip install "paceline[serve]"\n'


@pytest.mark.parametrize(("patience", "noted"), [(0.05, stream.CLIENT_GONE), (60.0, 200)])
def test_a_client_that_takes_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch, patience: float, noted: int
) -> None:
    monkeypatch.setattr(stream, "WRITE_TIMEOUT_S", patience)
    monkeypatch.setattr(stream, "PATROL_S", 0.02)
    ended: list[int] = []

    async def records() -> AsyncGenerator[dict[str, Any], None]:
        yield {"a": 1}

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("nothing comes")

    async def send(message: Any) -> None:
        if message.get("body"):
            await asyncio.sleep(0.3)

    response = stream.EventStream(records(), headers={}, named=False, on_end=ended.append)
    asyncio.run(response({"type": "http"}, receive, send))
    assert ended == [noted]
