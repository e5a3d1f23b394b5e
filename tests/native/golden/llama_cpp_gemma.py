"""What llama.cpp makes of Gemma 3 270M: tokens of hard texts, and greedy answers.

    python tests/native/golden/llama_cpp_gemma.py MODEL.gguf THREADS

writes gemma3-270m.json. Needs llama-cpp-python, which nothing else here does, and nothing of Paceline.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

TEXTS, TOKENS = 300, 32
FRAGMENTS = [
    *"a1²Ⅳ٣ \n\té日!#\u00a0\u2003\x85\u200b😀\u017f<>_", "  ", "   ", "\n\n", "\t\t", "'s", "the", " The",
    "Hello", "http://", "def ", "return", "\r\n", "<table>", "</td>", "e\u0301", "한국어", "العربية",
    "👩\u200d👩\u200d👧", "\x00", "1234567", "camelCase", "ABC", "...", "----", "    ", "Ünïcödé",
    "<start_of_turn>", "<eos>", "<unused7>", "[multimodal]", "<0x41>", " " * 40, "\n" * 35,
]  # fmt: skip
PROMPTS = [
    "The capital of France is",
    "Once upon a time there was an old lighthouse keeper who",
    "def fibonacci(n):\n    ",
    "Translate into German: The weather is fine today.\nGerman:",
    "<start_of_turn>user\nWhy is the sky blue?<end_of_turn>\n<start_of_turn>model\n",
    "<start_of_turn>user\nWrite one sentence about bridges.<end_of_turn>\n<start_of_turn>model\n",
    "Question: What is 12 times 12?\nAnswer:",
    "Ingredients: flour, sugar, butter, eggs.\nSteps:\n1.",
]


def main() -> None:
    import llama_cpp
    import numpy as np

    rng = random.Random(0)
    texts = ["".join(rng.choices(FRAGMENTS, k=rng.randrange(1, 12))) for _ in range(TEXTS)]
    model = llama_cpp.Llama(
        sys.argv[1], n_ctx=256, logits_all=True, verbose=False, n_threads=int(sys.argv[2])
    )
    answers = []
    for prompt in PROMPTS:
        ids = model.tokenize(prompt.encode(), add_bos=True, special=True)
        model.reset()
        model.eval(ids)
        answer: list[int] = []
        while len(answer) < TOKENS:
            answer.append(int(np.argmax(model.scores[model.n_tokens - 1])))
            model.eval(answer[-1:])
        answers.append({"prompt": ids, "answer": answer})
    record = {
        "made_by": "python tests/native/golden/llama_cpp_gemma.py MODEL.gguf THREADS",
        "llama_cpp_python": llama_cpp.__version__,
        "texts": [[text, model.tokenize(text.encode(), add_bos=False, special=False)] for text in texts],
        "answers": answers,
    }
    path = Path(__file__).with_name("gemma3-270m.json")
    path.write_text(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
