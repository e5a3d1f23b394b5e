"""What every worker speaks: one JSON object per line on stdin, one per line on stdout.

A worker is started with a JSON object of settings and first says {"does": [names]}, or {"error": line}.
Then, in: {"do": name, ...}; out: the named method's dictionary, or {"error": line}, after which it goes on.
Methods:

    answer(prompt, tokens)        one prompt's token ids, continued greedily by so many tokens, ends ignored:
                                  {"tokens": [ids], "seconds": all, "first_s": to the first token or null}
    batch(prompts, tokens)        the same for many at once: {"tokens": [[ids]], "seconds": all}
    logits(tokens, first, file)   the logits before each of tokens[first:], written to a file as a NumPy array
                                  float32 [len(tokens) - first, V]: {}

Every worker has `answer`; the others where the engine can. What an engine prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

METHODS = ("answer", "batch", "logits")


def serve(make: Callable[..., Any]) -> None:
    """Make the engine from the settings and answer until stdin ends."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        engine = make(**json.loads(sys.argv[1]))
    except Exception as error:
        _say(channel, _error(error))
        sys.exit(1)
    _say(channel, {"does": [name for name in METHODS if hasattr(engine, name)]})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(engine, request.pop("do"))(**request)
        except Exception as error:
            reply = _error(error)
        _say(channel, reply)


def _say(channel: Any, record: dict[str, Any]) -> None:
    channel.write(json.dumps(record) + "\n")
    channel.flush()


def _error(error: Exception) -> dict[str, str]:
    traceback.print_exc()  # to the log
    lines = str(error).strip().splitlines() or [""]
    return {"error": f"{type(error).__name__}: {lines[0]}"[:300]}
