"""Writes the measured tables of README.md from the files in benchmarks/results/: see `make results`.

    python benchmarks/readme_table.py [FOLDER]

Takes what `paceline bench step`, `paceline bench speed` and benchmarks/peers/llama_cpp.py print with --json:
step.json, speed.json and llama_cpp.json. Prints the tables as well.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START, END = "<!-- results -->\n", "<!-- /results -->"

Report = dict[str, Any]


def tables(step: Report, speed: Report, peer: Report) -> str:
    """The part of the README between its marks."""
    where = speed["machine"]
    return "\n\n".join(
        (
            f"On {where['cpu']}, {where['usable_cores']} cores, {where['isa']}, {where['threads']} threads, "
            f"{where['system'].split('-')[0]}, with {speed['model']} ({speed['title']}). Ratios compare "
            "within one run; above 1 is faster.",
            _speed(speed),
            _step(step),
            _peer(peer),
        )
    )


def _speed(report: Report) -> str:
    different = sum(entry["different_outputs"] for entry in report["drafters"].values())
    sampled = "greedy" if report["temperature"] == 0 else f"temperature {report['temperature']:g}"
    lines = [
        f"{report['prompts']} prompts, {sampled}, {report['max_tokens']} tokens at most; "
        f"outputs that differ from plain decoding's: {different}",
        "",
        "| drafter | tokens/s | times as fast as plain, median (95 %) | all prompts together | τ | accepted "
        "| outside the target pass |",
        "|---|---|---|---|---|---|---|",
        f"| plain | {report['plain']['tokens_per_second']:.0f} | 1 | 1 | 1 | | {_outside(report['plain'])} |",
    ]
    for name, entry in report["drafters"].items():
        lines.append(
            f"| {name} | {entry['tokens_per_second']:.0f} "
            f"| {entry['ratio']:.2f} ({entry['ratio_low']:.2f} to {entry['ratio_high']:.2f}) "
            f"| {entry['total_ratio']:.2f} | {entry['tau']:.2f} | {entry['acceptance_rate']:.0%} "
            f"| {_outside(entry)} |"
        )
    categories = list(next(iter(report["drafters"].values()))["by_category"])
    lines += [
        "",
        f"| times as fast, by category | {' | '.join(categories)} |",
        "|---" * (len(categories) + 1) + "|",
    ]
    for name, entry in report["drafters"].items():
        cells = (_cell(entry["by_category"][category]) for category in categories)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "In brackets: too few prompts to tell, or the interval includes 1."]
    return "\n".join(lines)


def _cell(entry: Report) -> str:
    """The ratio; in brackets where it is neither a speed-up nor a loss for sure."""
    return f"{entry['ratio']:.2f}" if entry["verdict"] in ("faster", "slower") else f"({entry['ratio']:.2f})"


def _outside(entry: Report) -> str:
    return f"{entry['share_of_decode_time']['draft'] + entry['share_of_decode_time']['other']:.1%}"


def _step(report: Report) -> str:
    rows = list(report["milliseconds"])
    milliseconds = (f"{report['milliseconds'][n]:.2f}" for n in rows)
    ratios = (f"{report['ratios'][n]:.2f}" for n in rows)
    lines = [
        f"One target pass over n tokens after {report['context']} tokens of context, all of them scored; "
        f"reading the weights alone takes {report['floor_ms']:.2f} ms "
        f"({report['weight_bytes'] / 1e6:.0f} MB at {report['bandwidth_gb_per_s']:.1f} GB/s):",
        "",
        f"| n | {' | '.join(rows)} |",
        "|---" * (len(rows) + 1) + "|",
        f"| milliseconds | {' | '.join(milliseconds)} |",
        f"| in passes over one | {' | '.join(ratios)} |",
    ]
    return "\n".join(lines)


def _peer(report: Report) -> str:
    own, peer = report["paceline"], report["llama_cpp"]
    lines = [
        f"Plain greedy decoding, {report['prompts']} prompts, {report['tokens']} tokens each, the same file, "
        f"in the same run; Paceline is {report['ratio']:.2f} times as fast ({report['ratio_low']:.2f} to "
        f"{report['ratio_high']:.2f}):",
        "",
        "| engine | tokens/s after the first | tokens/s of whole answers |",
        "|---|---|---|",
    ]
    for name, entry in (("Paceline", own), (f"llama.cpp (llama-cpp-python {peer['version']})", peer)):
        lines.append(
            f"| {name} | {entry['decode_tokens_per_second']:.0f} | {entry['tokens_per_second']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results"
    step, speed, peer = (
        json.loads((folder / f"{name}.json").read_text().splitlines()[-1])
        for name in ("step", "speed", "llama_cpp")
    )
    text = tables(step, speed, peer)
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{START}{text}\n{END}{after}", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
