"""The loop: plan, propose, score, decide, keep. Everything else is in the stages it calls."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, cast

from paceline.bad_words import spell
from paceline.core import (
    Budget,
    Draft,
    Drafter,
    Inputs,
    PageSharing,
    Policy,
    Rule,
    Step,
    Target,
    TargetInfo,
)
from paceline.errors import ConfigError, IncompatibleDrafter, QueueFull
from paceline.grammar import Grammars, Matcher
from paceline.laws import Controls, Laws
from paceline.noise import Noise, choice_seed
from paceline.policies.fixed import Fixed
from paceline.prompts import (
    Prediction,
    Prompt,
    as_prompts,
    per_prompt,
    prediction_tokens,
    predictions_per_prompt,
    prompt_tokens,
)
from paceline.results import Completion, Event, Load
from paceline.router import Router
from paceline.rules.match import match
from paceline.sampling import MAX_SEED, SamplingParams
from paceline.scheduler import Scheduler
from paceline.stopwatch import Stopwatch
from paceline.transcript import Tokenizer, Transcript
from paceline.verify import refusal

MAX_CHOICES = 128
PREDICTION = "prediction"
"""The drafter of requests that come with a prediction and name no drafter."""
NODES = 16
"""Drafted tokens scored per step, unless something else is asked for."""

_log = logging.getLogger(__name__)


class Engine:
    """Answers requests with one target, drafted for by any of several drafters.

    target        the model
    drafters      {name: drafter}; requests choose by name
    drafter       the name that is used when a request names none
    tokenizer     for text prompts, answers' text and stop strings; without it prompts are token ids
    rule          decides which drafted tokens are kept
    policy        decides how much is drafted; by default an even share of `nodes` for each request, in every
                  step. It belongs to this engine alone
    eos_ids       tokens that end an answer; by default the tokenizer's
    nodes         drafted tokens scored per step at most, all requests together; by default NODES, or more
                  where the policy was told to score more
    chunk_tokens  tokens per step, those of answers that grow and of prompts that are read together
    max_batch     requests that run at the same time; more wait
    max_waiting   requests that may wait, beside those that a step will let in; `submit` and `stream` refuse
                  more. By default any number may. `generate` waits for its own requests and may bring more
    share_prefixes  whether requests that begin alike share what was read, if the target can. Then the target
                  belongs to this engine; without it several may use one in turn, as measurements do
    clock         seconds, from any start: by it times are measured and failing drafters tried again

    Raises ConfigError for a value out of range, IncompatibleDrafter for a drafter that needs features
    which the target does not offer, or proposes drafts that the rule does not take. An engine belongs to
    one thread.
    """

    def __init__(
        self,
        target: Target,
        drafters: Mapping[str, Drafter],
        *,
        drafter: str,
        tokenizer: Tokenizer | None = None,
        rule: Rule = match,
        policy: Policy | None = None,
        eos_ids: frozenset[int] | None = None,
        nodes: int | None = None,
        chunk_tokens: int = 128,
        max_batch: int = 8,
        max_waiting: int | None = None,
        share_prefixes: bool = True,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self.policy = Fixed() if policy is None else policy
        if nodes is None:
            nodes = max(NODES, self.policy.nodes)
        for name, value in (("nodes", nodes), ("chunk_tokens", chunk_tokens), ("max_batch", max_batch)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.policy.nodes > nodes:
            raise ConfigError(
                f"the policy was told to score {self.policy.nodes} drafted tokens per step; "
                f"the engine's nodes allow {nodes}"
            )
        if max_waiting is not None and max_waiting < 0:
            raise ConfigError(f"max_waiting must be at least 0, or None, got {max_waiting}")
        for name, candidate in drafters.items():
            if missing := candidate.needs - target.info.taps:
                raise IncompatibleDrafter(
                    f"drafter {name} needs {', '.join(sorted(missing))}; {target.info.name} offers "
                    f"{', '.join(sorted(target.info.taps)) or 'no features'}"
                )
            if reason := refusal(rule, name, candidate):
                raise IncompatibleDrafter(reason)
        if eos_ids is None:
            eos_ids = tokenizer.eos_ids if tokenizer else frozenset()
        self.target = target
        self.tokenizer = tokenizer
        self.drafters = dict(drafters)
        self.drafter = self._known_drafter(drafter)
        self.watch = Stopwatch(clock)
        self._observing = 0.0  # seconds of the last step
        self.rule = rule
        self._nodes = nodes
        self._max_waiting = max_waiting
        self._shares_prefixes = share_prefixes and target.info.shares_pages
        self._eos_ids = eos_ids
        self._grammars = Grammars(tokenizer, target.info.vocab_size, eos_ids) if tokenizer else None
        self._router = Router(drafters, target.info.vocab_size, rule, clock)
        self._scheduler = Scheduler(
            target.info,
            self.watch,
            cast(PageSharing, target) if self._shares_prefixes else None,
            nodes=nodes,
            chunk_tokens=chunk_tokens,
            max_batch=max_batch,
            rule=rule,
        )
        self._outbox: list[Event] = []

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        drafter: str | Sequence[str] = "auto",
        rule: str = "match",
        policy: str = "throughput",
        allow_lossy: bool = False,
        threads: int | None = None,
        cache_tokens: int | None = None,
        context: int | None = None,
        rows: int | None = None,
        **options: Any,
    ) -> Engine:
        """An engine on the native CPU target, or on PyTorch (docs/torch.md).

        model: a name that `paceline models list` shows, or the path of a GGUF file; with the extra
        paceline[torch] also a folder of safetensors or a name of the Hugging Face hub. drafter: a name with
        options, such as "suffix:max_nodes=8", or several with "+" between them, mixed in one tree; of a list
        the first is the default. "none" is always there. rule: a name with options, such as "recursive"; a
        lossy one must be allowed. policy: a name with options; what passes cost on this machine is measured
        at the first start and kept in the cache on disk. threads, cache_tokens, context: by default what the
        machine and the model allow; rows: see TorchTarget. Other options are those of the constructor.

        Raises ModelFileError, ConfigError, IncompatibleDrafter.
        """
        from paceline import policies, rules
        from paceline.drafters import load
        from paceline.pretrained import load_model, offers, pass_cost

        chosen = rules.load(rule, allow_lossy=allow_lossy)
        target, tokenizer = load_model(
            model, threads=threads, cache_tokens=cache_tokens, context=context, rows=rows
        )
        names = (drafter,) if isinstance(drafter, str) else tuple(drafter)
        offered = offers(target, tokenizer)
        drafters = {name: load(name, target.info, **offered) for name in dict.fromkeys((*names, "none"))}
        decides = policies.load(policy, pass_cost(target))
        return cls(
            target, drafters, drafter=names[0], tokenizer=tokenizer, rule=chosen, policy=decides, **options
        )

    def step(self) -> list[Event]:
        """Advance the running requests by one target pass; the events of submitted requests.

        If the pass fails, the requests that took part in it end with finish_reason "error"; others go on.
        """
        watch = self.watch
        watch.start()
        if plan := self._scheduler.plan():
            view, limits, preempted = plan
            self._release(preempted)
            watch.lap("plan")
            budgets = self.policy.allot(view, limits, self._nodes)
            trees = self.policy.choose(view, self._router.propose(view, budgets))
            drafting = self._observing + watch.lap("propose")
            draft = Draft.pack(view, trees)
            watch.lap("pack")
            try:
                scores = self.target.forward(draft, self._router.taps(view))
                seconds = watch.lap("forward")
                laws = Laws(scores, draft, view)
                verdict = self.rule(draft, laws, Noise(view.seeds))
                watch.lap("rule")
                self.target.commit(draft, verdict)
                watch.lap("commit")
            except Exception as error:
                _log.error("a pass failed; its %d requests end", len(view.slots), exc_info=error)
                why = " ".join(f"the target's pass failed: {type(error).__name__}: {error}".split())
                self._release(self._scheduler.fail(why))
            else:
                happened = Step(view, draft, scores, verdict, seconds, drafting)
                if laws.sound:
                    self._router.observe(happened)
                self.policy.observe(happened)
                self._observing = watch.lap("observe")
                self._release(self._scheduler.apply(draft, verdict, laws))
                watch.lap("apply")
        events, self._outbox[:] = self._outbox[:], []
        return events

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        drafter: str | None = None,
        *,
        prediction: Prediction | None = None,
        limit: Budget | None = None,
        cache_salt: str = "",
        inputs: Any = None,
    ) -> int:
        """Queue a request and return its id; `step` advances it and returns its events.

        prediction: what the caller expects the answer to be, as text or token ids. It is drafted from, which
        makes the answer come faster where it is right, and never changes it. Unless the request names a
        drafter it is drafted for by the one named "prediction", which must be loaded; others that do not
        use predictions take no notice of it.

        limit: drafted tokens that may be scored for this request in a step, and along one path, at most
        (`paceline.core.Budget`); Budget(0, 0) decodes it plainly.

        cache_salt: what was read for one request serves others that begin alike and have the same salt, and
        no others: with one for each of its users, a server gives away nothing through the time of an answer.

        inputs: what the target takes beside tokens, if it takes anything: what `TorchTarget.source` gives
        (docs/torch.md).

        Raises ConfigError for a prompt or parameter that this model cannot take, CapacityError for a
        request that the cache could never hold, QueueFull if `max_waiting` requests wait already.
        """
        self._check_queue()
        return self._submit(
            prompt,
            params,
            drafter,
            self._outbox,
            prediction=prediction,
            limit=limit,
            salt=cache_salt,
            inputs=inputs,
        )[0]

    def cancel(self, request: int) -> None:
        """End a request with what it has; its last event says so. One that has ended is no error."""
        self.watch.start()
        self._release(self._scheduler.cancel(request))

    def preempt(self, request: int) -> None:
        """Free a running request's slot and cache; it waits at the front of the queue and goes on later, with
        the same tokens as if nothing had happened. One that waits or has ended is no error."""
        self.watch.start()
        self._release(self._scheduler.preempt(request))

    @property
    def load(self) -> Load:
        """How busy it is, and what happened so far. Cheap to ask for."""
        scheduler, cache = self._scheduler, self._scheduler.cache
        return Load(
            running=scheduler.running,
            waiting=scheduler.waiting,
            cache_tokens=cache.tokens,
            cache_tokens_used=cache.used_tokens,
            preemptions=scheduler.preemptions,
            prefix_lookup_tokens=cache.lookup_tokens,
            prefix_hit_tokens=cache.hit_tokens,
            draft_failures={name: dict(counts) for name, counts in self._router.failures.items()},
            drafters_off=self._router.off,
        )

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs."""
        return self._scheduler.idle

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        drafter: str | Sequence[str] | None = None,
        *,
        prediction: Prediction | Sequence[Prediction | None] | None = None,
        limit: Budget | Sequence[Budget] | None = None,
        n: int = 1,
    ) -> list[Completion]:
        """Answer one prompt or a list of prompts; completions in the order of the prompts.

        params, drafter, prediction, limit (see `submit`): one for all, or one per prompt. n: answers per
        prompt, 1 to 128, one behind the other; the first has the request's own seed, the others seeds
        derived from it (`paceline.noise.choice_seed`). Raises like `submit`, but never QueueFull.
        """
        if type(n) is not int or not 1 <= n <= MAX_CHOICES:
            raise ConfigError(f"n must be a whole number, 1 to {MAX_CHOICES}; got {n!r}")
        wanted = as_prompts(prompts)
        outbox: list[Event] = []
        requests: list[int] = []
        done: dict[int, Completion] = {}
        try:
            for prompt, param, name, predicted, most in zip(
                wanted,
                per_prompt("params", params, SamplingParams, len(wanted)),
                per_prompt("drafter", drafter, str, len(wanted)),
                predictions_per_prompt(prediction, len(wanted)),
                per_prompt("limit", limit, Budget, len(wanted)),
                strict=True,
            ):
                requests += self._submit(prompt, param, name, outbox, prediction=predicted, limit=most, n=n)
            while len(done) < len(requests):
                self._advance()
                done.update((event.request, event.finish) for event in outbox if event.finish)
                outbox.clear()
        finally:
            for request in requests:
                if request not in done:
                    self.cancel(request)
        return [done[request] for request in requests]

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        drafter: str | None = None,
        *,
        prediction: Prediction | None = None,
        limit: Budget | None = None,
        cache_salt: str = "",
    ) -> Generator[Event, None, None]:
        """Answer one prompt, event by event; the last one has `finish`. Closing the iterator cancels.

        The request is queued at once, and other requests advance along with it. Raises like `submit`.
        """
        self._check_queue()
        outbox: list[Event] = []
        requests = self._submit(
            prompt, params, drafter, outbox, prediction=prediction, limit=limit, salt=cache_salt
        )
        return self._events(requests[0], outbox)

    def _events(self, request: int, outbox: list[Event]) -> Generator[Event, None, None]:
        finished = False
        try:
            while not finished:
                if not outbox:
                    self._advance()
                events, outbox[:] = outbox[:], []
                for event in events:
                    finished = event.finish is not None
                    yield event
        finally:
            self.cancel(request)

    def _advance(self) -> None:
        """A step whose events for submitted requests wait for the next call of `step`."""
        self._outbox[:0] = self.step()

    def _submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        drafter: str | None,
        outbox: list[Event],
        *,
        prediction: Prediction | None,
        limit: Budget | None,
        salt: str = "",
        inputs: Any = None,
        n: int = 1,
    ) -> list[int]:
        params = params or SamplingParams()
        tokenizer = self.tokenizer
        params.check_vocabulary(self.target.info.vocab_size)
        if params.stop and tokenizer is None:
            raise ConfigError("stop strings need a tokenizer, this engine has none; use stop_token_ids")
        bad_words = spell(params.bad_words, tokenizer)
        tokens = prompt_tokens(prompt, self.target.info.vocab_size, tokenizer)
        predicted = prediction_tokens(prediction, self.target.info.vocab_size, tokenizer)
        drafter = self._known_drafter(drafter or (self.drafter if prediction is None else PREDICTION))
        _check_limit(limit)
        _check_inputs(inputs, self.target.info)
        # Where there are inputs the same tokens are another text.
        shares = self._shares_prefixes and not self.drafters[drafter].whole and inputs is None
        seed = secrets.randbelow(MAX_SEED + 1) if params.seed is None else params.seed
        return [
            self._scheduler.add(
                tokens,
                params,
                Controls(params, self._eos_ids, tokens, bad_words, self._matcher(params)),
                Transcript(tokenizer.detokenizer() if tokenizer else None, params.stop, params.min_tokens),
                seed=choice_seed(seed, index),
                index=index,
                drafter=drafter,
                prediction=predicted,
                inputs=inputs,
                budget=limit,
                salt=salt if shares else None,
                outbox=outbox,
            )
            for index in range(n)
        ]

    def _check_queue(self) -> None:
        waiting, free = self._scheduler.waiting, self._scheduler.free
        if self._max_waiting is not None and waiting - free >= self._max_waiting:
            raise QueueFull(f"{waiting} requests wait, as many as may; try again later")

    def _matcher(self, params: SamplingParams) -> Matcher | None:
        if params.grammar is None:
            return None
        if self._grammars is None:
            raise ConfigError("grammars need a tokenizer, this engine has none")
        return self._grammars.matcher(params.grammar)

    def _known_drafter(self, name: str) -> str:
        if name not in self.drafters:
            raise ConfigError(f"drafter {name!r} is not loaded; loaded are {', '.join(self.drafters)}")
        return name

    def _release(self, slots: Sequence[int]) -> None:
        if slots:
            self.target.release(slots)
            self._router.release(slots)
            self.policy.release(slots)


def _check_limit(limit: Budget | None) -> None:
    if limit is not None and not (
        isinstance(limit, Budget) and all(type(value) is int and value >= 0 for value in limit)
    ):
        raise ConfigError(f"limit must be a Budget of whole numbers, 0 or more; got {limit!r}")


def _check_inputs(inputs: Any, info: TargetInfo) -> None:
    if inputs is not None and info.inputs is Inputs.NONE:
        raise ConfigError(f"{info.name} takes tokens only; inputs must be None")
    if inputs is None and info.inputs is Inputs.REQUIRED:
        raise ConfigError(f"{info.name} needs inputs beside the prompt: the source, encoded (docs/torch.md)")
