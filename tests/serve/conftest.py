"""One server for most tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.serve.program import Program, running


@pytest.fixture(scope="session")
def server() -> Iterator[Program]:
    with running("--drafter", "auto", "--drafter", "ngram", "--drafter", "recycling") as program:
        yield program


@pytest.fixture(scope="session")
def client(server: Program) -> Iterator[httpx2.Client]:
    with server.client() as client:
        yield client
