"""Engine processes that hang, cannot start, or are told what makes no sense."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from paceline.errors import ModelFileError
from paceline.sampling import SamplingParams
from paceline.serve import backend
from paceline.serve.backend import Backend
from paceline.serve.channel import Channel
from paceline.serve.failures import ApiError
from paceline.serve.wire import Build, Submit

BUILD = Build("table:pace=0.02", drafters=("none",))
LONG = SamplingParams(max_tokens=1000, min_tokens=1000, ignore_eos=True)


async def everything(channel: Channel) -> None:
    while True:
        await channel.get()


def test_an_engine_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "STALL_S", 1.0)
    monkeypatch.setattr(backend, "FAREWELL_S", 0.1)

    async def hang() -> float:
        engine = Backend(BUILD, capacity=2)
        task = asyncio.create_task(engine.run())
        await engine.loaded()
        channel = Channel(bounded=False)
        await engine.submit([Submit(0, [5], LONG, "none")], channel)
        assert engine.process is not None
        os.kill(engine.process.pid, signal.SIGSTOP)
        begin = time.monotonic()
        with pytest.raises(ApiError, match="the engine ended"):
            await everything(channel)
        waited = time.monotonic() - begin
        await engine.loaded()
        assert engine.restarts == 1
        assert engine.in_flight == 0
        task.cancel()
        await asyncio.wait([task])
        assert engine.state == "stopped"
        return waited

    assert 0.5 < asyncio.run(hang()) < 8


def test_what_the_engine_refuses_leaves_nothing_behind() -> None:
    async def refuse() -> list[str]:
        engine = Backend(BUILD, capacity=2)
        task = asyncio.create_task(engine.run())
        await engine.loaded()
        said = []
        for orders in (
            [Submit(0, [5], LONG, "none"), Submit(0, [5000], LONG, "none")],
            [Submit(0, [5], LONG, "nobody")],
            [Submit(0, [5], LONG, "none")] * 3,
        ):
            with pytest.raises(ApiError) as caught:
                await engine.submit(orders, Channel(bounded=False))
            said.append(f"{caught.value.status} {caught.value}")
        while engine.in_flight:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        return said

    first, second, third = asyncio.run(refuse())
    assert first.startswith("400 a prompt's token ids are")
    assert second.startswith("400 drafter 'nobody' is not loaded")
    assert third.startswith("429 the queue is full")


def test_a_model_that_cannot_be_loaded_is_said_at_the_first_start() -> None:
    with pytest.raises(ModelFileError, match="no option 'x'"):
        asyncio.run(Backend(Build("table:x=1"), capacity=1).run())
    with pytest.raises(ModelFileError, match="rows is an option of the PyTorch target"):
        asyncio.run(Backend(Build("table", rows=8), capacity=1).run())
