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
LOSSY = "tests/unit/test_lossy_rules.py"


def _rule(name: str, *same: str) -> Subject:
    tests = ("tests/contract/test_rules.py", ENUMERATION, "-k", name)
    return Subject(f"paceline.rules.{name}", tests, same=frozenset(same))


SUBJECTS = (
    *map(_rule, ("match", "rejection", "recursive", "traversal")),
    _rule("block", "block.py:30: i > 0 -> i >= 0"),  # the ratio is 1 there
    _rule(
        "kseq",
        "kseq.py:64: 1.0 - (1.0 - beta) ** k <= middle * beta -> 1.0 - (1.0 - beta) ** k < middle * beta",
    ),  # bisection comes as close from either side
    Subject("paceline.rules._residual", (ENUMERATION, "-k", "block or recursive or traversal")),
    Subject(
        "paceline.rules.typical",
        (LOSSY,),
        same=frozenset(
            {
                "typical.py:28: 0.0 -> 1.0",  # of the empty path, which any other beats by its length
                "typical.py:29: 0.0 -> 1.0",  # the same is added to all paths
                "typical.py:32: 2 -> 3",  # a shorter tuple is the smaller one
                "typical.py:47: 1.0 -> 2.0",  # times a probability of 0
            }
        ),
    ),
    Subject("paceline.rules.lenient", (LOSSY,)),
    Subject("paceline.rules.top", (LOSSY,)),
    Subject(
        "paceline.verify",
        ("tests/unit/test_verify.py", "tests/contract/test_rules.py"),
        same=frozenset({"verify.py:68: node + 1 -> node - 1"}),  # no node before its parent
    ),
    Subject(
        "paceline.sampling",
        ("tests/unit/test_sampling.py", "tests/unit/test_laws.py"),
        parts=("warp", "log_law", "truncate"),
        same=frozenset(
            {
                "sampling.py:255: logits > 0 -> logits >= 0",  # 0 times r is 0 over r
                # All tokens are within a share of 1, and none is below a probability of 0.
                "sampling.py:297: params.top_p < 1 -> params.top_p <= 1",
                "sampling.py:297: 1 -> 2",
                "sampling.py:300: params.top_p < 1 -> params.top_p <= 1",
                "sampling.py:300: 1 -> 2",
                "sampling.py:306: params.min_p > 0 -> params.min_p >= 0",
            }
        ),
    ),
    Subject(
        "paceline.laws",
        (
            "tests/unit/test_laws.py",
            "tests/unit/test_device.py",
            "tests/unit/test_logprobs.py",
            "tests/unit/test_grammar.py",
        ),
        same=frozenset(
            {
                "laws.py:41: 256 -> 257",  # room at the beginning, and how it grows
                "laws.py:50: 2 -> 3",
                "laws.py:65: x > 0 -> x >= 0",  # 0 times r is 0 over r
                # The compiled draw gives what the other does, which tests/native show.
                "laws.py:226: if fused_draw is not None and logits.dtype == np.float32: -> "
                "if not (fused_draw is not None and logits.dtype == np.float32):",
                "laws.py:226: fused_draw is not None and logits.dtype == np.float32 -> "
                "fused_draw is not None or logits.dtype == np.float32",
                "laws.py:226: fused_draw is not None -> fused_draw is None",
            }
        ),
    ),
    Subject("paceline.bad_words", ("tests/unit/test_bad_words.py",)),
    Subject(
        "paceline.transcript",
        ("tests/unit/test_transcript.py",),
        # Longer ends than a stop string could begin with are compared with none.
        same=frozenset(
            {
                "transcript.py:119: max((len(stop) for stop in self._stops), default=1) - 1 -> "
                "max((len(stop) for stop in self._stops), default=1) + 1"
            }
        ),
    ),
    Subject(
        "paceline.request",
        (
            "tests/unit/test_request.py",
            "tests/unit/test_engine.py",
            "tests/unit/test_grammar.py",
            "tests/lossless/test_endings.py",
        ),
        parts=("Request",),
    ),
)
