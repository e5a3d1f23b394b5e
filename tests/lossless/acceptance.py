"""How much each exact rule accepts of the same drafts: `python -m tests.lossless.acceptance` prints a table.

One target, a table of 12 tokens; one drafter, which draws from the target's own logits with noise of
standard deviation 0.7 on them. Rules that do not take a shape of draft have no entry.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from paceline.core import Promise, Rule
from paceline.engine import Engine
from paceline.sampling import SamplingParams
from paceline.targets.table import TableTarget
from paceline.verify import refusal
from tests.discovery import RULES
from tests.toys import Sampling

VOCABULARY, TOKENS, REQUESTS = 12, 64, 400
SHAPES: dict[str, tuple[Sequence[int], str]] = {
    "chain of 4": ((1, 1, 1, 1), "iid"),
    "tree 2x2x1, i.i.d.": ((2, 2, 1), "iid"),
    "tree 2x2x1, without replacement": ((2, 2, 1), "without_replacement"),
    "4 siblings, i.i.d.": ((4,), "iid"),
    "4 siblings, without replacement": ((4,), "without_replacement"),
}


def tau(rule: Rule, widths: Sequence[int], drawn: str, temperature: float = 1.0) -> float | None:
    """Tokens per target pass, the target's own included, over many answers; None if the rule refuses."""
    target = TableTarget(VOCABULARY, seed=4)
    drafter = Sampling(target.table, widths, drawn)
    if refusal(rule, "d", drafter):
        return None
    engine = Engine(
        target, {"d": drafter}, drafter="d", rule=rule, max_batch=200, nodes=20 * 200, chunk_tokens=800
    )
    params = [
        SamplingParams(seed=seed, max_tokens=TOKENS, temperature=temperature) for seed in range(REQUESTS)
    ]
    stats = [done.stats for done in engine.generate([(3, 1, 2, 3)] * REQUESTS, params)]
    return 1 + sum(one.accepted for one in stats) / sum(one.passes for one in stats)


def table() -> Iterator[str]:
    """Lines of a Markdown table."""
    exact = {name: rule for name, rule in RULES.items() if rule.promise is not Promise.LOSSY}
    yield "| drafts | " + " | ".join(exact) + " |"
    yield "|---|" + "---|" * len(exact)
    for name, (widths, drawn) in SHAPES.items():
        found = [tau(rule, widths, drawn) for rule in exact.values()]
        yield f"| {name} | " + " | ".join("-" if one is None else f"{one:.3f}" for one in found) + " |"


if __name__ == "__main__":
    for line in table():
        print(line)
