"""The tables of the pages are made from result files."""

from __future__ import annotations

from typing import Any

from benchmarks import tables

MACHINE = {"cpu": "A Processor", "usable_cores": 2, "isa": "avx2", "threads": 2, "system": "Linux-6.1"}
ENTRY = {
    "prompts": 24,
    "tokens_per_second": 300.4,
    "decode_tokens_per_second": 320.4,
    "tau": 1.5,
    "acceptance_rate": 0.4,
    "share_of_decode_time": {"target": 0.95, "draft": 0.02, "other": 0.03},
    "ratio": 1.31,
    "ratio_low": 1.2,
    "ratio_high": 1.4,
    "total_ratio": 1.28,
    "different_outputs": 0,
}
RATIO = {"ratio": 1.3, "ratio_low": 1.2, "ratio_high": 1.4, "different_outputs": 0}


STEP = {
    "machine": MACHINE,
    "context": 256,
    "milliseconds": {"1": 2.0, "8": 3.0},
    "ratios": {"1": 1.0, "8": 1.5},
    "stages": {"1": {"qkv": 0.5}, "8": {"qkv": 0.75}},
    "floor_ms": 1.5,
    "weight_bytes": 96e6,
    "bandwidth_gb_per_s": 60.0,
}
SPEED = {
    "machine": MACHINE,
    "model": "m",
    "title": "M",
    "prompts": 24,
    "temperature": 0.0,
    "max_tokens": 128,
    "plain": ENTRY,
    "drafters": {"suffix": {**ENTRY, "by_category": {"chat": ENTRY, "code": {**ENTRY, "prompts": 2}}}},
}


def row(engine: str, mode: str | None, **values: Any) -> dict[str, Any]:
    standard = {
        "engine": engine,
        "version": "1",
        "weights": "Q4_1",
        "mode": mode,
        "setting": None,
        "tokens_per_second": 100.0,
        "ratio_to_paceline": 0.5,
        "ratio_low": 0.4,
        "ratio_high": 0.6,
        "first_token_seconds": None,
        "decode_tokens_per_second": None,
        "prefill_tokens_per_second": 2000.0,
        "batches": {"8": 900.0},
        "kl": 0.003,
        "top1_agreement": None,
        "trials": {},
        "remarks": [],
        "error": None,
    }
    return {**standard, **values}


RIVAL = row(
    "llama.cpp", "plain", trials={"flash attention on": 90.0, "off": "crashed"}, remarks=["8 streams: no"]
)
ABSENT = row("FlashSpec", None, error="no a|b", weights=None)
PEERS = {
    "machine": MACHINE,
    "versions": {"python": "3.11", "numpy": "2.4"},
    "title": "M",
    "prompts": 24,
    "tokens": 128,
    "summary": {
        "paceline": row("Paceline", "suffix"),
        "rival": RIVAL,
        "ratio": 3.1,
        "ratio_low": 2.9,
        "ratio_high": 3.3,
        "total_ratio": 3.2,
    },
    "results": [
        row(
            "Paceline", "plain", tokens_per_second=200.0, ratio_to_paceline=1.0, ratio_low=1.0, ratio_high=1.0
        ),
        row("Paceline", "suffix", tokens_per_second=310.4, first_token_seconds=0.02),
        RIVAL,
        row("llama.cpp", "prompt lookup", tokens_per_second=90.0),
        ABSENT,
    ],
}
PASSES = [(256, 1, 1, 10.0), (256, 1, 8, 12.0), (256, 2, 1, 11.0), (2048, 1, 1, 14.0), (2048, 1, 8, 16.0)]
SCALE = {
    "machine": MACHINE,
    "contexts": [256, 2048],
    "rows": [1, 8],
    "batches": [1, 2],
    "models": [
        {
            "parameters": 1.2e9,
            "weights": "Q4_1",
            "weight_bytes": 800e6,
            "bandwidth_gb_per_s": 100.0,
            "floor_ms": 8.0,
            "passes": [dict(zip(("context", "batch", "rows", "ms"), one, strict=True)) for one in PASSES],
            "cache_tokens": 2304,
            "cache_bytes": 70e6,
            "resident_before_bytes": 40e6,
            "resident_bytes": 930e6,
        }
    ],
}


