"""What a server and its engine process tell each other: msgpack frames over a socket pair.

Each frame goes behind its length, four bytes with the highest first. Both sides run the same version of this
file, one having started the other. Nothing in a frame is ever executed.
"""

from __future__ import annotations

import msgspec

from paceline.results import Event, Load
from paceline.sampling import SamplingParams

MAX_FRAME = 1 << 28
"""Bytes; the largest frame is a tokenizer, some megabytes."""


class Build(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Server to engine, first frame: the engine to build. As in `Engine.from_pretrained` and `Engine`.

    model: also "table", or "table:option=value": see `paceline.serve.stub`
    """

    model: str
    drafters: tuple[str, ...] = ("auto",)
    rule: str = "match"
    allow_lossy: bool = False
    policy: str = "throughput"
    threads: int | None = None
    context: int | None = None
    rows: int | None = None
    cache_tokens: int | None = None
    nodes: int | None = None
    max_batch: int = 8


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Server to engine: a request. id: the server's own number for it; limit: (nodes, depth)."""

    id: int
    prompt: list[int]
    params: SamplingParams
    drafter: str
    prediction: list[int] | None = None
    limit: tuple[int, int] | None = None
    cache_salt: str = ""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Server to engine: end a request. One that has ended is no error."""

    id: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Engine to server: the model is loaded. tokenizer: `paceline.models.tokenizer.Tokenizer.to_json`."""

    name: str
    vocab_size: int
    max_positions: int
    cache_tokens: int
    drafters: tuple[str, ...]
    rule: str
    promise: str
    tokenizer: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Engine to server: the model cannot be loaded, and why, in one line."""

    message: str


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """Engine to server: the request is queued."""

    id: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """Engine to server: the request cannot be taken. kind: "invalid", "capacity" or "full"."""

    id: int
    message: str
    kind: str


class Answered(msgspec.Struct, frozen=True, tag=True):
    """Engine to server: what a step added to a request. An event's last completion comes without text,
    token ids and log-probabilities: all its events together have them."""

    id: int
    event: Event


class Busy(msgspec.Struct, frozen=True, tag=True):
    """Engine to server, behind the events of a step: how busy the engine is."""

    load: Load


Order = Submit | Cancel
Report = Ready | Failed | Accepted | Refused | Answered | Busy

_encoder = msgspec.msgpack.Encoder()
build_decoder = msgspec.msgpack.Decoder(Build)
order_decoder = msgspec.msgpack.Decoder(Order)
report_decoder = msgspec.msgpack.Decoder(Report)


def pack(frame: Build | Order | Report) -> bytes:
    """The frame behind its length."""
    body = _encoder.encode(frame)
    return len(body).to_bytes(4, "big") + body


class Splitter:
    """Finds the frames in bytes that arrive in pieces."""

    def __init__(self) -> None:
        self._held = bytearray()

    def push(self, data: bytes) -> list[bytes]:
        """The frames that these bytes complete. Raises ValueError for a length that no frame has."""
        self._held += data
        frames = []
        start = 0
        while len(self._held) - start >= 4:
            size = int.from_bytes(self._held[start : start + 4], "big")
            if size > MAX_FRAME:
                raise ValueError(f"a frame of {size} bytes; allowed are {MAX_FRAME}")
            if len(self._held) - start - 4 < size:
                break
            frames.append(bytes(self._held[start + 4 : start + 4 + size]))
            start += 4 + size
        del self._held[:start]
        return frames
