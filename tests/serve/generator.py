"""A scripted session with the load generator AIPerf, of version 0.13 or newer.

It asks, eight at a time, reads the streams and counts; what it counted is held to what was asked.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

REQUESTS = 48
STREAMS = 8
TOKENS = 20

# AIPerf wants a tokenizer, and has none that needs no network: the printable characters, a token each.
CHARACTERS = {chr(code): code - 32 for code in range(32, 127)}
TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
    "decoder": {"type": "Fuse"},
    "model": {"type": "WordLevel", "vocab": CHARACTERS, "unk_token": " "},
}


def use(program: Path, url: str) -> None:
    """All requests are answered, and whole. program: AIPerf's own. Raises AssertionError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prompts = folder / "prompts.jsonl"
        prompts.write_text("".join(f'{{"text": "Number {number}, please"}}\n' for number in range(REQUESTS)))
        (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        done = subprocess.run(
            [
                *(program, "profile", "--model", "table", "--url", url, "--tokenizer", folder),
                *("--endpoint-type", "chat", "--streaming", "--use-server-token-count"),
                *("--input-file", prompts, "--custom-dataset-type", "single_turn"),
                *("--concurrency", str(STREAMS), "--request-count", str(REQUESTS)),
                *("--extra-inputs", f"max_tokens:{TOKENS}", "--extra-inputs", "ignore_eos:true"),
                *("--ui", "none", "--no-gpu-telemetry", "--artifact-dir", folder / "out"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        figures = json.loads((folder / "out" / "profile_export_aiperf.json").read_text())
    assert figures["is_complete"]
    assert figures["error_summary"] == []
    assert figures["request_count"]["avg"] == REQUESTS
    length = figures["output_sequence_length"]
    assert (length["min"], length["max"], length["sum"]) == (TOKENS, TOKENS, TOKENS * REQUESTS)
    assert figures["pooled_spec_decode_acceptance_histogram"], "it found no figures of speculation"
