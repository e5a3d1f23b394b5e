"""The core of what `make load`, `make soak`, `make chaos` and `make clients` do for minutes, in seconds."""

from __future__ import annotations

import pytest

from tests.serve import load, sessions, soak
from tests.serve.program import Program

LONG = pytest.mark.prove


@pytest.mark.parametrize(("count", "seconds"), [(32, 3), pytest.param(256, 30, marks=LONG)])
def test_streams_lose_nothing_and_keep_time(count: int, seconds: int) -> None:
    figures = load.streams(count, seconds)
    assert figures.wrong == 0
    assert figures.tokens == count * seconds * load.RATE
    assert figures.lateness_p50_s < 0.05  # the tail is for a quiet machine: make load


def test_overload_is_refused_and_the_rest_is_served() -> None:
    figures = load.overload(4, 1.5)
    assert figures["refused_before"] == 0
    assert figures["refused"] > 0
    assert figures["goodput"] > 0.5  # on a busy machine; make load asks for 0.9


@pytest.mark.parametrize("seconds", [3, pytest.param(120, marks=LONG)])
def test_after_a_soak_everything_is_back(seconds: int) -> None:
    figures = soak.soak(seconds)
    assert figures["answered"] > 20


def test_engines_that_are_killed_again_and_again_leave_nothing_behind() -> None:
    figures = soak.soak(7, kill_every=1.5, seed=1)
    assert figures["kills"] >= 1
    assert figures["answered"] > 0


def test_openais_client_finds_what_it_expects(server: Program) -> None:
    sessions.run(server.url)
