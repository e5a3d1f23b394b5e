"""The native target and PyTorch on one model: the same seeds, the same texts up to ties of arithmetic.

    python -m benchmarks.peers.workers.dequantise MODEL.gguf FOLDER
    python -m benchmarks.torch_native MODEL.gguf FOLDER [--limit 20] [--tokens 64] [--temperature 1]

The native target answers. PyTorch reads each answer and says which token it would have drawn at every place,
with the same seed's noise. Where that is another one, the gap is by how much it came first. The targets'
logits differ a little (the native one rounds what flows between layers to 8 bits): sigma is the root mean
square of that, over tokens that are not improbable. A gap of up to SIGMAS times as much is a tie that
arithmetic decided; a larger one would be a bug in either target, and ends the script with status 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from paceline.audit.referee import Referee
from paceline.bench import prompts as prompt_files
from paceline.drafters import load
from paceline.engine import Engine
from paceline.pretrained import load_model
from paceline.sampling import SamplingParams

SIGMAS = 6
LIKELY = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("gguf")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    chosen = parser.parse_args()
    native, tokenizer = load_model(chosen.gguf)
    other, _ = load_model(chosen.folder)
    engine = Engine(native, {"auto": load("auto", native.info)}, drafter="auto", tokenizer=tokenizer)
    ours, theirs = (Referee(target, tokenizer.eos_ids, tokenizer) for target in (native, other))
    places = whole = 0
    gaps: list[float] = []
    squares: list[float] = []
    questions = prompt_files.choose(None, chosen.limit)
    for number, question in enumerate(questions):
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": question.text}])
        params = SamplingParams(
            temperature=chosen.temperature, max_tokens=chosen.tokens, seed=number, ignore_eos=True
        )
        answer = engine.generate([prompt], params)[0].token_ids
        reckoned = list(theirs.reckon(prompt, answer, params, number))
        different = [one.gap for token, one in zip(answer, reckoned, strict=True) if one.drawn != token]
        law = SamplingParams(temperature=1.0)
        for a, b in zip(ours.laws(prompt, answer, law), theirs.laws(prompt, answer, law), strict=True):
            likely = np.maximum(a, b) > np.log(LIKELY)
            squares.append(float(np.mean((a - b)[likely] ** 2)))
        places += len(answer)
        whole += not different
        gaps += different
        print(f"{number + 1} of {len(questions)}", end="\r", file=sys.stderr)
    sigma = float(np.sqrt(np.mean(squares))) / (chosen.temperature or 1)
    untied = [gap for gap in gaps if gap > SIGMAS * sigma]
    report = {
        "answers": len(questions),
        "answers the same": whole,
        "tokens": places,
        "tokens drawn otherwise": len(gaps),
        "sigma": sigma,
        "largest gap": max(gaps, default=0.0),
        "no ties": len(untied),
    }
    print(json.dumps(report))
    return 1 if untied else 0


if __name__ == "__main__":
    sys.exit(main())
