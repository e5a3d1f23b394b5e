"""vLLM on the CPU, in this process: its engine stepped by hand, so that the first token has a time."""

from __future__ import annotations

import os
from time import perf_counter
from typing import Any

from benchmarks.peers.workers.protocol import serve


class Worker:
    """speculative: vLLM's speculative_config, or None. counts: keep counts, for `counters`."""

    def __init__(
        self,
        model: str,
        threads: int,
        context: int,
        sequences: int,
        speculative: dict[str, Any] | None,
        counts: bool = False,
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ["HF_HUB_OFFLINE"] = "1"
        from vllm import LLM, SamplingParams

        self._params = SamplingParams
        self._engine = LLM(
            model,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=context,
            max_num_seqs=sequences,
            enable_prefix_caching=False,  # every prompt is read, as by the others
            speculative_config=speculative,
            disable_log_stats=not counts,
        ).llm_engine
        self._requests = 0

    def answer(self, prompt: list[int], tokens: int) -> dict[str, Any]:
        params = self._params(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        self._requests += 1
        start = perf_counter()
        self._engine.add_request(str(self._requests), {"prompt_token_ids": prompt}, params)
        first_s, ids = None, []
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                ids = list(output.outputs[0].token_ids)
                if first_s is None and ids:
                    first_s = perf_counter() - start
        return {"tokens": ids, "first_s": first_s, "seconds": perf_counter() - start}

    def counters(self) -> dict[str, Any]:
        """Drafts so far, and of how many of them 1, 2, ... tokens or more were accepted."""
        found = {metric.name: metric for metric in self._engine.get_metrics()}
        drafts = found.get("vllm:spec_decode_num_drafts")
        accepted = found.get("vllm:spec_decode_num_accepted_tokens_per_pos")
        return {"drafts": drafts.value if drafts else 0, "accepted": accepted.values if accepted else []}


if __name__ == "__main__":
    serve(Worker)
