"""Paceline inside transformers' own `generate`.

    model.generate(**inputs, custom_generate=paceline.hf.speculative())
    paceline.accelerate(model)  # from here on model.generate does so by itself

`generate` prepares everything as always: the configuration, logits processors, stopping criteria. We take the
place of its decoding loop. Greedy answers are its answers; sampled ones are drawn from the same law with
noise of our own, seeded by torch's random numbers. What we cannot honour is refused by name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import repeat
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

from paceline import policies, rules
from paceline.core import (
    Budget,
    Draft,
    Drafter,
    Inputs,
    Promise,
    Scores,
    Tree,
    Verdict,
    View,
)
from paceline.drafters import PLUS, load, options
from paceline.drafters._companion import Companion
from paceline.drafters._model import ModelDrafter
from paceline.drafters._options import Growth
from paceline.engine import Engine
from paceline.errors import ConfigError, IncompatibleDrafter
from paceline.pretrained import offers
from paceline.sampling import MAX_SEED, SamplingParams
from paceline.targets.torch import TorchTarget
from paceline.targets.torch_attention import Source

MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.ASSISTED_GENERATION)
CACHES = (None, "dynamic", "static", "hybrid", "sliding_window")
"""Caches that give the same tokens as ours."""
HANDLED = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
ENCODED = {"encoder_outputs", "decoder_attention_mask"}
"""What is handled beside that where a model has an encoder."""
Output: TypeAlias = Tensor | GenerateDecoderOnlyOutput | GenerateEncoderDecoderOutput
REMEMBERING = {
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "guidance_scale",
    "SynthIDTextWatermarkLogitsProcessor": "watermarking_config",
}
"""Logits processors that must see every token exactly once, and what asks for them."""
MAX_BATCH = 64


def speculative(
    drafter: str = "auto",
    *,
    rule: str = "match",
    policy: str = "throughput",
    allow_lossy: bool = False,
    rows: int | None = None,
    nodes: int | None = None,
) -> Speculative:
    """What `generate` takes as `custom_generate`. Make it once and keep it: it remembers what drafters and
    policy learn.

    drafter, rule, policy, allow_lossy, nodes: as for `Engine.from_pretrained`; rows: as for `TorchTarget`.
    `prompt_lookup_num_tokens`, `assistant_early_exit` and `assistant_model` of a call take the drafter's
    place for that call.

    Raises ConfigError for an unknown name or a value out of range.
    """
    for part in PLUS.split(drafter):
        options(part.partition(":")[0])
    return Speculative(drafter, rules.load(rule, allow_lossy=allow_lossy), policy, rows, nodes)


def accelerate(model: Any, **settings: Any) -> Any:
    """The same model, whose `generate` is speculative from here on. settings: those of `speculative`.

    Raises ConfigError for a model or an option that cannot be served.
    """
    chosen, plain = speculative(**settings), model.generate
    chosen.prepare(model)

    @functools.wraps(plain)
    def generate(*args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("custom_generate", chosen)
        return plain(*args, **kwargs)

    model.generate = generate
    return model


class Speculative:
    """Decodes for `generate`. One object serves any number of models and calls, one call at a time."""

    def __init__(self, drafter: str, rule: Any, policy: str, rows: int | None, nodes: int | None) -> None:
        policies.load(policy)
        self._drafter = drafter
        self._rule = rule
        self._policy = policy
        self._rows = rows
        self._nodes = nodes
        self._targets: dict[int, TorchTarget] = {}  # by the model's id; a target holds its model
        self._engines: dict[tuple[int, object], Engine] = {}

    def prepare(self, model: Any) -> TorchTarget:
        """The model's target, made at the first call. Raises ConfigError if the model cannot be served."""
        target = self._targets.get(id(model))
        if target is None:
            target = self._targets[id(model)] = TorchTarget(model, rows=self._rows)
        return target

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Output:
        """What `generate` calls: the sequences int64 [B, length], or with `return_dict_in_generate` a
        `GenerateDecoderOnlyOutput` or `GenerateEncoderDecoderOutput`. input_ids: the texts to go on from; of
        a model with an encoder those that its decoder begins with."""
        asked = _asked_of_generate()
        target = self.prepare(model)
        encodes, looks = target.info.inputs is Inputs.REQUIRED, target.info.inputs is Inputs.OPTIONAL
        handled = HANDLED | ENCODED if encodes else HANDLED
        if looks:  # the model itself says what becomes of a prompt
            handled = model_kwargs.keys() - {"inputs_embeds"}
        _refuse(generation_config, model_kwargs, handled, asked, logits_processor, len(input_ids))
        kept = _kept(input_ids, model_kwargs, "decoder_attention_mask" if encodes else "attention_mask")
        if not looks:
            _check_positions(kept, model_kwargs)
        prompts = [ids[keep].tolist() for ids, keep in zip(input_ids, kept, strict=True)]
        keeps = generation_config.return_dict_in_generate and (
            generation_config.output_scores or generation_config.output_logits
        )
        if keeps and self._rule.promise is not Promise.TOKENS:
            raise ConfigError(f"output_scores and output_logits need the rule match, not {self._rule.name}")
        engine = self._engine(model, generation_config, asked.get("assistant_model"))
        room = generation_config.max_length - input_ids.shape[1]
        if input_ids.shape[1] + room > engine.target.info.max_positions:
            raise ConfigError(
                f"max_length is {generation_config.max_length}; {engine.target.info.name} holds "
                f"{engine.target.info.max_positions} tokens"
            )
        inputs: Iterable[Any] = repeat(None)
        if encodes:
            inputs = _sources(target, model_kwargs)
            drafter = engine.drafters["drafter"]
            if isinstance(drafter, _Translator):
                inputs = drafter.read(inputs, asked["inputs_tensor"], model_kwargs.get("attention_mask"))
        elif looks:
            inputs = target.see(input_ids, kept, _of_prompts(model_kwargs))
        rows = [
            _Row(
                ids,
                prompt,
                beside,
                (row, len(prompts)),
                logits_processor,
                stopping_criteria,
                keeps,
                asked.get("streamer"),
            )
            for row, (ids, prompt, beside) in enumerate(zip(input_ids, prompts, inputs, strict=False))
        ]
        _run(engine, rows, room, generation_config.do_sample)
        kind = GenerateEncoderDecoderOutput if encodes else GenerateDecoderOnlyOutput
        return _output(input_ids, rows, generation_config, kind)

    def _engine(self, model: Any, config: Any, assistant: Any) -> Engine:
        """An engine for this model with the drafter that the call asks for."""
        target = self.prepare(model)
        drafter: str | Drafter = self._drafter
        key: object = self._drafter
        if assistant is not None:
            key = (id(assistant), config.num_assistant_tokens, config.assistant_confidence_threshold)
        elif config.prompt_lookup_num_tokens is not None:
            longest = config.max_matching_ngram_size or 2
            key = drafter = f"ngram:tokens={config.prompt_lookup_num_tokens},longest={longest},shortest=1"
        elif config.assistant_early_exit is not None:
            depth, threshold = _assisted(config)
            chain = "x".join(["1"] * depth)
            key = drafter = (
                f"exit:layers={config.assistant_early_exit},widths={chain},min_probability={threshold}"
            )
        engine = self._engines.get((id(model), key))
        if engine is None:
            if assistant is not None:
                drafter = _assistant(assistant, target, config)
            elif isinstance(drafter, str):
                drafter = load(drafter, target.info, **offers(target, None))
            engine = self._engines[id(model), key] = Engine(
                target,
                {"drafter": drafter},
                drafter="drafter",
                rule=self._rule,
                policy=policies.load(self._policy),
                nodes=self._nodes,
                max_batch=MAX_BATCH,
                share_prefixes=False,  # several engines have one target, whose model may be trained on
            )
        return engine


