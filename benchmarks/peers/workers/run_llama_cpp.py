"""Answers prompts with llama.cpp, one JSON line in, one out. Runs in llama-cpp-python's own environment.

    python run_llama_cpp.py MODEL.gguf THREADS CONTEXT FLASH_ATTENTION REPACK

In: {"prompt": [token ids], "tokens": N}. Out: {"tokens": [N ids], "first_s": ..., "seconds": ...}. Uses the C
interface directly, without the Python class around it, and llama.cpp's own greedy sampler: as little
Python per token as there can be. Batch sizes are llama.cpp's defaults.
"""

import json
import sys
from time import perf_counter

import llama_cpp as llama


def main() -> None:
    path, threads, tokens_of_context, flash_attention, repack = sys.argv[1:]
    llama.llama_backend_init()
    silent = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(silent, None)
    model_params = llama.llama_model_default_params()
    model_params.use_extra_bufts = bool(int(repack))
    model = llama.llama_model_load_from_file(path.encode(), model_params)
    params = llama.llama_context_default_params()
    params.n_ctx = int(tokens_of_context)
    params.n_threads = params.n_threads_batch = int(threads)
    params.flash_attn_type = (
        llama.LLAMA_FLASH_ATTN_TYPE_ENABLED if int(flash_attention) else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    context = llama.llama_init_from_model(model, params)
    if not context:
        sys.exit(f"llama.cpp cannot run {path}")
    sampler = llama.llama_sampler_init_greedy()
    memory = llama.llama_get_memory(context)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        llama.llama_memory_clear(memory, False)
        prompt = (llama.llama_token * len(request["prompt"]))(*request["prompt"])
        start = perf_counter()
        decode(context, llama.llama_batch_get_one(prompt, len(prompt)))
        answer = [llama.llama_sampler_sample(sampler, context, -1)]
        first_s = perf_counter() - start
        last = (llama.llama_token * 1)()
        batch = llama.llama_batch_get_one(last, 1)
        while len(answer) < request["tokens"]:
            last[0] = answer[-1]
            decode(context, batch)
            answer.append(llama.llama_sampler_sample(sampler, context, -1))
        seconds = perf_counter() - start
        print(json.dumps({"tokens": answer, "first_s": first_s, "seconds": seconds}), flush=True)


def decode(context: object, batch: object) -> None:
    if code := llama.llama_decode(context, batch):
        sys.exit(f"llama_decode failed with {code}")


if __name__ == "__main__":
    main()
