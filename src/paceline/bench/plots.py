"""Plots of the reports of `bench speed` and `bench sweep`, drawn by matplotlib (the extra `paceline[plots]`).

Every function that draws takes entries, as the reports hold them, and is silent about what it lacks data for:
a plot with nothing in it is not made.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from paceline.bench.figures import FASTER, SLOWER, TOO_FEW
from paceline.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (9.5, 4.2)
FAINT = 0.35
Entry = dict[str, Any]


class Plot(NamedTuple):
    """A drawing and what it shows."""

    title: str
    figure: Figure


def check() -> None:
    """Raises ConfigError, saying how to install it, if matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401 - this is how to know
    except ImportError:
        raise ConfigError("plots need matplotlib; install it with: pip install 'paceline[plots]'") from None


def draw(report: dict[str, Any]) -> dict[str, Plot]:
    """{file name without its end: plot} of a report. Needs matplotlib."""
    if "drafters" in report:
        entries = [{"drafter": name, "nodes": None, **entry} for name, entry in report["drafters"].items()]
        wanted: dict[str, tuple[str, Callable[[Axes, Sequence[Entry]], bool]]] = {
            "category": ("Speed-up by category", _category)
        }
    else:
        entries = report["results"]
        wanted = {
            "nodes": ("Speed-up against node budget, with what arithmetic expects", _nodes),
            "position": ("Acceptance by position in the draft", _position),
            "lengths": ("Drafted tokens kept per pass", _lengths),
            "category": ("Speed-up by category", _category),
            "context": ("Speed-up against context length", _swept("context", "tokens of prompt at least")),
            "batch": ("Speed-up against batch", _swept("batch", "requests at a time")),
            "temperature": ("Speed-up against temperature", _swept("temperature", "temperature")),
            "time": ("Where the time of a step goes", _time(report["plain"])),
        }
    plots = {}
    for name, (title, function) in wanted.items():
        from matplotlib.figure import Figure

        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        if function(axes, entries):
            axes.set_title(title)
            axes.grid(axis="y", alpha=0.3)
            if axes.get_legend_handles_labels()[0]:
                figure.legend(loc="outside right upper", fontsize="small")
            plots[name] = Plot(title, figure)
    return plots