class _Row:
    """One answer of the batch, and what `generate` asks of it."""

    def __init__(
        self,
        ids: Tensor,
        prompt: list[int],
        inputs: Any,
        place: tuple[int, int],
        processors: Any,
        criteria: Any,
        keeps: bool,
        streamer: Any,
    ) -> None:
        """inputs: what the target gets beside the prompt; place: the row's number, and how many there are."""
        self.prompt = prompt
        self.inputs = inputs
        self.answer: list[int] = []
        self.ended = False
        self.error: Exception | None = None  # what a processor raised
        self.kept: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}  # place in the answer: logits, scores
        self._ids = ids  # with the padding on its left, which processors and criteria are used to
        self._row, self._rows = place
        self._processors = processors
        self._criteria = criteria
        self._keeps = keeps
        self._streamer = streamer
        self.process = self._process if processors or keeps else None

    def _process(self, tokens: Sequence[int], logits: NDArray[Any]) -> NDArray[Any]:
        """The processed scores [V] after these tokens: `SamplingParams.logits_processor`."""
        answer = tokens[len(self.prompt) :]
        given = torch.from_numpy(logits).to(self._ids.device)
        # Some processors treat every row of the batch differently: let ours stand at its own place.
        try:
            batch = self._processors(self._with(answer).repeat(self._rows, 1), given.repeat(self._rows, 1))
        except Exception as error:
            self.error = error
            raise
        scores = batch[self._row].cpu().numpy()
        if self._keeps:
            # The target's own scores come after a drafter's, and those of an emitted token last of all.
            self.kept[len(answer)] = (logits.copy(), scores)
        return np.asarray(scores)

    def _with(self, answer: Sequence[int]) -> Tensor:
        return torch.cat((self._ids, self._ids.new_tensor(answer)))[None]

    def hear(self, tokens: Sequence[int]) -> None:
        """Take in tokens up to the first after which a criterion says that the answer ends."""
        for token in tokens:
            self.answer.append(token)
            if self._streamer is not None:
                self._streamer.put(torch.tensor([token]))
            if bool(self._criteria(self._with(self.answer), None).all()):
                self.ended = True
                break

    def finish(self) -> None:
        """The answer is complete."""
        if self._streamer is not None:
            self._streamer.end()


