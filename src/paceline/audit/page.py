"""An audit's report as one HTML page that needs nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from paceline.audit import report as words

WIDTH, HEIGHT, LEFT, BOTTOM = 760, 300, 56, 34
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
LOWEST = -4.0

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; margin: 2rem auto; max-width: 64rem }
h1 { font-size: 1.5rem; margin-bottom: 0 }
h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
td, th { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e5e7eb }
th { border-bottom: 2px solid #d1d5db }
td.t, th.t { text-align: left }
.note, .what { color: #6b7280 }
.verdict { padding: .3rem .9rem; border-radius: .4rem; color: white; font-weight: 600 }
.held { background: #047857 }
.failed { background: #b91c1c }
.could { background: #b45309 }
pre { background: #f3f4f6; padding: .8rem; white-space: pre-wrap }
svg { max-width: 100%; height: auto }
"""


def page(report: dict[str, Any]) -> str:
    """The whole page."""
    verdict = report["verdict"]
    body = [
        "<h1>Paceline audit</h1>",
        f'<p class="what">{escape(_what(report))}</p>',
        f'<p><span class="verdict {verdict.split()[0]}">{escape(verdict)}</span></p>',
    ]
    if report["reasons"]:
        body.append(f"<ul>{''.join(f'<li>{escape(reason)}</li>' for reason in report['reasons'])}</ul>")
    body += _server(report) if report["audit"] == "server" else _engine(report)
    shown = {key: value for key, value in report.items() if key not in ("audits", "law")}
    body += [
        "<h2>Circumstances</h2>",
        f"<pre>{escape(json.dumps(shown, indent=1, ensure_ascii=False))}</pre>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Paceline audit: '
        f"{escape(verdict)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _what(report: dict[str, Any]) -> str:
    title = report.get("title") or f"{report['model']} at {report['url']}"
    return f"{title}, {report['prompts']} prompts, {words.say_settings(report['settings'])}"


def _engine(report: dict[str, Any]) -> list[str]:
    audits = report["audits"]
    body = [f"<p>{escape(words.say_plain(report['plain']))}</p>"]
    body += ["<h2>Pairs</h2>", _table(("rule", "promise", "drafter", "verdict"), [
        (one["rule"], one["promise"], one["drafter"], one["verdict"]) for one in audits], 4)]  # fmt: skip
    rows = [
        (one["rule"], one["drafter"], *(f"{one['identity'][key]:,}" for key in
         ("answers", "different", "drafted", "accepted", "rejected")))
        for one in audits if one["identity"]["answers"]
    ]  # fmt: skip
    if rows:
        head = ("rule", "drafter", "answers", "different", "drafted", "accepted", "rejected")
        body += [
            "<h2>The same answers as plain decoding</h2>",
            _table(head, rows, 2),
            _note(words.NOTES_IDENTITY),
        ]
    for one in audits:
        if one["identity"]["differences"]:
            lines = [line for found in one["identity"]["differences"] for line in words.difference(found)]
            body.append(f"<h3>{escape(one['rule'])} with {escape(one['drafter'])}: differences</h3>")
            body.append(f"<pre>{escape(chr(10).join(lines))}</pre>")
    laws = [(f"{one['rule']} with {one['drafter']}", one["law"]) for one in audits if one["law"]]
    return body + (_laws(report, laws) if laws else [])


def _server(report: dict[str, Any]) -> list[str]:
    return _laws(report, [(report["model"], report["law"])])


def _laws(report: dict[str, Any], laws: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    rows = [
        (name, f"{law['tokens']:,}", words.say_e(law["largest_log10_e"]), f"{1 / law['alpha']:,.0f}",
         words.say_caught(law), f"{law['impossible']:,}")
        for name, law in laws
    ]  # fmt: skip
    head = ("", "tokens", "e-value", "limit", "caught", "impossible tokens")
    return [
        "<h2>The target's law</h2>",
        _table(head, rows, 1),
        _note(words.notes_law(report, laws[0][1])),
        _plot(laws),
    ]


def _note(lines: Sequence[str]) -> str:
    return f'<p class="note">{escape(" ".join(lines))}</p>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """A table whose first columns, `texts` of them, hold text."""

    def cells(row: Sequence[str], tag: str) -> str:
        kinds = [' class="t"' if column < texts else "" for column in range(len(row))]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    lines = [f"<tr>{cells(row, 'td')}</tr>" for row in rows]
    return f"<table><tr>{cells(head, 'th')}</tr>{''.join(lines)}</table>"


def _plot(laws: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The e-values over the tokens, on a logarithmic scale, with the limit."""
    limit: float = max(-math.log10(law["alpha"]) for _, law in laws)
    values = [value for _, law in laws for _, value in law["curve"] if value is not None]
    top: float = max(limit * 1.3, *values)
    low: float = max(LOWEST, min(-1.0, *values))
    tokens: int = max(1, *(law["tokens"] for _, law in laws))
    right, height = WIDTH - 12, HEIGHT - BOTTOM

    def x(token: float) -> float:
        return LEFT + (right - LEFT) * token / tokens

    def y(value: float) -> float:
        return 12 + (height - 12) * (top - max(low, value)) / (top - low)

    step = max(1, round((top - low) / 6))
    parts = [f'<text x="{LEFT}" y="{HEIGHT - 2}" fill="#6b7280">tokens</text>']
    for power in range(math.ceil(low), math.floor(top) + 1, step):
        parts.append(
            f'<line x1="{LEFT}" x2="{right}" y1="{y(power):.1f}" y2="{y(power):.1f}" stroke="#e5e7eb"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y(power) + 4:.1f}" text-anchor="end">10^{power}</text>')
    for share in (0.25, 0.5, 0.75, 1):
        place = f'x="{x(share * tokens):.0f}" y="{height + 18}" text-anchor="end"'
        parts.append(f"<text {place}>{share * tokens:,.0f}</text>")
    parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y(limit):.1f}" y2="{y(limit):.1f}" stroke="#b91c1c" '
                 f'stroke-dasharray="6 4"/><text x="{LEFT + 8}" y="{y(limit) - 5:.1f}" fill="#b91c1c">'
                 "limit: above it the law does not hold</text>")  # fmt: skip
    for number, (name, law) in enumerate(laws):
        points = " ".join(
            f"{x(token):.1f},{y(top if value is None else value):.1f}" for token, value in law["curve"]
        )
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5">'
                     f"<title>{escape(name)}</title></polyline>")  # fmt: skip
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-size="11" role="img" '
        f'aria-label="e-value over tokens">{"".join(parts)}</svg>{_legend(laws)}'
    )


def _legend(laws: Sequence[tuple[str, dict[str, Any]]]) -> str:
    if len(laws) == 1:
        return ""
    names = (
        f'<span style="color: {COLOURS[number % len(COLOURS)]}">●</span> {escape(name)}'
        for number, (name, _) in enumerate(laws)
    )
    return f'<p class="note">{" &ensp; ".join(names)}</p>'
