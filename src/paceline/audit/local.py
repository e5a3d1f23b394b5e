"""The audit of this machine's engine: its rules and drafters against its own target.

For every pair of a rule and a drafter:

- identity: the same prompts with the same seeds, plain and speculative, one at a time and several at a time
  in another order. At temperature 0 for every rule; at any temperature for rules that promise tokens;
- law: answers with ever new seeds, several at a time, whose tokens the sequential test compares with the
  laws that the referee works out.

Plain decoding itself is checked against the referee first: two wrongs would agree.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline import drafters as drafter_files
from paceline import policies
from paceline import rules as rule_files
from paceline.audit import subject as subjects
from paceline.audit.identity import Identity, Request, Stuck, answers, check_plain, compare, shuffled
from paceline.audit.law import LawTest
from paceline.audit.referee import Referee
from paceline.audit.subject import Subject
from paceline.bench.machine import machine, versions
from paceline.bench.progress import progress_bar
from paceline.core import Promise, Rule
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter, PacelineError
from paceline.pretrained import offers
from paceline.rules.match import match
from paceline.sampling import SamplingParams

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN = "none"
HELD, FAILED, COULD_NOT_RUN = "held", "failed", "could not run"
LAW_SEEDS = 1_000_000
"""Seeds of sampled answers start so far above those of the identity check."""
TOKENS = 10_000
TABLE_TOKENS = 200_000
"""For the sequential test: per pair; with the table model for all pairs together."""
ROUNDS_PER_BATCH = 8
"""Sampled answers are judged after so many batches; only then is the engine idle."""

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done. tokens: per pair, for the sequential test, None for a fitting number; batch: answers
    at a time; alpha: for all sequential tests of the run together."""

    tokens: int | None
    batch: int
    alpha: float
    seed: int


def run(
    *,
    model: str,
    rules: Sequence[str] | None,
    drafters: Sequence[str] | None,
    prompts: Path | None,
    limit: int | None,
    settings: Sequence[SamplingParams],
    plan: Plan,
    allow_lossy: bool,
    threads: int | None,
    note: Note,
    policy: str = "fixed",
    rows: int | None = None,
) -> dict[str, Any]:
    """Audit a model, and return the report that `paceline audit --json` prints.

    rules, drafters: names with options; None takes all exact rules, and all drafters that fit each. policy: a
    name with options; every pair has one of its own.
    settings: prompts take them in turn. Raises ConfigError, ModelFileError, IncompatibleDrafter.
    """
    chosen = [rule_files.load(name, allow_lossy=allow_lossy) for name in rules or rule_files.exact()]
    note(f"loading {model}")
    subject = subjects.resolve(model, prompts, limit, threads, rows)
    for params in settings:
        params.check_vocabulary(subject.target.info.vocab_size)
    with progress_bar() as progress:
        audit = Audit(subject, settings, plan, progress, policy)
        report = audit.run(list(zip(rules or rule_files.exact(), chosen, strict=True)), drafters)
    return {
        "audit": "engine",
        "model": model,
        "title": subject.name,
        **report,
        "machine": machine(getattr(subject.target, "isa", "none"), getattr(subject.target, "threads", 1)),
        "versions": versions(),
    }


def all_drafters() -> list[str]:
    """All drafters that propose something, and markov in its different ways of drawing."""
    names = [name for name in drafter_files.names() if name != PLAIN]
    return [*names, "markov:widths=2x2", "markov:widths=3x1,drawn=without_replacement"]


