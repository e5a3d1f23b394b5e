"""Writes the measured tables of README.md and docs/performance.md from benchmarks/results/ (`make results`).

    python -m benchmarks.tables

Takes what `paceline bench step --json`, `paceline bench speed --json` (greedy and at temperature 1),
`paceline bench sweep --json` (over batches), benchmarks/serving.py, benchmarks/peers and benchmarks/scale.py
left there: step.json, speed.json, sampled.json, batches.json, serving.json, peers.json and scale.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paceline.bench.figures import FASTER, SLOWER, verdict

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Report = dict[str, Any]


def readme(step: Report, speed: Report, peers: Report) -> str:
    """The part of the README between its marks."""
    return "\n\n".join(
        (
            f"{_where(speed)}, with {speed['model']} ({speed['title']}). Ratios compare within one run; "
            "above 1 is faster.",
            _speed(speed),
            _step(step),
            _fastest(peers),
        )
    )


def drafters(speed: Report, sampled: Report, batches: Report) -> str:
    """The part of docs/performance.md about drafters and policies."""
    return "\n\n".join((_where(speed) + ".", _speed(speed), _speed(sampled), _batches(batches)))


def streams(serving: Report) -> str:
    """The part of docs/performance.md about the server."""
    different = sum(level["different_outputs"] for level in serving["levels"])
    rival = f"; llama-server {serving['llama_server']}" if serving["llama_server"] else ""
    lines = [
        f"{_where(serving)}; {serving['model']}, drafter {serving['drafter']}, greedy, "
        f"{serving['max_tokens']} tokens at most{rival}. Outputs that differ from plain decoding's: "
        f"{different}.",
        "",
        "| streams | | requests | tokens/s | times as fast as plain, median (95 %) "
        "| first token, ms: p50 | p99 | between chunks, ms: p50 | p99 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for level in serving["levels"]:
        ratio = f"{level['ratio']:.2f} ({level['ratio_low']:.2f} to {level['ratio_high']:.2f})"
        for name, shown in (("plain", "plain"), ("drafted", serving["drafter"]), ("llama-server",) * 2):
            if (own := level.get(name)) is None:
                continue
            times = " | ".join(
                f"{own[time] * 1e3:.{digits}f}"
                for time, digits in (
                    ("first_p50_s", 0),
                    ("first_p99_s", 0),
                    ("between_p50_s", 1),
                    ("between_p99_s", 1),
                )
            )
            lines.append(
                f"| {level['streams']} | {shown} | {own['requests']} | {own['tokens_per_second']:.0f} "
                f"| {ratio if name == 'drafted' else ''} | {times} |"
            )
    return "\n".join(lines)


def engines(peers: Report) -> str:
    """The part of docs/performance.md about other engines."""
    return "\n\n".join(
        (
            f"{_where(peers)}; Python {peers['versions']['python']}, NumPy {peers['versions']['numpy']}. "
            f"{peers['title']}, {peers['prompts']} prompts, {peers['tokens']} tokens each.",
            _peers(peers),
            _summary(peers),
            _trials(peers),
        )
    )


def passes(step: Report) -> str:
    """The part of docs/performance.md about passes of the small model."""
    return "\n\n".join((_where(step) + ".", _step(step), _stages(step)))


def growth(scale: Report) -> str:
    """The part of docs/performance.md about larger models."""
    return "\n\n".join(
        (
            f"{_where(scale)}; random weights, the embedding, which is the output matrix too, in Q8_0.",
            _scale(scale),
            _contexts(scale),
            _memory(scale),
        )
    )


def _where(report: Report) -> str:
    where = report["machine"]
    return (
        f"On {where['cpu']}, {where['usable_cores']} cores, {where['isa']}, {where['threads']} threads, "
        f"{where['system'].split('-')[0]}"
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


def _batches(report: Report) -> str:
    different = sum(one["different_outputs"] for one in report["results"])
    lines = [
        f"Requests at a time, {report['prompts']} prompts of one turn, greedy, {report['max_tokens']} tokens "
        f"at most; outputs that differ from plain decoding's: {different}",
        "",
        "| requests | drafter | tokens/s plain | tokens/s | times as fast as plain, median (95 %) | τ |",
        "|---|---|---|---|---|---|",
    ]
    plain = {one["batch"]: one["tokens_per_second"] for one in report["plain"]}
    for one in report["results"]:
        lines.append(
            f"| {one['batch']} | {one['drafter']} | {plain[one['batch']]:.0f} "
            f"| {one['tokens_per_second']:.0f} "
            f"| {one['ratio']:.2f} ({one['ratio_low']:.2f} to {one['ratio_high']:.2f}) | {one['tau']:.2f} |"
        )
    return "\n".join(lines)


def _cell(entry: Report) -> str:
    """The ratio; in brackets where it is neither a speed-up nor a loss for sure."""
    sure = verdict(entry["ratio_low"], entry["ratio_high"], entry["prompts"]) in (FASTER, SLOWER)
    return f"{entry['ratio']:.2f}" if sure else f"({entry['ratio']:.2f})"


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


def _stages(report: Report) -> str:
    rows = list(report["stages"])
    names = list(report["stages"][rows[0]])
    lines = [
        "Milliseconds of its stages, measured with clocks between them, which cost a little themselves:",
        "",
        f"| stage | {' | '.join(rows)} |",
        "|---" * (len(rows) + 1) + "|",
    ]
    for name in names:
        cells = (f"{report['stages'][n][name]:.2f}" for n in rows)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _fastest(report: Report) -> str:
    """Of every engine and weights the fastest mode, and Paceline's plain rows."""
    best: dict[tuple[str, str], Report] = {}
    for row in report["results"]:
        if row["error"] is None:
            key = (row["engine"], row["weights"])
            if key not in best or row["tokens_per_second"] > best[key]["tokens_per_second"]:
                best[key] = row
    shown = [
        row
        for row in report["results"]
        if any(row is other for other in best.values())
        or (row["error"] is None and (row["engine"], row["mode"]) == ("Paceline", "plain"))
    ]
    lines = [
        f"Greedy decoding beside other engines in one run, {report['prompts']} prompts, {report['tokens']} "
        "tokens each; of every engine and its weights the fastest mode. All modes, batches and what could "
        "not run: [docs/performance.md](docs/performance.md).",
        "",
        "| engine | weights | mode | tokens/s | times plain Paceline, median (95 %) | KL to float32 |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(shown, key=lambda row: -row["tokens_per_second"]):
        lines.append(
            f"| {row['engine']} {row['version']} | {row['weights']} | {row['mode']} "
            f"| {row['tokens_per_second']:.0f} | {_ratio(row)} | {_number(row['kl'], '.4f')} |"
        )
    return "\n".join([*lines, "", _summary(report)])


def _peers(report: Report) -> str:
    lines = [
        "| engine | weights | mode | tokens/s | times plain Paceline, median (95 %) | after the first token "
        "| first token, ms | reading, tokens/s | 8 streams | 16 streams | KL | same likeliest |",
        "|---" * 12 + "|",
    ]
    for row in report["results"]:
        name = f"| {row['engine']} {row['version']} | {row['weights'] or 'all'} | {row['mode'] or 'all'} "
        if row["error"] is not None:
            error = row["error"].replace("|", "/")
            lines.append(f"{name}| not measured: {error} {'| ' * 8}|")
            continue
        first = row["first_token_seconds"]
        lines.append(
            f"{name}| {row['tokens_per_second']:.0f} | {_ratio(row)} "
            f"| {_number(row['decode_tokens_per_second'], '.0f')} "
            f"| {_number(first and first * 1e3, '.0f')} | {_number(row['prefill_tokens_per_second'], '.0f')} "
            f"| {_number(row['batches'].get('8'), '.0f')} | {_number(row['batches'].get('16'), '.0f')} "
            f"| {_number(row['kl'], '.4f')} | {_number(row['top1_agreement'], '.1%')} |"
        )
    return "\n".join(lines)


def _summary(report: Report) -> str:
    best = report["summary"]
    if best is None:
        return "No rival ran."
    own, rival = best["paceline"], best["rival"]
    return (
        f"Paceline {own['mode']} is {best['ratio']:.2f} times as fast ({best['ratio_low']:.2f} to "
        f"{best['ratio_high']:.2f}; {best['total_ratio']:.2f} over all prompts together) as "
        f"{rival['engine']} {rival['weights']} {rival['mode']}, the fastest mode of a rival whose KL is at "
        "most twice ours or unknown."
    )


def _trials(report: Report) -> str:
    lines = ["Settings that were tried, in tokens/s; the fastest took part:", ""]
    for row in report["results"]:
        if row["trials"]:
            tried = (
                f"{setting} {result:.0f}" if isinstance(result, float) else f"{setting}: {result}"
                for setting, result in row["trials"].items()
            )
            lines.append(f"- {row['engine']} {row['weights']} {row['mode']}: {'; '.join(tried)}")
    for row in report["results"]:
        for remark in row["remarks"]:
            lines.append(f"- {row['engine']} {row['weights']} {row['mode']}, not measured: {remark}")
    return "\n".join(lines)


def _scale(report: Report) -> str:
    context, rows = report["contexts"][0], report["rows"]
    lines = [
        f"One sequence after {context} tokens: milliseconds of a pass over one row, the floor, and what n "
        "rows cost in passes over one:",
        "",
        "| billions | weights | MB | GB/s | floor, ms | 1 row, ms | by the floor "
        + "".join(f"| v({n}) " for n in rows if n > 1)
        + "".join(f"| {n} sequences, ms " for n in report["batches"] if n > 1)
        + "|",
        "|---" * (7 + len([n for n in (*rows, *report["batches"]) if n > 1])) + "|",
    ]
    for model in report["models"]:
        own = {one["rows"]: one["ms"] for one in _of(model, context, 1)}
        batches = [one for one in model["passes"] if one["batch"] > 1]
        floor = model["floor_ms"]
        lines.append(
            f"| {model['parameters'] / 1e9:.2f} | {model['weights']} | {model['weight_bytes'] / 1e6:.0f} "
            f"| {_number(model['bandwidth_gb_per_s'], '.1f')} | {_number(floor, '.2f')} | {own[1]:.2f} "
            f"| {_number(floor and own[1] / floor, '.2f')} "
            + "".join(f"| {own[n] / own[1]:.2f} " for n in rows if n > 1)
            + "".join(f"| {one['ms']:.2f} " for one in batches)
            + "|"
        )
    return "\n".join(lines)


def _contexts(report: Report) -> str:
    contexts, rows = report["contexts"], [n for n in report["rows"] if n in (1, 8, 16)]
    head = [f"{n} rows after {context}" for context in contexts for n in rows]
    lines = [
        "Milliseconds as the context grows:",
        "",
        f"| billions | weights | {' | '.join(head)} |",
        "|---" * (2 + len(head)) + "|",
    ]
    for model in report["models"]:
        cells = [
            f"{one['ms']:.1f}" for c in contexts for n in rows for one in _of(model, c, 1) if one["rows"] == n
        ]
        lines.append(f"| {model['parameters'] / 1e9:.2f} | {model['weights']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _memory(report: Report) -> str:
    lines = [
        "Memory in MB: of the process, beside what it must hold:",
        "",
        "| billions | weights | process | before loading | weights | cache | cached tokens |",
        "|---" * 7 + "|",
    ]
    for model in report["models"]:
        numbers = [
            model[name] and model[name] / 1e6
            for name in ("resident_bytes", "resident_before_bytes", "weight_bytes", "cache_bytes")
        ]
        lines.append(
            f"| {model['parameters'] / 1e9:.2f} | {model['weights']} "
            + "".join(f"| {_number(number, '.0f')} " for number in numbers)
            + f"| {model['cache_tokens']} |"
        )
    return "\n".join(lines)


def _of(model: Report, context: int, batch: int) -> list[Report]:
    return [one for one in model["passes"] if (one["context"], one["batch"]) == (context, batch)]


def _ratio(row: Report) -> str:
    ratio = row["ratio_to_paceline"]
    return "" if ratio is None else f"{ratio:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


PARTS = (
    ("README.md", "results", readme, ("step", "speed", "peers")),
    ("docs/performance.md", "drafters", drafters, ("speed", "sampled", "batches")),
    ("docs/performance.md", "serving", streams, ("serving",)),
    ("docs/performance.md", "peers", engines, ("peers",)),
    ("docs/performance.md", "step", passes, ("step",)),
    ("docs/performance.md", "scale", growth, ("scale",)),
)
"""Page, its mark, what writes the part between the marks, and from which results."""


def pages() -> dict[Path, str]:
    """{file: its text as it should be}. A part whose results are not there is left as it is."""
    texts: dict[Path, str] = {}
    for page, mark, write, names in PARTS:
        files = [RESULTS / f"{name}.json" for name in names]
        path = ROOT / page
        text = texts.get(path, path.read_text(encoding="utf-8"))
        if all(file.exists() for file in files):
            text = _between(text, mark, write(*(json.loads(file.read_text()) for file in files)))
        texts[path] = text
    return texts


def _between(page: str, mark: str, text: str) -> str:
    """The page with this text between `<!-- mark -->` and `<!-- /mark -->`."""
    start, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}{text}\n{end}{after}"


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
