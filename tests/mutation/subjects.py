"""Which code is mutated, and which tests should notice."""

from __future__ import annotations

from typing import NamedTuple


class Subject(NamedTuple):
    """A module, or some of its functions and classes.

    tests: files or node ids, quickest first. same: changes that make no difference, with the reason
    beside each.
    """

    module: str
    tests: tuple[str, ...]
    parts: tuple[str, ...] | None = None
    same: frozenset[str] = frozenset()


SUBJECTS = (Subject("paceline.transcript", ("tests/unit/test_transcript.py",)),)
