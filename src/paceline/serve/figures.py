"""How answers were made, and in the shapes that other servers' users know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from paceline.results import Completion


@dataclass(frozen=True, slots=True)
class Visited:
    """A request for answers that ended.

    operation    "chat" or "text_completion"
    began        seconds since 1970
    seconds      from its arrival to its end
    first_s      until the first token; None where none came
    answers      those that were completed
    traceparent  what its client sent by this name; empty if nothing
    """

    id: str
    path: str
    operation: str
    model: str
    status: int
    began: float
    seconds: float
    first_s: float | None
    answers: Sequence[Completion]
    traceparent: str


def speculative_decoding(completions: Sequence[Completion]) -> dict[str, Any]:
    """What vLLM calls by these names, over the passes in which something was drafted.

    acceptance_histogram[j] is the number of such passes in which j drafted tokens were accepted, and
    acceptance_histogram_by_draft_length the same for each number of drafted tokens; num_spec_tokens is the
    largest of these numbers.
    """
    passes = speculative_passes(completions)
    accepted = sum(kept * count for (_, kept), count in passes.items())
    drafted = sum(length * count for (length, _), count in passes.items())
    steps = sum(passes.values())
    lengths = sorted({length for length, _ in passes})
    longest = max(lengths, default=0)
    return {
        "mean_acceptance_length": 1 + accepted / steps if steps else 1.0,
        "draft_acceptance_rate": accepted / drafted if drafted else 0.0,
        "acceptance_histogram": [
            sum(passes[length, kept] for length in lengths) for kept in range(longest + 1)
        ],
        "acceptance_histogram_by_draft_length": {
            str(length): [passes[length, kept] for kept in range(length + 1)] for length in lengths
        },
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": accepted,
        "num_draft_tokens": drafted,
        "num_spec_tokens": longest,
    }


def speculative_passes(completions: Sequence[Completion]) -> Counter[tuple[int, int]]:
    """{(tokens drafted, tokens accepted): passes}, of those passes in which something was drafted."""
    passes: Counter[tuple[int, int]] = Counter()
    for completion in completions:
        for drafted, counts in completion.stats.drafts.items():
            if drafted:
                passes.update({(drafted, accepted): count for accepted, count in counts.items()})
    return passes


def timings(completions: Sequence[Completion]) -> dict[str, Any]:
    """What llama-server calls by these names: milliseconds, and tokens per second. cache_n is not among
    them: prompt_n counts all tokens of the prompt."""
    read = sum(one.prompt_tokens for one in completions)
    written = sum(one.stats.tokens for one in completions)
    read_ms = 1e3 * sum(one.timings.prefill_s for one in completions)
    written_ms = 1e3 * sum(one.timings.decode_s for one in completions)
    return {
        "prompt_n": read,
        "prompt_ms": read_ms,
        "prompt_per_token_ms": read_ms / read if read else 0.0,
        "prompt_per_second": 1e3 * read / read_ms if read_ms else 0.0,
        "predicted_n": written,
        "predicted_ms": written_ms,
        "predicted_per_token_ms": written_ms / written if written else 0.0,
        "predicted_per_second": 1e3 * written / written_ms if written_ms else 0.0,
        "draft_n": sum(one.stats.drafted for one in completions),
        "draft_n_accepted": sum(one.stats.accepted for one in completions),
    }
