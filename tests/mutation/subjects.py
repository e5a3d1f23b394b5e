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


ENUMERATION = "tests/lossless/test_enumeration.py"


def _rule(name: str, *same: str) -> Subject:
    tests = ("tests/contract/test_rules.py", ENUMERATION, "-k", name)
    return Subject(f"paceline.rules.{name}", tests, same=frozenset(same))


SUBJECTS = (
    *map(_rule, ("match", "rejection", "recursive", "block", "traversal", "kseq")),
    Subject("paceline.rules._residual", (ENUMERATION, "-k", "block or recursive or traversal")),
    *(
        Subject(f"paceline.rules.{name}", ("tests/unit/test_lossy_rules.py",))
        for name in ("typical", "lenient", "top")
    ),
    Subject("paceline.verify", ("tests/unit/test_verify.py", "tests/contract/test_rules.py")),
    Subject(
        "paceline.sampling",
        ("tests/unit/test_sampling.py", "tests/unit/test_laws.py"),
        parts=("warp", "log_law", "truncate"),
    ),
    Subject("paceline.laws", ("tests/unit/test_laws.py", "tests/unit/test_grammar.py")),
    Subject("paceline.bad_words", ("tests/unit/test_bad_words.py",)),
    Subject("paceline.transcript", ("tests/unit/test_transcript.py",)),
    Subject(
        "paceline.request",
        ("tests/unit/test_engine.py", "tests/unit/test_grammar.py", "tests/lossless/test_endings.py"),
        parts=("Request",),
    ),
)
