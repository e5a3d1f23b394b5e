"""llama.cpp through the C interface of llama-cpp-python, without its Python class: as little Python per token
as there can be. Sampling is llama.cpp's own, greedy. Batch sizes are llama.cpp's defaults."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import llama_cpp as llama
import numpy as np

from benchmarks.peers.workers.protocol import serve

Row = tuple[int, int, int, bool]
"""token, position, sequence, whether its logits are wanted"""


class Worker:
    """lookup: "" for plain decoding, or "LONGEST,TOKENS": llama-cpp-python's prompt lookup, with the longest
    n-gram it looks for and the tokens it then proposes."""

    def __init__(
        self,
        model: str,
        threads: int,
        context: int,
        sequences: int,
        flash_attention: bool,
        repack: bool,
        lookup: str,
    ) -> None:
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.use_extra_bufts = repack
        loaded = llama.llama_model_load_from_file(model.encode(), params)
        if not loaded:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        options = llama.llama_context_default_params()
        options.n_ctx, options.n_seq_max = context * sequences, sequences
        options.n_threads = options.n_threads_batch = threads
        options.flash_attn_type = (
            llama.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attention else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        self._context = llama.llama_init_from_model(loaded, options)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot run {model}")
        self._memory = llama.llama_get_memory(self._context)
        self._sampler = llama.llama_sampler_init_greedy()
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(loaded))
        self._room = llama.llama_n_batch(self._context)
        self._batch = llama.llama_batch_init(self._room, 0, 1)
        self._propose = None
        if lookup:
            from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

            self._propose = LlamaPromptLookupDecoding(*map(int, lookup.split(",")))

    def answer(self, prompt: list[int], tokens: int) -> dict[str, Any]:
        llama.llama_memory_clear(self._memory, False)
        start = perf_counter()
        text = list(prompt)
        text += self._read([(token, at, 0, at == len(prompt) - 1) for at, token in enumerate(prompt)])
        first_s = perf_counter() - start
        while len(text) < len(prompt) + tokens:
            known = len(text) - 1  # tokens in the cache: all but the last
            draft = self._draft(text, len(prompt) + tokens - len(text) - 1)
            rows = [(token, known + at, 0, True) for at, token in enumerate([text[-1], *draft])]
            drawn = self._read(rows)
            kept = 0
            while kept < len(draft) and draft[kept] == drawn[kept]:
                kept += 1
            text += drawn[: kept + 1]
            if kept < len(draft):
                llama.llama_memory_seq_rm(self._memory, 0, len(text) - 1, -1)
        return {"tokens": text[len(prompt) :], "first_s": first_s, "seconds": perf_counter() - start}

    def batch(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        llama.llama_memory_clear(self._memory, False)
        start = perf_counter()
        rows = [
            (token, at, sequence, at == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for at, token in enumerate(prompt)
        ]
        drawn = self._read(rows)
        answers = [[token] for token in drawn]
        for step in range(tokens - 1):
            drawn = self._read(
                [
                    (token, len(prompts[sequence]) + step, sequence, True)
                    for sequence, token in enumerate(drawn)
                ]
            )
            for answer, token in zip(answers, drawn, strict=True):
                answer.append(token)
        return {"tokens": answers, "seconds": perf_counter() - start}

    def logits(self, tokens: list[int], first: int, file: str) -> dict[str, Any]:
        llama.llama_memory_clear(self._memory, False)
        rows: list[Any] = []
        for at, token in enumerate(tokens[:-1]):
            self._read([(token, at, 0, True)])
            if at >= first - 1:
                pointer = llama.llama_get_logits_ith(self._context, 0)
                rows.append(np.ctypeslib.as_array(pointer, (self._vocabulary,)).copy())
        np.save(file, np.array(rows, np.float32))
        return {}

    def _draft(self, text: list[int], most: int) -> list[int]:
        if self._propose is None or most < 1:
            return []
        return [int(token) for token in self._propose(np.array(text, np.intc))[:most]]

    def _read(self, rows: list[Row]) -> list[int]:
        """Put rows into the cache; the likeliest next tokens of those whose logits are wanted."""
        drawn = []
        for start in range(0, len(rows), self._room):
            part = rows[start : start + self._room]
            batch = self._batch
            batch.n_tokens = len(part)
            for at, (token, position, sequence, wanted) in enumerate(part):
                batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
            if code := llama.llama_decode(self._context, batch):
                raise RuntimeError(f"llama_decode failed with {code}")
            drawn += [
                llama.llama_sampler_sample(self._sampler, self._context, at)
                for at, row in enumerate(part)
                if row[3]
            ]
        return drawn


if __name__ == "__main__":
    serve(Worker)
