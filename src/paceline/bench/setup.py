"""What the measurements of drafters start from: a model, engines on it, and what a report says of both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from paceline.bench.machine import machine, provenance, versions
from paceline.engine import Engine
from paceline.policies import PassCost
from paceline.rules.match import match

if TYPE_CHECKING:
    from paceline.core import Drafter, Policy, Rule, Target
    from paceline.models.tokenizer import Tokenizer

PLAIN = "none"
"""The drafter of plain decoding."""
WARM_UP = "Name three colours of the rainbow."
WARM_UP_TOKENS = 16

Note = Callable[[str], None]


class Setup(NamedTuple):
    """What all contenders of a measurement share.

    target, tokenizer  the model
    cost               makes a curve of what its passes cost, for each engine its own, since policies learn
    """

    target: Target
    tokenizer: Tokenizer
    cost: Callable[[], PassCost] = PassCost

    def drafter(self, spec: str) -> Drafter:
        """A drafter, by its name and options, that knows nothing yet. Raises ConfigError."""
        from paceline import drafters
        from paceline.pretrained import offers

        return drafters.load(spec, self.target.info, **offers(self.target, self.tokenizer))

    def policy(self, spec: str) -> Policy:
        """A policy, by its name and options. Raises ConfigError."""
        from paceline import policies

        return policies.load(spec, self.cost())

    def engine(
        self,
        contender: str,
        rule: Rule = match,
        policy: str = "fixed",
        wrap: Callable[[Policy], Policy] | None = None,
        **options: Any,
    ) -> Engine:
        """An engine for a contender: a drafter or drafter@policy; `policy` is for those without one.

        wrap: what is put around the policy; options: further ones of the engine. Raises ConfigError.
        """
        drafter, _, own = contender.partition("@")
        decides = self.policy(own or policy)
        return Engine(
            self.target,
            {drafter: self.drafter(drafter)},
            drafter=drafter,
            tokenizer=self.tokenizer,
            rule=rule,
            policy=wrap(decides) if wrap else decides,
            share_prefixes=False,  # all engines have one target
            **options,
        )


def measured(
    model: str,
    threads: int | None,
    prompts: Path | None,
    note: Note,
    measure: Callable[[Setup], dict[str, Any]],
    *,
    rows: int | None = None,
) -> dict[str, Any]:
    """Load a model, measure on it, and say with the result what it was measured on.

    prompts: the file that they come from, None for those that come along. Raises ConfigError, ModelFileError.
    """
    from paceline.pretrained import load_model, pass_cost

    note(f"loading {model}")
    target, tokenizer = load_model(model, threads=threads, rows=rows)
    return {
        "model": model,
        "title": target.info.name,
        **measure(Setup(target, tokenizer, lambda: pass_cost(target))),
        "prompts_from": str(prompts or "those that come along"),
        **provenance(model),
        "machine": machine(target.isa, target.threads),
        "versions": versions(),
    }