def png(figure: Figure) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def svg(figure: Figure) -> str:
    """The picture as an SVG element to stand in a page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _first(entries: Sequence[Entry]) -> list[Entry]:
    """The entries of the first temperature, batch and context that were swept."""
    return [entry for entry in entries if _setting(entry) == _setting(entries[0])]


def _setting(entry: Entry) -> tuple[Any, ...]:
    return tuple(entry.get(key) for key in ("temperature", "batch", "context"))


def _by_drafter(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry["drafter"], []).append(entry)
    return found


def _best(entries: Sequence[Entry]) -> list[Entry]:
    """Of each drafter the entry with the best ratio."""
    return [max(own, key=lambda entry: float(entry["ratio"])) for own in _by_drafter(entries).values()]


def _label(entry: Entry) -> str:
    if entry["nodes"] is None:
        return str(entry["drafter"])
    return f"{entry['drafter']}, {entry['nodes']} node{'' if entry['nodes'] == 1 else 's'}"


def _bars(own: Sequence[Entry]) -> list[list[float]]:
    return [
        [entry["ratio"] - entry["ratio_low"] for entry in own],
        [entry["ratio_high"] - entry["ratio"] for entry in own],
    ]


def _nodes(axes: Axes, entries: Sequence[Entry]) -> bool:
    for number, (name, own) in enumerate(_by_drafter(_first(entries)).items()):
        nodes, colour = [entry["nodes"] for entry in own], f"C{number}"
        axes.errorbar(
            nodes,
            [entry["ratio"] for entry in own],
            yerr=_bars(own),
            color=colour,
            marker="o",
            capsize=3,
            label=f"{name}: whole answers, 95 % interval",
        )
        decode = [entry["decode_total_ratio"] for entry in own]
        axes.plot(nodes, decode, color=colour, linestyle="--", label=f"{name}: prompts' time left out")
        expected = [entry["theory_ratio"] for entry in own]
        if None not in expected:
            axes.plot(nodes, expected, color=colour, linestyle=":", label=f"{name}: expected of it")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xticks(list(dict.fromkeys(entry["nodes"] for entry in entries)))
    axes.set_xlabel("node budget")
    axes.set_ylabel("times as fast as plain")
    return True


def _position(axes: Axes, entries: Sequence[Entry]) -> bool:
    for entry in _largest(entries):
        kept = entry["acceptance_by_position"]
        axes.plot(range(1, len(kept) + 1), kept, marker="o", label=_label(entry))
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("position, all before it kept")
    axes.set_ylabel("share kept")
    return any(entry["acceptance_by_position"] for entry in entries)


def _lengths(axes: Axes, entries: Sequence[Entry]) -> bool:
    shown = _largest(entries)
    width = 0.8 / len(shown)
    for number, entry in enumerate(shown):
        total = sum(entry["accepted_lengths"].values()) or 1
        lengths = [int(length) for length in entry["accepted_lengths"]]
        shares = [count / total for count in entry["accepted_lengths"].values()]
        axes.bar([length + number * width for length in lengths], shares, width, label=_label(entry))
    axes.set_xlabel("drafted tokens kept in a pass")
    axes.set_ylabel("share of passes")
    return True


def _largest(entries: Sequence[Entry]) -> list[Entry]:
    """Of each drafter the entry with the largest budget, in the first setting."""
    return [max(own, key=lambda entry: int(entry["nodes"])) for own in _by_drafter(_first(entries)).values()]


def _category(axes: Axes, entries: Sequence[Entry]) -> bool:
    shown = _best(_first(entries))
    categories = list(shown[0]["by_category"])
    width = 0.8 / len(shown)
    for number, entry in enumerate(shown):
        parts = [entry["by_category"][name] for name in categories]
        places = [place + number * width for place in range(len(categories))]
        bars = axes.bar(
            places, [part["ratio"] for part in parts], width, color=f"C{number}", label=_label(entry)
        )
        for bar, place, part in zip(bars, places, parts, strict=True):
            bar.set_alpha(1.0 if part["verdict"] in (FASTER, SLOWER) else FAINT)
            if part["verdict"] != TOO_FEW:
                axes.errorbar(place, part["ratio"], yerr=_bars([part]), color="black", capsize=2)
    axes.set_xlabel("faint: the interval includes 1, or too few prompts to tell")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(categories))], categories, rotation=40)
    axes.set_ylabel("times as fast as plain")
    return bool(categories)


def _swept(key: str, words: str) -> Callable[[Axes, Sequence[Entry]], bool]:
    """A plot against one thing that was swept, at the first of the others; a drafter at its best budget."""

    def plot(axes: Axes, entries: Sequence[Entry]) -> bool:
        values = list(dict.fromkeys(entry[key] for entry in entries))
        others = [name for name in ("temperature", "batch", "context") if name != key]
        held = [entry for entry in entries if all(entry[name] == entries[0][name] for name in others)]
        for name in _by_drafter(held):
            own = [
                _best([entry for entry in held if entry["drafter"] == name and entry[key] == value])[0]
                for value in values
            ]
            ratios = [entry["ratio"] for entry in own]
            axes.errorbar(
                values, ratios, yerr=_bars(own), marker="o", capsize=3, label=f"{name}, best budget"
            )
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set_xlabel(words)
        axes.set_ylabel("times as fast as plain")
        return len(values) > 1

    return plot


def _time(plain: Sequence[Entry]) -> Callable[[Axes, Sequence[Entry]], bool]:
    """Bars of a step's stages, plain decoding first."""

    def plot(axes: Axes, entries: Sequence[Entry]) -> bool:
        shown = [("plain", plain[0]), *((_label(entry), entry) for entry in _best(_first(entries)))]
        names = [name for name, _ in shown]
        left = [0.0] * len(shown)
        for stage in dict.fromkeys(stage for _, entry in shown for stage in entry["ms_per_step"]):
            values = [entry["ms_per_step"].get(stage, 0.0) for _, entry in shown]
            axes.barh(names, values, left=left, label=stage)
            left = [before + value for before, value in zip(left, values, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds per step, those that read prompts included")
        return True

    return plot
