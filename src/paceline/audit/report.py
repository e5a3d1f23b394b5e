"""An audit's report in words and tables, for a terminal. `page` makes an HTML page of the same."""

from __future__ import annotations

from typing import Any

NOTES_IDENTITY = (
    "different: answers that are not plain decoding's (tokens, text, how they ended), which must be 0.",
    "Every prompt is answered alone and among others.",
)
NOTES_LAW = (
    "e-value: evidence against the target's law, which fails at {limit:,.0f}; however often one looks, an",
    "exact engine ever comes so far with probability {alpha:g}, all pairs together. caught: the smallest",
    "total variation, between the shares of the test's bins, that so many tokens would have shown in 95 of",
    "100 runs.",
)
NOTES_SERVER = (
    "The log-probabilities that the server states are taken for the law. What shows is whether its tokens",
    "come from what it states: not whether that is what the model says, nor a bias among tokens that it",
    "does not list.",
)


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    return "\n".join(_server(report) if report["audit"] == "server" else _engine(report))


def _engine(report: dict[str, Any]) -> list[str]:
    plain, where = report["plain"], report["machine"]
    lines = [f"{report['title']}, {report['prompts']} prompts, {say_settings(report['settings'])}"]
    lines += [f"{where['cpu']}, {where['isa']}, threads: {where['threads']}", ""]
    lines.append(say_plain(plain))
    identities = [one for one in report["audits"] if one["identity"]["answers"]]
    if identities:
        lines += [
            "",
            f"{'identity':50}{'answers':>8}{'different':>11}{'drafted':>9}{'accepted':>10}{'rejected':>10}",
        ]
        lines += [
            f"{_pair(one)}{one['identity']['answers']:>8,}{one['identity']['different']:>11,}{_drafts(one['identity'])}"
            for one in identities
        ]
        lines += ["", *NOTES_IDENTITY]
    laws = [one for one in report["audits"] if one["law"]]
    if laws:
        lines += ["", f"{'law':50}{'tokens':>8}{'e-value':>9}{'caught':>8}"
                  f"{'drafted':>9}{'accepted':>10}{'rejected':>10}"]  # fmt: skip
        lines += [
            f"{_pair(one)}{one['law']['tokens']:>8,}{say_e(one['law']['largest_log10_e']):>9}"
            f"{say_caught(one['law']):>8}{_drafts(one['law'])}"
            for one in laws
        ]
        lines += ["", *notes_law(report, laws[0]["law"])]
    for one in report["audits"]:
        if one["identity"]["differences"]:
            lines += [
                "",
                f"{one['rule']} with {one['drafter']}, first difference",
                *difference(one["identity"]["differences"][0]),
            ]
    if report["skipped"]:
        lines += ["", "Pairs that do not fit together:"]
        lines += [f"  {one['why']}" for one in report["skipped"]]
    return [*lines, "", *verdict(report)]


def _server(report: dict[str, Any]) -> list[str]:
    law = report["law"]
    return [
        f"{report['model']} at {report['url']}, {report['prompts']} prompts, "
        f"{say_settings(report['settings'])}",
        "",
        f"tokens    {law['tokens']:,} in {report['answers']:,} answers",
        f"left out  {report['skipped_tokens']:,}: halves of characters, which look alike",
        f"e-value   {say_e(law['largest_log10_e'])}, limit {1 / law['alpha']:,.0f}",
        f"caught    {say_caught(law)}, the smallest total variation that would have shown",
        "",
        *NOTES_SERVER,
        "",
        *verdict(report),
    ]


def notes_law(report: dict[str, Any], law: dict[str, Any]) -> list[str]:
    """What the columns of the law's table mean."""
    return [line.format(limit=1 / law["alpha"], alpha=report["alpha"]) for line in NOTES_LAW]


def verdict(report: dict[str, Any]) -> list[str]:
    """The last lines: the verdict, and why."""
    lossy = sorted({one["rule"] for one in report.get("audits", ()) if one["promise"] == "lossy"})
    lines = [f"lossy: {', '.join(lossy)} promises nothing and is expected to fail"] if lossy else []
    return [*lines, *report["reasons"], f"Verdict: {report['verdict']}"]


def say_plain(plain: dict[str, Any]) -> str:
    """The check of plain decoding on one line."""
    if plain["error"]:
        return f"plain decoding: {plain['error']}"
    return (
        f"plain decoding: {plain['answers']:,} answers, {plain['tokens']:,} tokens; "
        f"{plain['wrong']} answers are not the reference's"
    )


def say_settings(settings: list[dict[str, Any]]) -> str:
    """The settings, or how many there are."""
    if len(settings) > 1:
        return f"{len(settings)} settings in turn"
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings[0].items())


def say_e(log10_e: float | None) -> str:
    """An e-value; null stands for one that is infinite."""
    if log10_e is None:
        return "infinite"
    return f"{10**log10_e:.2f}" if log10_e < 4 else f"1e+{log10_e:.0f}"


def say_caught(law: dict[str, Any]) -> str:
    """The smallest total variation that would have been caught."""
    return "nothing" if law["smallest_caught"] is None else f"{law['smallest_caught']:.3f}"


def difference(one: dict[str, Any]) -> list[str]:
    """A difference between two answers, in words."""
    head = f"  prompt {one['prompt']}, seed {one['seed']}, {one['run']}: "
    if one["kind"] != "token":
        return [f"{head}{one['kind']} {one['plain']!r} became {one['speculative']!r}"]
    plain, other = (repr(piece) for piece in one["texts"])
    return [
        f"{head}position {one['position']}, token {one['plain']} ({plain}) became "
        f"{one['speculative']} ({other})",
        f"  in the referee's reckoning {_gap(one['gap'])} apart; its first token {one['referee']} leads by "
        f"{_gap(one['top_two'])}",
    ]


def _gap(value: float | None) -> str:
    """Null stands for a token that is impossible."""
    return "infinitely far" if value is None else f"{value:.3g}"


def _pair(one: dict[str, Any]) -> str:
    return f"{one['rule'][:11]:12}{one['drafter'][:37]:38}"


def _drafts(counts: dict[str, Any]) -> str:
    return f"{counts['drafted']:>9,}{counts['accepted']:>10,}{counts['rejected']:>10,}"
