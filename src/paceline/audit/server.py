"""The audit of a server from outside: do its tokens come from the log-probabilities that it states?

Any server with OpenAI's /v1/completions will do. It is asked for answers at temperature 1 with the
log-probabilities of the likeliest tokens; those and one category for the mass that is left are the law, and
the sequential test is that of `law`. A server whose speculation favours its drafts, but which states the
target's law, is found out; one that states the law of its own bias is not.
"""

from __future__ import annotations

import json
import math
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from paceline.audit import orders
from paceline.audit.law import test_report
from paceline.audit.orders import Followers
from paceline.audit.sequential import SequentialTest
from paceline.bench import prompts as prompt_files
from paceline.bench.machine import versions
from paceline.bench.progress import progress_bar
from paceline.errors import ConfigError
from paceline.sampling import SamplingParams

TOKENS = 10_000
STATED = 5
"""Log-probabilities asked for at each position: the most that every such server gives."""
TIMEOUT_S = 120.0
MAX_BYTES = 1 << 24
SLACK = 1e-3
"""How far stated probabilities may sum above 1: what rounding in float16 can do."""
CERTAIN = 1 - 1e-9
CERTAIN_TOKENS = 200
"""So many certain tokens on end are no language model's."""
KEY = "PACELINE_API_KEY"


class Position(NamedTuple):
    """One token of an answer: its law over the stated tokens and the rest, which comes last, and its place
    in it; stated: the tokens of the law; token: the one emitted; certain: one stated token has all mass."""

    token: str
    stated: list[str]
    law: NDArray[np.float64]
    place: int
    certain: bool


