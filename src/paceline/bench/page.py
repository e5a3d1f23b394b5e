"""A report of `bench speed` or `bench sweep` as one HTML page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; margin: 2rem auto; max-width: 64rem }
h1 { font-size: 1.5rem; margin-bottom: 0 }
h2 { font-size: 1.1rem; margin-top: 2rem }
pre { background: #f3f4f6; padding: .8rem; white-space: pre-wrap }
pre.table { white-space: pre; overflow-x: auto; font-size: 12px }
svg { max-width: 100%; height: auto }
"""
DATA = ("plain", "drafters", "results")


def page(report: dict[str, Any], table: str, pictures: Sequence[tuple[str, str]]) -> str:
    """The whole page. table: the report for people; pictures: (title, SVG element)."""
    shown = {key: value for key, value in report.items() if key not in DATA}
    body = [
        "<h1>Paceline bench</h1>",
        f"<p>{escape(report['title'])} on {escape(report['machine']['cpu'])}</p>",
        f'<pre class="table">{escape(table)}</pre>',
        *(f"<h2>{escape(title)}</h2>\n{_apart(svg, number)}" for number, (title, svg) in enumerate(pictures)),
        "<h2>Circumstances</h2>",
        f"<pre>{escape(json.dumps(shown, indent=1, ensure_ascii=False))}</pre>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Paceline bench</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _apart(svg: str, number: int) -> str:
    """The picture with names of its own: in one page, the pictures' parts must not be taken for another's."""
    for before in ('id="', 'href="#', "url(#"):
        svg = svg.replace(before, f"{before}p{number}-")
    return svg