def _run(engine: Engine, rows: Sequence[_Row], room: int, sample: bool) -> None:
    """Answer the rows."""
    running: dict[int, _Row] = {}
    try:
        for row in rows:
            params = SamplingParams(
                temperature=1.0 if sample else 0,
                logits_processor=row.process,
                max_tokens=room,
                seed=int(torch.randint(MAX_SEED, ())) if sample else 0,
            )
            running[engine.submit(row.prompt, params, inputs=row.inputs)] = row
        while running:
            for event in engine.step():
                if event.request not in running:
                    continue
                row = running[event.request]
                row.hear(event.token_ids)
                if event.finish is not None and event.finish.finish_reason in ("cancelled", "error"):
                    why = f"the answer cannot go on: {event.finish.stop_reason}"
                    cancelled = event.finish.finish_reason == "cancelled"
                    raise row.error or (ConfigError(why) if cancelled else RuntimeError(why))
                if row.ended or event.finish is not None:
                    del running[event.request]
                    engine.cancel(event.request)
    finally:
        for request in running:
            engine.cancel(request)
        engine.step()  # idle now: takes away the events of what was cancelled
    for row in rows:
        row.finish()


def _output(input_ids: Tensor, rows: Sequence[_Row], config: Any, kind: Any) -> Output:
    """What `generate` returns. kind: the class of what it returns with `return_dict_in_generate`."""
    length = max(len(row.answer) for row in rows)
    pad = config._pad_token_tensor
    filler = 0 if pad is None else int(pad)
    answers = [row.answer + [filler] * (length - len(row.answer)) for row in rows]
    sequences = torch.cat((input_ids, input_ids.new_tensor(answers)), 1)
    if not config.return_dict_in_generate:
        return sequences
    kept: list[tuple[Tensor, ...] | None] = []
    for which, wanted in enumerate((config.output_logits, config.output_scores)):
        if not wanted:
            kept.append(None)
            continue
        nothing = np.zeros_like(rows[0].kept[0][which])  # where an answer has ended
        steps = [
            np.stack([row.kept[place][which] if place < len(row.answer) else nothing for row in rows])
            for place in range(length)
        ]
        kept.append(tuple(torch.from_numpy(step).to(input_ids.device) for step in steps))
    output: Output = kind(sequences=sequences, logits=kept[0], scores=kept[1])
    return output


class _WithSources:
    """The target of an assistant that reads sources: it gets those of the sequences that are drafted for."""

    def __init__(self, target: TorchTarget) -> None:
        self.target = target
        self.info = target.info
        self.sources: Mapping[int, Source] = {}  # by slot

    def forward(self, draft: Draft, taps: frozenset[str]) -> Scores:
        return self.target.forward(replace(draft, inputs=self.sources), taps)

    def commit(self, draft: Draft, verdict: Verdict) -> None:
        self.target.commit(draft, verdict)

    def release(self, slots: Sequence[int]) -> None:
        self.target.release(slots)


class _Translator(ModelDrafter):
    """An assistant with an encoder of its own, which reads every source once."""

    def __init__(self, target: TorchTarget, depth: int, threshold: float) -> None:
        self._model = _WithSources(target)
        super().__init__(Companion(self._model), Growth([1] * depth, min_probability=threshold))

    def read(self, sources: Sequence[Source], ids: Tensor, mask: Tensor | None) -> list[Source]:
        """The target's sources, with the assistant's. ids: the sources' tokens, int64 [B, E]; mask: what of
        them is no padding."""
        target = self._model.target
        if ids.is_floating_point() or bool((ids < 0).any()):
            raise ConfigError("an assistant_model with an encoder needs input_ids, what it reads itself")
        with torch.inference_mode():
            encoded = target.model.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        own = _read(target, encoded, mask)
        return [replace(one, assistant=other) for one, other in zip(sources, own, strict=True)]

    def propose(self, view: View, budgets: Sequence[Budget]) -> Sequence[Tree]:
        self._model.sources = {slot: given.assistant for slot, given in view.inputs.items()}
        return super().propose(view, budgets)


