"""transformers' own generate, on the CPU."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from benchmarks.peers.workers.protocol import serve


class FirstToken(BaseStreamer):
    """The time of the first token: `put` gets the prompt, then tokens."""

    def __init__(self) -> None:
        self.calls = 0
        self.at = 0.0

    def put(self, value: Any) -> None:
        self.calls += 1
        if self.calls == 2:
            self.at = perf_counter()

    def end(self) -> None:
        pass


class Worker:
    """options: of `generate`, such as {"prompt_lookup_num_tokens": 10}; assistant: a folder, or None."""

    def __init__(
        self,
        model: str,
        threads: int,
        context: int,
        sequences: int,
        dtype: str,
        options: dict[str, Any],
        assistant: str | None,
    ) -> None:
        torch.set_num_threads(threads)
        self._model = _load(model, dtype)
        self._options = dict(options)
        if assistant:
            self._options["assistant_model"] = _load(assistant, dtype)

    @torch.inference_mode()
    def answer(self, prompt: list[int], tokens: int) -> dict[str, Any]:
        ids = torch.tensor([prompt])
        first = FirstToken()
        start = perf_counter()
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            streamer=first,
            **self._options,
        )
        seconds = perf_counter() - start
        return {"tokens": output[0, len(prompt) :].tolist(), "first_s": first.at - start, "seconds": seconds}

    @torch.inference_mode()
    def logits(self, tokens: list[int], first: int, file: str) -> dict[str, Any]:
        output = self._model(torch.tensor([tokens]))
        np.save(file, output.logits[0, first - 1 : -1].float().numpy())
        return {}


def _load(model: str, dtype: str) -> Any:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    loaded.generation_config.eos_token_id = None  # ends are ignored
    loaded.generation_config.pad_token_id = 0
    return loaded


if __name__ == "__main__":
    serve(Worker)