def well_formed(text: str) -> None:
    for block in text.split("\n\n"):
        widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, block


def test_the_tables_of_the_readme_are_well_formed_and_name_the_machine() -> None:
    text = tables.readme(STEP, SPEED, PEERS)
    assert text.startswith("On A Processor, 2 cores, avx2, 2 threads")
    assert "| suffix | 300 | 1.31 (1.20 to 1.40) | 1.28 | 1.50 | 40% | 5.0% |" in text
    assert "| milliseconds | 2.00 | 3.00 |" in text
    assert "| Paceline 1 | Q4_1 | suffix | 310 | 0.50 (0.40 to 0.60) | 0.0030 |" in text
    assert "Paceline suffix is 3.10 times as fast (2.90 to 3.30; 3.20 over all" in text
    assert "| llama.cpp 1 | Q4_1 | plain |" in text
    assert "prompt lookup |" not in text  # slower than plain
    well_formed(text)


def test_the_table_of_engines_holds_every_row_and_every_failure() -> None:
    text = tables.engines(PEERS)
    assert "| llama.cpp 1 | Q4_1 | prompt lookup | 90 |" in text
    assert "| FlashSpec 1 | all | all | not measured: no a/b |" in text
    assert "- llama.cpp Q4_1 plain: flash attention on 90; off: crashed" in text
    assert "- llama.cpp Q4_1 plain, not measured: 8 streams: no" in text
    well_formed(text)


def test_the_tables_of_passes_and_of_larger_models_are_well_formed() -> None:
    text = tables.growth(SCALE)
    assert "| 1.20 | Q4_1 | 800 | 100.0 | 8.00 | 10.00 | 1.25 | 1.20 | 11.00 |" in text
    assert "| 1.20 | Q4_1 | 10.0 | 12.0 | 14.0 | 16.0 |" in text
    assert "| 1.20 | Q4_1 | 930 | 40 | 800 | 70 | 2304 |" in text
    well_formed(text)
    assert "| qkv | 0.50 | 0.75 |" in tables.passes(STEP)
    well_formed(tables.passes(STEP))


def test_the_table_of_streams_has_a_row_for_each_way() -> None:
    own = {
        "requests": 40,
        "tokens_per_second": 250.4,
        "first_p50_s": 0.05,
        "first_p99_s": 0.2,
        "between_p50_s": 0.004,
        "between_p99_s": 0.01,
    }
    level = {"streams": 2, **RATIO, "plain": own, "drafted": own, "llama-server": own}
    serving = {
        "machine": MACHINE,
        "model": "m",
        "drafter": "auto",
        "max_tokens": 96,
        "llama_server": "version 1",
        "levels": [level, {**level, "streams": 4}],
    }
    text = tables.streams(serving)
    assert "| 2 | plain | 40 | 250 |  | 50 | 200 | 4.0 | 10.0 |" in text
    assert "| 4 | auto | 40 | 250 | 1.30 (1.20 to 1.40) | 50 | 200 | 4.0 | 10.0 |" in text
    assert "| 4 | llama-server | 40 | 250 |  | 50 | 200 | 4.0 | 10.0 |" in text
    well_formed(text)


def test_every_part_has_its_marks_once() -> None:
    for page, mark, _, _ in tables.PARTS:
        text = (tables.ROOT / page).read_text(encoding="utf-8")
        assert text.count(f"<!-- {mark} -->\n") == text.count(f"<!-- /{mark} -->") == 1


def test_the_pages_say_what_the_results_say() -> None:
    for page, text in tables.pages().items():
        assert page.read_text(encoding="utf-8") == text, "run `python -m benchmarks.tables`"
