"""docs/grafana.json is current, and asks only for figures that the server has."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from paceline.results import Load
from paceline.serve.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs"


def names() -> set[str]:
    """All metrics of a server with one model."""
    load = Load(1, 1, 1, 1, 1, 1, 1, {"suffix": {"raised": 1}}, frozenset())
    page, _ = Metrics().page({"m": (load, 1)}, 1)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", page.decode(), re.MULTILINE))
    made = {name + "_bucket" for name, kind in kinds.items() if kind == "histogram"}
    return (
        made
        | {name.removesuffix("_total") + "_total" for name, kind in kinds.items() if kind == "counter"}
        | {name for name, kind in kinds.items() if kind == "gauge"}
    )


def test_the_dashboard_is_current_and_asks_for_what_there_is() -> None:
    spec = importlib.util.spec_from_file_location("write_dashboard", DOCS / "write_dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    kept = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
    assert kept == writer.dashboard(), "run `make docs`"
    asked = set(re.findall(r"paceline:\w+", json.dumps(kept)))
    assert len(asked) > 15
    assert asked <= names()


def test_the_page_names_figures_that_there_are() -> None:
    page = (DOCS / "serving.md").read_text(encoding="utf-8").partition("## Figures and logs")[2]
    named = re.findall(r"`([a-z0-9_]+(?:_total|_seconds|_perc|_running|_waiting))`", page)
    assert len(named) > 15
    for name in named:
        assert {f"paceline:{name}", f"paceline:{name}_bucket"} & names(), name