def _assistant(assistant: Any, target: TorchTarget, config: Any) -> ModelDrafter:
    """The model that a call names as its assistant, as drafter."""
    companion = TorchTarget(assistant)
    reads = companion.info.inputs is Inputs.REQUIRED
    if reads and target.info.inputs is not Inputs.REQUIRED:
        raise IncompatibleDrafter("assistant_model has an encoder, the model has none")
    if companion.info.vocab_size != target.info.vocab_size:
        raise IncompatibleDrafter(
            f"assistant_model has {companion.info.vocab_size} tokens, the model {target.info.vocab_size}"
        )
    depth, threshold = _assisted(config)
    if reads:
        return _Translator(companion, depth, threshold)
    return ModelDrafter(Companion(companion), Growth([1] * depth, min_probability=threshold))


def _assisted(config: Any) -> tuple[int, float]:
    """How deep an assistant drafts at most, and below which probability it does not go on."""
    threshold = config.assistant_confidence_threshold
    return int(config.num_assistant_tokens or 20), 0.4 if threshold is None else threshold


def _sources(target: TorchTarget, model_kwargs: Mapping[str, Any]) -> list[Source]:
    """What each row's decoder gets of its source."""
    return _read(
        target, model_kwargs["encoder_outputs"].last_hidden_state, model_kwargs.get("attention_mask")
    )


def _read(target: TorchTarget, states: Tensor, mask: Tensor | None) -> list[Source]:
    """The same of what an encoder made of the sources, [B, E, hidden size], without padding."""
    kept = (torch.ones(states.shape[:2]) if mask is None else mask).to(states.device, torch.bool)
    return [target.source(row[keep]) for row, keep in zip(states, kept, strict=True)]


def _of_prompts(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that belong to the prompts, such as images, without those that steer decoding."""
    return {**model_kwargs, "past_key_values": None, "use_cache": False}


def _kept(input_ids: Tensor, model_kwargs: Mapping[str, Any], masked_by: str) -> Tensor:
    """What of the prompts is no padding, bool [B, P]. masked_by: the argument that says so."""
    mask = model_kwargs.get(masked_by)
    kept = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.to(torch.bool)
    if kept.shape != input_ids.shape or not bool((kept[:, 1:] >= kept[:, :-1]).all() & kept[:, -1].all()):
        raise ConfigError(f"{masked_by}: prompts must be padded on their left, and nowhere else")
    return kept


def _check_positions(kept: Tensor, model_kwargs: Mapping[str, Any]) -> None:
    positions = model_kwargs.get("position_ids")
    counted = kept.to(torch.int64).cumsum(1) - 1
    if positions is not None and bool(((positions.expand_as(counted) != counted) & kept).any()):
        raise ConfigError("position_ids: only those that count each prompt's tokens from 0 are supported")


def _refuse(
    config: Any,
    model_kwargs: Mapping[str, Any],
    handled: Set[str],
    asked: Mapping[str, Any],
    processors: Any,
    batch: int,
) -> None:
    """Raises ConfigError for what a call asks for and does not get."""
    mode = config.get_generation_mode()
    if mode not in MODES:
        raise ConfigError(f"{mode.value.replace('_', ' ')} is not supported, only greedy search and sampling")
    if config.cache_implementation not in CACHES:
        raise ConfigError(f"cache_implementation={config.cache_implementation!r} is not supported")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        raise ConfigError("past_key_values: going on from a cache is not supported")
    refused = {
        name: getattr(config, name, None) for name in ("output_attentions", "output_hidden_states", "use_mtp")
    }
    refused |= {name: value for name, value in model_kwargs.items() if name not in handled}
    refused["synced_gpus"] = asked.get("synced_gpus")
    for name, value in refused.items():
        if value is not None and value is not False:
            raise ConfigError(f"{name} is not supported here")
    for processor in processors:
        name = type(processor).__name__
        if name in REMEMBERING:
            raise ConfigError(
                f"{REMEMBERING[name]}: {name} remembers what it has seen, which is not supported"
            )
    if asked.get("streamer") is not None and batch > 1:
        raise ConfigError("streamer is supported for one prompt at a time")
    if batch > 1 and config._pad_token_tensor is None:
        raise ConfigError("a batch needs a pad_token_id")


def _asked_of_generate() -> Mapping[str, Any]:
    """The arguments of the `generate` that called us.

    transformers 5.23 hands a function given as `custom_generate` neither the streamer nor the assistant
    model, so that both would be ignored without a word. They are read where they are: in its frame.
    """
    code = inspect.unwrap(GenerationMixin.generate).__code__
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    if frame is None:
        return {}
    return {
        name: frame.f_locals.get(name)
        for name in ("streamer", "assistant_model", "synced_gpus", "inputs_tensor")
    }
