"""Reports of `bench speed` and `bench sweep` as files: CSV, PNG plots, one HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paceline.bench import page
from paceline.errors import ConfigError
from paceline.models.cache import write_atomically

COLUMNS = (
    "drafter",
    "nodes",
    "temperature",
    "batch",
    "context",
    "category",
    "prompts",
    "ratio",
    "ratio_low",
    "ratio_high",
    "verdict",
    "total_ratio",
    "decode_total_ratio",
    "theory_ratio",
    "tokens_per_second",
    "decode_tokens_per_second",
    "tau",
    "acceptance_rate",
    "different_outputs",
)


def check(csv_file: Path | None, plots: Path | None, html: Path | None) -> None:
    """Raises ConfigError, before anything is measured, for what could not be written afterwards."""
    for option, path in (("--csv", csv_file), ("--html", html)):
        if path is not None and path.is_dir():
            raise ConfigError(f"{option}: {path} is a folder, expected a file")
    if plots is not None and plots.exists() and not plots.is_dir():
        raise ConfigError(f"--plots: {plots} is a file, expected a folder")
    if plots is not None or html is not None:
        from paceline.bench import plots as drawing

        drawing.check()


def write(
    report: dict[str, Any], text: str, csv_file: Path | None, plots: Path | None, html: Path | None
) -> None:
    """Write what was asked for; text: the table for people. Raises ConfigError if it cannot be written."""
    if csv_file is not None:
        _write(csv_file, table(report).encode())
    if plots is not None or html is not None:
        from paceline.bench import plots as drawing

        drawn = drawing.draw(report)
        if plots is not None:
            for name, plot in drawn.items():
                _write(plots / f"{name}.png", drawing.png(plot.figure))
        if html is not None:
            pictures = [(plot.title, drawing.svg(plot.figure)) for plot in drawn.values()]
            _write(html, page.page(report, text, pictures).encode())


def table(report: dict[str, Any]) -> str:
    """CSV with a head: a line for each drafter (and setting), then one for each of its categories."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(report))
    return text.getvalue()


def rows(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of the CSV."""
    drafters = report.get("drafters")
    if drafters is None:
        entries = report["results"]
    else:
        entries = [
            {"drafter": name, "temperature": report["temperature"], **one} for name, one in drafters.items()
        ]
    for entry in entries:
        yield {**entry, "category": ""}
        keys = ("drafter", "nodes", "temperature", "batch", "context")
        for category, part in entry["by_category"].items():
            yield {**{key: entry.get(key, "") for key in keys}, **part, "category": category}


def _write(path: Path, content: bytes) -> None:
    try:
        with write_atomically(path) as file:
            file.write(content)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
