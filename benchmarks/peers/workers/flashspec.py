"""FlashSpec with its prompt-lookup drafter, the only one that needs no second model."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
import torch
from flashspec import BanditConfig, FlashSpecConfig, SamplingConfig, SpeculativeEngine
from flashspec.engine import NgramDrafter, TargetModel
from transformers import AutoModelForCausalLM

from benchmarks.peers.workers.protocol import serve


class Worker:
    """gamma: tokens drafted per step."""

    def __init__(
        self, model: str, threads: int, context: int, sequences: int, dtype: str, gamma: int
    ) -> None:
        torch.set_num_threads(threads)
        kind, cpu = getattr(torch, dtype), torch.device("cpu")
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=kind).eval()
        config = FlashSpecConfig(
            device="cpu",
            drafter_strategy="bandit",
            bandit=BanditConfig(n_arms=1),
            sampling=SamplingConfig(temperature=0.0, gamma=gamma),
        )
        target = TargetModel(model, cpu, kind, model=self._model)
        self._engine = SpeculativeEngine(config, [NgramDrafter()], target)

    def answer(self, prompt: list[int], tokens: int) -> dict[str, Any]:
        start = perf_counter()
        done = self._engine.generate(torch.tensor([prompt]), max_new_tokens=tokens)
        seconds = perf_counter() - start
        ids = done.output_ids[0, : done.n_tokens_generated].tolist()
        return {"tokens": ids, "first_s": None, "seconds": seconds}

    @torch.inference_mode()
    def logits(self, tokens: list[int], first: int, file: str) -> dict[str, Any]:
        output = self._model(torch.tensor([tokens]))
        np.save(file, output.logits[0, first - 1 : -1].float().numpy())
        return {}


if __name__ == "__main__":
    serve(Worker)
