"""Answers prompts with Paceline, plain and greedy, one JSON line in, one out.

    python run_paceline.py MODEL THREADS CONTEXT

In: {"prompt": [token ids], "tokens": N}. Out: {"tokens": [N ids], "first_s": ..., "seconds": ...}.
"""

from __future__ import annotations

import json
import sys

from paceline import Engine, SamplingParams
from paceline.bench.measure import answer


def main() -> None:
    model, threads, context = sys.argv[1:]
    engine = Engine.from_pretrained(model, drafter="none", threads=int(threads), context=int(context))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        params = SamplingParams(temperature=0, max_tokens=request["tokens"], ignore_eos=True)
        done = answer(engine, request["prompt"], params, "none")
        tokens = list(done.completion.token_ids)
        print(
            json.dumps({"tokens": tokens, "first_s": done.first_seconds, "seconds": done.seconds}), flush=True
        )


if __name__ == "__main__":
    main()