class Audit:
    """One audit under way."""

    def __init__(
        self,
        subject: Subject,
        settings: Sequence[SamplingParams],
        plan: Plan,
        progress: Progress,
        policy: str = "fixed",
    ) -> None:
        self._subject = subject
        self._settings = settings
        self._plan = plan
        self._progress = progress
        self._policy = policy
        self._task = progress.add_task("Auditing", total=None)
        self._referee = Referee(subject.target, subject.tokenizer.eos_ids, subject.tokenizer)
        self._tokens = 0
        self._plain: dict[bool, tuple[list[Request], list[Any]]] = {}

    def run(self, rules: Sequence[tuple[str, Rule]], drafters: Sequence[str] | None) -> dict[str, Any]:
        """The report without what only `local.run` knows."""
        pairs: list[tuple[str, Rule, str]] = []
        skipped: list[dict[str, str]] = []
        for name, rule in rules:
            for drafter in drafters or all_drafters():
                try:
                    self._engine(rule, drafter, 1)
                except ConfigError as error:
                    if drafters is not None and not (
                        len(drafters) > 1 and isinstance(error, IncompatibleDrafter)
                    ):
                        raise
                    skipped.append({"rule": name, "drafter": drafter, "why": str(error)})
                else:
                    pairs.append((name, rule, drafter))
        if not pairs:
            raise IncompatibleDrafter(f"nothing to audit: {skipped[0]['why']}")
        sampled = any(params.temperature > 0 for params in self._settings)
        alpha = self._plan.alpha / len(pairs)
        self._tokens = self._plan.tokens or self._enough(len(pairs))
        plain, reasons = self._check_plain(pairs)
        if plain["wrong"] or plain["error"]:
            sampled = False  # the verdict is there already
        audits = [self._pair(name, rule, drafter, alpha, sampled) for name, rule, drafter in pairs]
        reasons += [f"{one['rule']} with {one['drafter']}: {why}" for one in audits for why in one["reasons"]]
        verdicts = [one["verdict"] for one in audits]
        return {
            "verdict": FAILED if plain["wrong"] or plain["error"] else overall(verdicts),
            "reasons": reasons,
            "alpha": self._plan.alpha,
            "seed": self._plan.seed,
            "batch": self._plan.batch,
            "prompts": len(self._subject.questions),
            "settings": [describe(params) for params in self._settings],
            "plain": plain,
            "audits": audits,
            "skipped": skipped,
        }

    def _enough(self, pairs: int) -> int:
        """Tokens per pair that show what a user should want to see, in a time a user will wait."""
        return max(TOKENS, TABLE_TOKENS // pairs) if self._subject.name == subjects.TABLE else TOKENS

    def _check_plain(self, pairs: Sequence[tuple[str, Rule, str]]) -> tuple[dict[str, Any], list[str]]:
        """Plain answers at the settings, at temperature 0 or both, as the pairs need them."""
        both = len(self._settings) > 1
        wanted = {
            greedy
            for _, rule, _ in pairs
            for greedy in ((False, True) if both else (rule.promise is not Promise.TOKENS,))
        }
        total: dict[str, Any] = {"answers": 0, "tokens": 0, "wrong": 0, "faults": [], "error": None}
        for greedy in sorted(wanted):
            requests = self._requests(greedy)
            self._describe("plain decoding", 2 * len(requests))
            try:
                plain = answers(self._engine(match, PLAIN, 1), requests, self._advance)
                found = check_plain(plain, requests, self._referee, self._advance)
            except PacelineError:
                raise
            except Exception as error:
                total["error"] = _say(error)
                return total, [f"plain decoding: {total['error']}"]
            self._plain[greedy] = requests, plain
            for key in ("answers", "tokens", "wrong", "faults"):
                total[key] += found[key]
        return total, [f"plain decoding: {fault}" for fault in total["faults"][:1]]

    def _pair(self, name: str, rule: Rule, drafter: str, alpha: float, sampled: bool) -> dict[str, Any]:
        """The audit of one rule with one drafter."""
        label = f"{name} with {drafter}"
        identity, law = Identity(), None
        error = None
        try:
            for greedy, (requests, plain) in self._plain.items():
                if greedy or rule.promise is Promise.TOKENS:
                    self._describe(f"{label}: identity", 2 * len(requests))
                    self._compare(rule, drafter, requests, plain, identity)
            if sampled and not identity.different:  # a law does not excuse other tokens than promised
                law = LawTest(self._referee, alpha, self._plan.seed)
                self._describe(f"{label}: law", self._tokens)
                self._sample(rule, drafter, law)
        except PacelineError:
            raise
        except Exception as problem:  # a broken engine must end in a verdict
            error = _say(problem)
        verdict, reasons = self._verdict(identity, law, error)
        return {
            "rule": name,
            "promise": rule.promise.value,
            "drafter": drafter,
            "verdict": verdict,
            "reasons": reasons,
            "error": error,
            "identity": identity.report(),
            "law": None if law is None else law.report(),
        }

    def _compare(
        self, rule: Rule, drafter: str, requests: Sequence[Request], plain: Sequence[Any], identity: Identity
    ) -> None:
        batch = self._plan.batch
        alone = answers(self._engine(rule, drafter, 1), requests, self._advance)
        compare(plain, alone, requests, "alone", self._subject, self._referee, identity)
        together = shuffled(self._engine(rule, drafter, batch), requests, self._plan.seed, self._advance)
        compare(plain, together, requests, f"{batch} at a time", self._subject, self._referee, identity)

    def _sample(self, rule: Rule, drafter: str, law: LawTest) -> None:
        """Answers with new seeds, until there are enough tokens or the test has failed."""
        engine = self._engine(rule, drafter, self._plan.batch)
        number = 0
        settings = [params for params in self._settings if params.temperature > 0]
        while law.test.tokens < self._tokens and not law.failed:
            requests = []
            for _ in range(ROUNDS_PER_BATCH * self._plan.batch):
                # Everything is asked twice; a prompt meets the next setting when it comes round again.
                turn, place = divmod(number // 2, len(self._subject.questions))
                setting = settings[(turn + place) % len(settings)]
                seed = self._plan.seed + LAW_SEEDS + number
                seeded = replace(setting, seed=seed, logprobs=None)
                requests.append(Request(self._subject.questions[place], seeded))
                number += 1
            for request, done in zip(requests, answers(engine, requests, lambda count: None), strict=True):
                law.add(request.question.id, request.question.tokens, done, request.params)
                self._advance(len(done.token_ids))
                if law.failed or law.test.tokens >= self._tokens:
                    break

    def _verdict(self, identity: Identity, law: LawTest | None, error: str | None) -> tuple[str, list[str]]:
        """The verdict on a pair, and why, if it did not hold."""
        reasons = [] if error is None else [error]
        if identity.different:
            reasons.append(
                f"{identity.different} of {identity.counts.answers} answers are not plain decoding's"
            )
        if law is not None:
            reasons += law.faults[:1]
            if law.test.impossible:
                reasons.append(f"token {law.test.tokens}: impossible under the target's law")
            elif law.test.failed:
                exponent = law.test.largest_log_e / math.log(10)
                reasons.append(f"after {law.test.tokens} tokens the law's e-value is 10^{exponent:.1f}")
        if reasons:
            return FAILED, reasons
        if not identity.counts.answers and law is None:
            return COULD_NOT_RUN, ["not checked, for plain decoding is broken"]
        advice = "take more prompts, longer answers or another drafter"
        for what, counts in (("identity", identity.counts), ("law", law.counts if law else None)):
            if counts is not None and counts.answers and (missing := counts.missing()):
                return COULD_NOT_RUN, [f"{what}: {missing}; {advice}"]
        return HELD, []

    def _requests(self, greedy: bool) -> list[Request]:
        """Every prompt once, with the settings in turn and a seed of its own."""
        requests = []
        for number, question in enumerate(self._subject.questions):
            params = self._settings[number % len(self._settings)]
            seeded = replace(params, seed=self._plan.seed + number)
            requests.append(Request(question, replace(seeded, temperature=0.0) if greedy else seeded))
        return requests

    def _engine(self, rule: Rule, drafter: str, batch: int) -> Engine:
        subject = self._subject
        offered = offers(subject.target, subject.tokenizer)
        loaded = {drafter: drafter_files.load(drafter, subject.target.info, **offered)}
        return Engine(
            subject.target,
            loaded,
            drafter=drafter,
            tokenizer=subject.tokenizer,
            rule=rule,
            policy=policies.load(self._policy),
            max_batch=batch,
            share_prefixes=False,
            **subject.engine,
        )

    def _describe(self, what: str, total: int) -> None:
        self._progress.reset(self._task, total=total, description=what)

    def _advance(self, count: int) -> None:
        self._progress.advance(self._task, count)


def overall(verdicts: Sequence[str]) -> str:
    """One verdict for several: the worst."""
    return next((verdict for verdict in (FAILED, COULD_NOT_RUN) if verdict in verdicts), HELD)


def describe(params: SamplingParams) -> dict[str, Any]:
    """The parameters that are not the defaults, and always temperature and length. Left out are the seed,
    which every answer has of its own, and log-probabilities, which are always compared."""
    plain = asdict(SamplingParams())
    shown = {name: value for name, value in asdict(params).items() if name not in ("seed", "logprobs")}
    return {
        name: value
        for name, value in shown.items()
        if name in ("temperature", "max_tokens") or value != plain[name]
    }


def _say(error: Exception) -> str:
    """An exception on one line, with the place it came from."""
    if isinstance(error, Stuck):
        return f"the engine is stuck: {error}"
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    return " ".join(f"the engine raised {type(error).__name__}: {error} ({where})".split())
