"""What the engine hands to its user: events while an answer grows, a completion when it is done, its load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Stats:
    """How the drafts of one answer fared. Only passes that drew a token for it count.

    passes            target passes
    tokens            tokens emitted
    drafted           drafted tokens that the target scored
    accepted          drafted tokens that were emitted
    accepted_lengths  {drafted tokens emitted in a pass: number of such passes}
    drafts            {drafted tokens scored in a pass: {of these emitted: number of such passes}}
    """

    passes: int
    tokens: int
    drafted: int
    accepted: int
    accepted_lengths: dict[int, int]
    drafts: dict[int, dict[int, int]]

    @property
    def tau(self) -> float:
        """Tokens emitted per target pass, the target's own token included."""
        return self.tokens / self.passes if self.passes else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted drafted tokens per drafted token scored; 0 where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that the engine worked on the steps this request was part of; waiting is not in them.

    prefill_s  from admission to the first token; decode_s: from there to the end
    target_s   of both, inside the target; other_s: everything else (drafting, sampling, bookkeeping)
    """

    prefill_s: float
    decode_s: float
    target_s: float
    other_s: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and its log-probability, a natural logarithm."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs(TokenLogprob):
    """An emitted token, with the likeliest tokens in its place (itself perhaps among them): by falling
    log-probability, of equal ones the lower id first.

    The probabilities are the model's own, before temperature, penalties, masks and all other controls.
    """

    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished answer.

    request        the id that `submit` returned
    index          which of the n answers to its prompt this is, from 0
    text           the answer without the ending token or stop string; "" where the engine has no tokenizer
    token_ids      every token emitted, the one that ended the answer included
    finish_reason  "stop" (ending token, stop string or complete grammar), "length" (max_tokens or context)
                   "cancelled" (by `cancel`, or because the controls left no token to go on with) or "error"
                   (the target failed; the tokens before it are good)
    stop_reason    the stop string or the token id that ended the answer, or in one line why the controls left
                   no token or what failed; else None
    logprobs       one entry per token where the request asked for them, else None
    prompt_logprobs  one entry per token of the prompt where the request asked for them, None for the first;
                   else None. Those of an answer that ended before its prompt was read are fewer
    seed           the seed used: give it again to get the same answer
    drafter        the drafter that the request was served with
    rule           the rule that decided which drafted tokens were kept
    promise        what that rule promises: "bit-exact", "bit-exact but for ties", "exact in law" or
                   "lossy" (paceline.core.Promise)
    prompt_tokens  the prompt's length
    """

    request: int
    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    seed: int
    drafter: str
    rule: str
    promise: str
    prompt_tokens: int
    stats: Stats
    timings: Timings


@dataclass(frozen=True, slots=True)
class Event:
    """What one step added to one request.

    text may lag behind the tokens: it is given out once no later token can change or cut it.
    logprobs has one entry per token where the request asked for them, else it is None.
    finish is the completion, in the request's last event.
    """

    request: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    finish: Completion | None


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is, and what happened since it was made.

    running, waiting      requests
    cache_tokens          what the target's cache holds
    cache_tokens_used     of these, in pages that running requests hold; pages that are only kept for later
                          prompts are free for whoever needs them
    preemptions           times that a request gave up its place
    prefix_lookup_tokens  tokens that admitted requests looked for in the pages of others
    prefix_hit_tokens     those that were found, and not read again
    draft_failures        {drafter: {reason: number}} of proposals that were not used, see docs/scheduling.md
    drafters_off          drafters that failed so often that they are not asked for a while
    """

    running: int
    waiting: int
    cache_tokens: int
    cache_tokens_used: int
    preemptions: int
    prefix_lookup_tokens: int
    prefix_hit_tokens: int
    draft_failures: Mapping[str, Mapping[str, int]]
    drafters_off: frozenset[str]