def run(
    *,
    url: str,
    model: str | None,
    prompts: Path | None,
    limit: int | None,
    params: SamplingParams,
    tokens: int,
    alpha: float,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Audit a server, and return the report that `paceline audit --url --json` prints.

    model: None takes the first that the server lists; tokens: for the test; of params max_tokens and seed
    count. Raises ConfigError for a server that cannot be reached or does not state what is needed.
    """
    client = Client(url)
    name = model or client.first_model()
    texts = prompt_files.choose(prompts, limit)
    note(f"asking {name} at {url}")
    test = SequentialTest(orders.NAMES, alpha, params.seed or 0)
    answers = empty = skipped = 0
    certain = True
    with progress_bar() as progress:
        task = progress.add_task("Asking", total=tokens)
        while test.tokens < tokens and not test.failed:
            positions = client.complete(
                name, texts[answers % len(texts)].text, params.max_tokens, (params.seed or 0) + answers
            )
            answers += 1
            empty = 0 if positions else empty + 1
            if empty > len(texts):
                raise ConfigError(f"{url}: answers without tokens only; take other prompts")
            followers: Followers[str] = Followers()
            test.begin()
            for position in positions:
                if ambiguous(position):
                    skipped += 1
                else:
                    certain = certain and position.certain
                    places = {text: place for place, text in enumerate(position.stated)}
                    weights = {places[t]: w for t, w in followers.expected().items() if t in places}
                    test.add(
                        orders.below(position.law, position.place, weights),
                        float(position.law[position.place]),
                    )
                followers.read([position.token])
            test.look()
            if certain and test.tokens >= CERTAIN_TOKENS:
                break
            progress.update(task, completed=min(test.tokens, tokens))
            if skipped > 100 and not test.tokens:
                raise ConfigError(f"{url}: states halves of characters only, which cannot be told apart")
    if certain:
        raise ConfigError(f"{url}: states that every token was certain; its logprobs say nothing")
    report = test_report(test)
    reasons = []
    if test.impossible:
        reasons.append(f"token {test.tokens}: impossible under the stated law")
    elif test.failed:
        reasons.append(f"after {test.tokens} tokens the law's e-value is 10^{report['largest_log10_e']:.1f}")
    return {
        "audit": "server",
        "url": url,
        "model": name,
        "verdict": "failed" if test.failed else "held",
        "reasons": reasons,
        "prompts": len(texts),
        "alpha": alpha,
        "settings": [{"temperature": 1.0, "max_tokens": params.max_tokens}],
        "seed": params.seed or 0,
        "answers": answers,
        "skipped_tokens": skipped,
        "law": report,
        "versions": versions(),
    }


def ambiguous(position: Position) -> bool:
    """Whether several tokens may hide behind one of the stated texts: halves of characters look alike."""
    return any("\ufffd" in text for text in position.stated)


class Client:
    """What is asked of a server. Raises ConfigError for an address that is none."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url must be http://host:port or https://host:port, got {url!r}")
        self._url = url
        self._base = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY):
            self._headers["Authorization"] = f"Bearer {key}"
        # No redirects: the key is for this host only.
        self._opener = urllib.request.build_opener(_NoRedirects())

    def first_model(self) -> str:
        """The first model that the server lists."""
        listed = self._ask("/models", None)
        try:
            name = listed["data"][0]["id"]
        except (KeyError, IndexError, TypeError):
            raise ConfigError(f"{self._url}: lists no models; name one with --model") from None
        return str(name)

    def complete(self, model: str, prompt: str, max_tokens: int, seed: int) -> list[Position]:
        """One answer, position by position. Raises ConfigError if it does not state its law."""
        answer = self._ask(
            "/completions",
            {
                "model": model,
                "prompt": prompt,
                "max_tokens": max_tokens,
                "temperature": 1.0,
                "top_p": 1.0,
                "logprobs": STATED,
                "seed": seed,
            },
        )
        try:
            stated = answer["choices"][0]["logprobs"]
            tokens, tops = stated["tokens"], stated["top_logprobs"]
            pairs = list(zip(tokens, tops, strict=True))
        except (KeyError, IndexError, TypeError, ValueError):
            raise ConfigError(
                f'{self._url}: its answers lack "logprobs" with "tokens" and "top_logprobs"; '
                "audit a server that states them"
            ) from None
        return [self._position(token, top) for token, top in pairs]

    def _position(self, token: Any, top: Any) -> Position:
        if not isinstance(token, str) or not isinstance(top, Mapping) or not top:
            raise ConfigError(
                f"{self._url}: top_logprobs of a token is {_short(top)}, expected texts and numbers"
            )
        for value in top.values():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value <= SLACK:
                raise ConfigError(f"{self._url}: a log-probability is {_short(value)}, expected 0 or below")
        # A token drawn from beyond the likeliest is stated as one more: it belongs to the rest.
        likeliest = sorted(top, key=lambda text: (-top[text], text))[:STATED]
        masses = [math.exp(top[text]) for text in likeliest]
        total = sum(masses)
        if total > 1 + SLACK:
            raise ConfigError(
                f"{self._url}: its logprobs are wrong: those of {len(masses)} tokens sum to {total:.4g}"
            )
        law = np.array([*masses, max(0.0, 1 - total)])
        place = likeliest.index(token) if token in likeliest else len(likeliest)
        if place == len(likeliest) and law[place] < SLACK:
            law[place] = max(law[place], SLACK * 1e-3)  # rounded away, not impossible
        return Position(token, likeliest, law / law.sum(), place, max(masses) > CERTAIN)

    def _ask(self, path: str, body: Mapping[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, self._headers)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                content = response.read(MAX_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(200).decode(errors="replace")
            raise ConfigError(f"{self._url}: {path} answered {error.code} {error.reason} {said}") from None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self._url}: cannot be reached: {getattr(error, 'reason', None) or error}"
            ) from None
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{self._url}: {path} answered more than {MAX_BYTES} bytes")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise ConfigError(
                f"{self._url}: {path} did not answer JSON: {_short(content[:60].decode(errors='replace'))}"
            ) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any) -> None:
        """An HTTPError instead."""


def _short(value: Any) -> str:
    said = json.dumps(value, ensure_ascii=False, default=str)
    return said if len(said) <= 80 else said[:77] + "..."
