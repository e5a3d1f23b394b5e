"""From what was measured to the results: rows, the table for people, and who is fastest."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from benchmarks.peers.contest import Entry, plain_of
from paceline.bench.figures import bootstrap_interval

ENGINE = "Paceline"
AS_GOOD = 2.0
"""A rival whose law is at most so many times as far from float32 arithmetic as ours counts as a rival to the
fastest mode; one that cannot say counts too."""

Row = dict[str, Any]


def rows(entries: Sequence[Entry], prefill_tokens: int) -> list[Row]:
    """One row per entry: an error, or figures.

    tokens_per_second          of whole answers, reading the prompt included
    ratio_to_paceline          median over prompts of plain Paceline's time on the model's own weights by this
                               one's; ratio_low and ratio_high bound its 95 % bootstrap interval; above 1 is
                               faster than plain Paceline; total_ratio compares the sums
    decode_tokens_per_second, first_token_seconds    after and up to the first token; null where an engine
                               does not say when that came
    different_outputs          answers that are not the same engine's plain ones with the same weights; null
                               where it has none
    """
    finished = [entry for entry in entries if entry.error is None]
    own = plain_of(finished, ENGINE, None)
    return [_row(entry, own, finished, prefill_tokens) for entry in entries]


def _row(entry: Entry, own: Entry | None, finished: Sequence[Entry], prefill_tokens: int) -> Row:
    contender = entry.contender
    row: Row = {
        "engine": contender.engine,
        "version": contender.version,
        "weights": contender.weights,
        "mode": contender.mode,
        "setting": entry.setting or None,
        "tokens_per_second": None,
        "ratio_to_paceline": None,
        "kl": entry.kl,
        "top1_agreement": entry.top1,
        "trials": entry.trials,
        "remarks": entry.remarks,
        "error": entry.error,
    }
    if entry.error is not None:
        return row
    answers = entry.answers
    seconds = np.array([answer["seconds"] for answer in answers])
    row["tokens_per_second"] = sum(len(answer["tokens"]) for answer in answers) / float(seconds.sum())
    if own is not None:
        plain = np.array([answer["seconds"] for answer in own.answers])
        row["ratio_to_paceline"] = float(np.median(plain / seconds))
        row["ratio_low"], row["ratio_high"] = bootstrap_interval(plain / seconds)
        row["total_ratio"] = float(plain.sum() / seconds.sum())
    first = [answer["first_s"] for answer in answers]
    known = None not in first and len(answers[0]["tokens"]) > 1
    row["first_token_seconds"] = median(first) if known else None
    row["decode_tokens_per_second"] = (
        sum(len(answer["tokens"]) - 1 for answer in answers) / (float(seconds.sum()) - sum(first))
        if known
        else None
    )
    row["prefill_tokens_per_second"] = prefill_tokens / entry.prefill_s if entry.prefill_s else None
    row["batches"] = entry.batches
    same = plain_of(finished, contender.engine, contender.weights)
    row["different_outputs"] = same and sum(
        a["tokens"] != b["tokens"] for a, b in zip(answers, same.answers, strict=True)
    )
    return row


def summary(entries: Sequence[Entry], results: Sequence[Row]) -> dict[str, Any] | None:
    """The fastest Paceline row on the model's own weights beside the fastest rival as good (AS_GOOD); None if
    one of them is missing. Fastest is over all prompts together."""
    pairs = [(entry, row) for entry, row in zip(entries, results, strict=True) if row["error"] is None]
    ours = [pair for pair in pairs if pair[1]["engine"] == ENGINE]
    ours = [pair for pair in ours if pair[1]["weights"] == ours[0][1]["weights"]]
    kl = ours[0][1]["kl"] if ours else None
    rivals = [
        pair
        for pair in pairs
        if pair[1]["engine"] != ENGINE
        and (kl is None or pair[1]["kl"] is None or pair[1]["kl"] <= AS_GOOD * kl)
    ]
    if not ours or not rivals:
        return None
    (best, own), (peer, rival) = (
        max(some, key=lambda pair: pair[1]["tokens_per_second"]) for some in (ours, rivals)
    )
    ratios = np.array([b["seconds"] / a["seconds"] for a, b in zip(best.answers, peer.answers, strict=True)])
    low, high = bootstrap_interval(ratios)
    named = ("engine", "version", "weights", "mode", "setting")
    return {
        "paceline": {name: own[name] for name in named},
        "rival": {name: rival[name] for name in named},
        "ratio": float(np.median(ratios)),
        "ratio_low": low,
        "ratio_high": high,
        "total_ratio": own["tokens_per_second"] / rival["tokens_per_second"],
    }


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    where = report["machine"]
    lines = [
        f"{report['model']}, {report['prompts']} prompts, {report['tokens']} tokens each, greedy",
        f"{where['cpu']}, {where['threads']} threads",
        "",
        f"{'':44}{'tokens/s':>9}{'ratio':>7}{'95 %':>14}{'decode':>8}{'prefill':>9}"
        f"{'8 streams':>11}{'16':>7}{'KL':>9}",
    ]
    for row in report["results"]:
        name = " ".join(filter(None, (row["engine"], row["version"], row["weights"], row["mode"])))
        if row["error"] is not None:
            lines.append(f"{name:44} {row['error']}")
            continue
        interval = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}" if row["ratio_to_paceline"] else ""
        lines.append(
            f"{name[:43]:44}{row['tokens_per_second']:9.1f}{_shown(row['ratio_to_paceline'], '.2f'):>7}"
            f"{interval:>14}{_shown(row['decode_tokens_per_second'], '.1f'):>8}"
            f"{_shown(row['prefill_tokens_per_second'], '.0f'):>9}"
            f"{_shown(row['batches'].get('8'), '.0f'):>11}{_shown(row['batches'].get('16'), '.0f'):>7}"
            f"{_shown(row['kl'], '.4f'):>9}"
        )
    if best := report["summary"]:
        lines += [
            "",
            f"Paceline {best['paceline']['mode']} is {best['ratio']:.2f} times as fast "
            f"({best['ratio_low']:.2f} to {best['ratio_high']:.2f}) as "
            f"{best['rival']['engine']} {best['rival']['weights']} {best['rival']['mode']},",
            "the fastest rival whose law is as close to float32",
        ]
    lines += ["", "tokens/s: of whole answers. ratio: to plain Paceline, per prompt, above 1 is faster."]
    return "\n".join(lines)


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
