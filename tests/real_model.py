"""SmolLM2-135M for tests: the model of the demo, and prompts of ours."""

from __future__ import annotations

from functools import cache

from paceline.models.registry import resolve
from paceline.models.tokenizer import Tokenizer
from paceline.pretrained import load_model
from paceline.targets.native import NativeTarget
from paceline.targets.weights import PackedWeights, load_weights

MODEL = "smollm2-135m"

TASKS = (
    "Write one sentence about {}.",
    "List three facts about {}.",
    "Repeat the word '{}' five times, then explain it.",
    "Translate into French: I like {}.",
    "Write a Python function that counts {} in a list.",
    "Rewrite politely: give me {} now, I want {} now!",
    "Copy this text exactly: {} are good, {} are cheap, {} are here.",
    "What is the difference between {} and water?",
)
THINGS = ("apples", "trains", "rain", "numbers", "old books", "bridges", "cats", "letters", "stones")


def prompts(count: int) -> list[list[dict[str, str]]]:
    """Chat messages, all different for counts up to 72."""
    texts = [task.replace("{}", thing) for thing in THINGS for task in TASKS]
    return [[{"role": "user", "content": text}] for text in texts[:count]]


@cache
def weights() -> PackedWeights:
    return load_weights(resolve(MODEL))


@cache
def target(threads: int = 2) -> NativeTarget:
    return NativeTarget(weights(), threads=threads)


@cache
def tokenizer() -> Tokenizer:
    return load_model(MODEL)[1]
