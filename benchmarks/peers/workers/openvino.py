"""OpenVINO GenAI's LLMPipeline on the CPU; laws come from the same model in the runtime underneath, for the
pipeline gives none."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import openvino
import openvino_genai

from benchmarks.peers.workers.protocol import serve


class Worker:
    """backend: of attention, "PA" (paged) or "SDPA"; lookup: {} for plain decoding, or the options
    num_assistant_tokens and max_ngram_size of prompt lookup."""

    def __init__(
        self,
        model: str,
        threads: int,
        context: int,
        sequences: int,
        backend: str,
        lookup: dict[str, int],
    ) -> None:
        self._folder = Path(model)
        self._properties = {"INFERENCE_NUM_THREADS": threads}
        options: dict[str, Any] = dict(self._properties, ATTENTION_BACKEND=backend)
        if lookup:
            options["prompt_lookup"] = True
        self._pipeline = openvino_genai.LLMPipeline(self._folder, "CPU", **options)
        self._lookup = lookup
        self._request: Any = None

    def answer(self, prompt: list[int], tokens: int) -> dict[str, Any]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
        for name, value in self._lookup.items():
            setattr(config, name, value)
        ids = openvino.Tensor(np.array([prompt], np.int64))
        start = perf_counter()
        done = self._pipeline.generate(ids, config)
        seconds = perf_counter() - start
        first_s = done.perf_metrics.get_ttft().mean / 1e3
        return {"tokens": list(done.tokens[0]), "first_s": first_s, "seconds": seconds}

    def logits(self, tokens: list[int], first: int, file: str) -> dict[str, Any]:
        if self._request is None:
            compiled = openvino.Core().compile_model(
                self._folder / "openvino_model.xml", "CPU", self._properties
            )
            self._request = compiled.create_infer_request()
        self._request.reset_state()
        ids = np.array([tokens], np.int64)
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(len(tokens))[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        names = {name for port in self._request.model_inputs for name in port.get_names()}
        output = self._request.infer({name: value for name, value in inputs.items() if name in names})
        np.save(file, np.array(output["logits"][0, first - 1 : -1], np.float32))
        return {}


if __name__ == "__main__":
    serve(Worker)
