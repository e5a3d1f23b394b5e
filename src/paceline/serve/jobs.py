"""From a typed request to what an engine gets: the one place where values are held against their bounds.

Bounds of sampling parameters are those of `paceline.SamplingParams`, which words their refusals too; here
stand the bounds of what only a server has.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from paceline.errors import ConfigError, PacelineError
from paceline.grammar import Grammar
from paceline.models.tokenizer import Tokenizer
from paceline.noise import choice_seed
from paceline.sampling import MAX_SEED, SamplingParams
from paceline.serve import schema, tools
from paceline.serve.failures import ApiError, refused, unsupported
from paceline.serve.formats import grammar_of
from paceline.serve.wire import Ready, Submit

MAX_CHOICES = 8
MAX_PROMPTS = 16
MAX_MESSAGES = 2048
MAX_TOP_LOGPROBS = 20
MAX_NODES = 64
MAX_SALT = 256
DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's, for /v1/completions; a chat answer may by default be as long as the context."""

_SAME = (
    *("temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "bad_words", "stop", "stop_token_ids", "ignore_eos", "seed"),
)
"""Parameters that mean the same to the engine."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one HTTP request asks of an engine.

    orders     one for each answer: all answers to the first prompt, then those to the second
    prompts    the prompts' token ids
    tools      whether the answer may be calls of functions
    echo       whether the text of the prompt goes before the answer
    hollow     whether one token is made that nobody asked for: the engine makes at least one
    predicted  whether the caller predicted the answer
    """

    orders: list[Submit]
    prompts: list[list[int]]
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    logprobs: int | None = None
    tools: bool = False
    echo: bool = False
    hollow: bool = False
    predicted: bool = False


def chat_job(request: schema.ChatRequest, info: Ready, tokenizer: Tokenizer, salt: str) -> Job:
    """What a chat request asks for. Raises ApiError."""
    offered = tools.offer(request)
    messages = chat_messages(request.messages)
    if offered is not None:
        messages = tools.introduce(messages, offered)
    prompt = render(messages, tokenizer)
    top = _top_logprobs(request)
    grammar = grammar_of(request.response_format)
    if offered is not None:
        if grammar is not None:
            raise unsupported("response_format", "together with tools; choose one of the two")
        grammar = offered.grammar
    limit = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    predicted = None
    if request.prediction is not None:
        if request.prediction.type != "content":
            raise refused(f"prediction.type must be 'content', got {request.prediction.type!r}", "prediction")
        predicted = tokenizer.encode_part(_text(request.prediction.content, "prediction", "prediction"))
    return _job(
        request,
        [prompt],
        info,
        salt,
        max_tokens=limit,
        limit_name=name,
        what="messages",
        logprobs=top,
        grammar=grammar,
        prediction=predicted,
        tools=offered is not None,
    )


def completion_job(request: schema.CompletionRequest, info: Ready, tokenizer: Tokenizer, salt: str) -> Job:
    """What a completion request asks for. Raises ApiError."""
    prompts = _prompts(request.prompt, info, tokenizer)
    echo = bool(request.echo)
    limit = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    if request.max_tokens is None:
        limit = max(1, min(limit, *(info.max_positions - len(prompt) for prompt in prompts)))
    hollow = echo and limit == 0
    return _job(
        request,
        prompts,
        info,
        salt,
        max_tokens=1 if hollow else limit,
        limit_name="max_tokens",
        what="prompt",
        logprobs=request.logprobs,
        grammar=grammar_of(request.response_format),
        echo=echo,
        hollow=hollow,
    )


def _job(
    request: schema.ChatRequest | schema.CompletionRequest,
    prompts: list[list[int]],
    info: Ready,
    salt: str,
    *,
    max_tokens: int | None,
    limit_name: str,
    what: str,
    logprobs: int | None,
    grammar: Grammar | None,
    prediction: list[int] | None = None,
    tools: bool = False,
    echo: bool = False,
    hollow: bool = False,
) -> Job:
    if echo and logprobs is not None and request.stream:
        raise unsupported("stream", "together with echo and logprobs")
    n = 1 if request.n is None else request.n
    if not 1 <= n <= MAX_CHOICES:
        raise refused(f"n must be 1 to {MAX_CHOICES}, got {n}", "n")
    if request.stream_options is not None and not request.stream:
        raise refused("stream_options go with stream: true only", "stream_options")
    if request.cache_salt is not None and not 1 <= len(request.cache_salt) <= MAX_SALT:
        raise refused(f"cache_salt must have 1 to {MAX_SALT} characters", "cache_salt")
    if max_tokens is not None:
        _alone("max_tokens", max_tokens, limit_name)
    drafter, limit = _speculation(request.speculative, info, prediction is not None)
    orders = []
    for prompt in prompts:
        room = info.max_positions - len(prompt)
        if room < (max_tokens or 1):
            raise refused(
                f"the model takes {info.max_positions} tokens, prompt and answer together; the prompt has "
                f"{len(prompt)}" + ("" if max_tokens is None else f", and {limit_name} is {max_tokens}"),
                what,
                "context_length_exceeded",
            )
        params = _params(request, max_tokens or room, logprobs, grammar, info, echo)
        seed = secrets.randbelow(MAX_SEED + 1) if params.seed is None else params.seed
        orders += [
            Submit(
                0,
                prompt,
                replace(params, seed=choice_seed(seed, index)),
                drafter,
                prediction,
                limit,
                f"{salt}/{request.cache_salt or ''}",
            )
            for index in range(n)
        ]
    return Job(
        orders,
        prompts,
        n=n,
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        logprobs=logprobs,
        tools=tools,
        echo=echo,
        hollow=hollow,
        predicted=prediction is not None,
    )


def _params(
    request: schema.Sampled,
    max_tokens: int,
    logprobs: int | None,
    grammar: Grammar | None,
    info: Ready,
    echo: bool,
) -> SamplingParams:
    """The sampling parameters. Each is tried alone first, so that a refusal can name it."""
    given: dict[str, Any] = {name: value for name in _SAME if (value := getattr(request, name)) is not None}
    if given.get("top_k") == -1:  # vLLM's way to say "all"
        del given["top_k"]
    if request.logit_bias is not None:
        given["logit_bias"] = _biases(request.logit_bias)
    if logprobs is not None:
        given["logprobs"] = logprobs
    for name, value in given.items():
        _alone(name, value, _NAMES.get(name, name), info)
    if request.min_tokens is not None:
        given["min_tokens"] = request.min_tokens
    if grammar is not None:
        given["grammar"] = grammar
    try:
        return SamplingParams(**given, max_tokens=max_tokens, prompt_logprobs=logprobs if echo else None)
    except ConfigError as error:  # what goes wrong only together is min_tokens: with max_tokens, or a grammar
        name = "min_tokens" if str(error).startswith("min_tokens") else "ignore_eos"
        raise refused(str(error), name) from None


_NAMES = {"logprobs": "top_logprobs", "stop_token_ids": "stop"}
"""Under which name a parameter is refused where that is not the engine's."""


def _alone(name: str, value: Any, param: str, info: Ready | None = None) -> None:
    try:
        params = SamplingParams(**{name: value})
        if info is not None:
            params.check_vocabulary(info.vocab_size)
    except ConfigError as error:
        raise refused(str(error), param) from None


def _biases(given: dict[str, float]) -> dict[int, float]:
    biases = {}
    for token, bias in given.items():
        if not token.isascii() or not token.removeprefix("-").isdigit() or len(token) > 10:
            raise refused(f"logit_bias maps token ids to numbers; {token[:40]!r} is no id", "logit_bias")
        biases[int(token)] = bias
    return biases


def _speculation(
    asked: schema.Speculative | None, info: Ready, predicting: bool
) -> tuple[str, tuple[int, int] | None]:
    """The drafter, and the most nodes and depth that may be drafted."""
    drafter = "prediction" if predicting else info.drafters[0]
    if asked is None:
        return drafter, None
    for name, value in (("nodes", asked.nodes), ("depth", asked.depth)):
        if value is not None and not 0 <= value <= MAX_NODES:
            raise refused(f"speculative.{name} must be 0 to {MAX_NODES}, got {value}", "speculative")
    if asked.drafter is not None:
        if asked.drafter not in info.drafters:
            known = ", ".join(info.drafters)
            raise refused(
                f"speculative.drafter {asked.drafter[:60]!r} is not loaded; loaded are {known}; "
                "paceline serve --drafter NAME, which may be given several times, loads others",
                "speculative",
            )
        drafter = asked.drafter
    if asked.off:
        return "none", (0, 0)  # a drafter that learns from answers learns nothing from this one
    if asked.nodes is None and asked.depth is None:
        return drafter, None
    return drafter, (
        MAX_NODES if asked.nodes is None else asked.nodes,
        MAX_NODES if asked.depth is None else asked.depth,
    )


def _top_logprobs(request: schema.ChatRequest) -> int | None:
    if request.top_logprobs is None:
        return 0 if request.logprobs else None
    if not 0 <= request.top_logprobs <= MAX_TOP_LOGPROBS:
        raise refused(
            f"top_logprobs must be 0 to {MAX_TOP_LOGPROBS}, got {request.top_logprobs}", "top_logprobs"
        )
    if not request.logprobs:
        raise refused("top_logprobs go with logprobs: true only", "top_logprobs")
    return request.top_logprobs


def _prompts(given: str | list[Any], info: Ready, tokenizer: Tokenizer) -> list[list[int]]:
    """The prompts as token ids."""
    if isinstance(given, str):
        texts: Sequence[Any] = [given]
    elif given and all(isinstance(item, int) for item in given):
        texts = [given]
    else:
        texts = given
    kinds = {type(item) for item in texts}
    if not texts or len(kinds) > 1 or kinds & {int}:
        raise refused(
            "prompt must be text, token ids, or a list of one of these; it is empty or mixed", "prompt"
        )
    if len(texts) > MAX_PROMPTS:
        raise refused(f"up to {MAX_PROMPTS} prompts at a time, got {len(texts)}", "prompt")
    prompts = [tokenizer.encode(item) if isinstance(item, str) else item for item in texts]
    for prompt in prompts:
        if not prompt:
            raise refused("a prompt is empty", "prompt")
        for token in prompt:
            if not 0 <= token < info.vocab_size:
                raise refused(f"prompt: token ids are 0 to {info.vocab_size - 1}, got {token}", "prompt")
    return prompts


def chat_messages(messages: Sequence[schema.Message]) -> list[dict[str, str]]:
    """Messages as templates take them: a role and text. Raises ApiError."""
    if not messages:
        raise refused("messages must hold at least one message", "messages")
    if len(messages) > MAX_MESSAGES:
        raise refused(f"messages may hold up to {MAX_MESSAGES}, got {len(messages)}", "messages")
    plain = []
    for place, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        text = _text(message.content, f"messages[{place}]", "messages")
        if message.tool_calls and role != "assistant":
            raise refused(f"messages[{place}]: tool_calls belong to the assistant", "messages")
        if message.tool_calls:
            text = "\n".join(filter(None, [text, *map(tools.spelled, message.tool_calls)]))
        elif message.content is None:
            raise refused(f"messages[{place}].content is missing", "messages")
        plain.append({"role": role, "content": text})
    return plain


def _text(content: schema.Content, where: str, param: str) -> str:
    """The text of a content. Images, sounds and files are refused: this server reads text only."""
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type not in ("text", "input_text", "output_text"):
            raise refused(f"{where}: content of type {part.type[:40]!r}; only text can be read", param)
        if part.text is None:
            raise refused(f"{where}: a part of type text has no text", param)
    return "".join(part.text or "" for part in content)


def render(messages: Sequence[dict[str, str]], tokenizer: Tokenizer) -> list[int]:
    """The token ids of a conversation. Raises ApiError for one that the model's template does not take."""
    try:
        return tokenizer.apply_chat_template(messages)
    except ConfigError as error:
        raise refused(str(error).replace(" (--raw)", " to /v1/completions"), "messages") from None
    except PacelineError as error:
        raise ApiError(str(error), param="messages", code="template_failed") from None
