"""The table of the README is made from result files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]
MACHINE = {"cpu": "A Processor", "usable_cores": 2, "isa": "avx2", "threads": 2, "system": "Linux-6.1"}
ENTRY = {
    "tokens_per_second": 300.4,
    "decode_tokens_per_second": 320.4,
    "tau": 1.5,
    "acceptance_rate": 0.4,
    "share_of_decode_time": {"target": 0.95, "draft": 0.02, "other": 0.03},
    "ratio": 1.31,
    "ratio_low": 1.2,
    "ratio_high": 1.4,
    "verdict": "faster",
    "total_ratio": 1.28,
    "different_outputs": 0,
}


def test_the_tables_are_well_formed_and_name_the_machine() -> None:
    spec = importlib.util.spec_from_file_location("readme_table", ROOT / "benchmarks" / "readme_table.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    step = {
        "context": 256,
        "milliseconds": {"1": 2.0, "8": 3.0},
        "ratios": {"1": 1.0, "8": 1.5},
        "floor_ms": 1.5,
        "weight_bytes": 96e6,
        "bandwidth_gb_per_s": 60.0,
    }
    speed = {
        "machine": MACHINE,
        "model": "m",
        "title": "M",
        "prompts": 24,
        "temperature": 0.0,
        "max_tokens": 128,
        "plain": ENTRY,
        "drafters": {
            "suffix": {**ENTRY, "by_category": {"chat": ENTRY, "code": {**ENTRY, "verdict": "too few"}}}
        },
    }
    peer = {
        "prompts": 24,
        "tokens": 128,
        "paceline": ENTRY,
        "llama_cpp": {**ENTRY, "version": "0.3.36"},
        "ratio": 2.1,
        "ratio_low": 2.0,
        "ratio_high": 2.2,
    }
    text = script.tables(step, speed, peer)
    assert text.startswith("On A Processor, 2 cores, avx2, 2 threads")
    assert "| suffix | 300 | 1.31 (1.20 to 1.40) | 1.28 | 1.50 | 40% | 5.0% |" in text
    assert "| suffix | 1.31 | (1.31) |" in text
    assert "| milliseconds | 2.00 | 3.00 |" in text
    for block in text.split("\n\n"):
        widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1
