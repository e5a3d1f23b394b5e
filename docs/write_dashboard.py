"""Writes docs/grafana.json, a dashboard of what /metrics has: python docs/write_dashboard.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("grafana.json")
PREFIX = "paceline:"
DRAFTS = "spec_decode_num_drafts_total"
DRAFTED = "spec_decode_num_draft_tokens_total"
ACCEPTED = "spec_decode_num_accepted_tokens_total"


def rate(name: str, by: str = "model_name") -> str:
    """The rate of a counter, as a query."""
    return f'sum by ({by}) (rate({PREFIX}{name}{{model_name=~"$model"}}[$__rate_interval]))'


def quantile(part: float, name: str) -> str:
    """A quantile of a histogram, as a query."""
    return f"histogram_quantile({part}, {rate(name + '_bucket', 'le, model_name')})"


def gauge(name: str) -> str:
    """A gauge, as a query."""
    return f'{PREFIX}{name}{{model_name=~"$model"}}'


PANELS: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "Acceptance rate: accepted of drafted tokens",
        "percentunit",
        {"": f"{rate(ACCEPTED)} / {rate(DRAFTED)}"},
    ),
    ("Tokens per drafted pass", "none", {"": f"1 + {rate(ACCEPTED)} / {rate(DRAFTS)}"}),
    (
        "Accepted tokens by place in the draft, of all drafts",
        "percentunit",
        {
            "place {{position}}": f"{rate('spec_decode_num_accepted_tokens_per_pos_total', 'position')} "
            f"/ scalar(sum({rate(DRAFTS)}))"
        },
    ),
    (
        "Drafted and accepted tokens per second",
        "none",
        {"drafted": rate(DRAFTED), "accepted": rate(ACCEPTED)},
    ),
    (
        "Tokens per second",
        "none",
        {"read": rate("prompt_tokens_total"), "written": rate("generation_tokens_total")},
    ),
    (
        "Time to first token",
        "s",
        {f"p{part * 100:.0f}": quantile(part, "time_to_first_token_seconds") for part in (0.5, 0.99)},
    ),
    (
        "Between tokens",
        "s",
        {f"p{part * 100:.0f}": quantile(part, "inter_token_latency_seconds") for part in (0.5, 0.99)},
    ),
    (
        "Requests",
        "none",
        {"running": gauge("num_requests_running"), "waiting": gauge("num_requests_waiting")},
    ),
    ("Cache in use", "percentunit", {"": gauge("kv_cache_usage_perc")}),
    ("Requests per second by status", "reqps", {"{{status}}": rate("http_requests_total", "status")}),
    (
        "Prompt tokens found in the cache",
        "percentunit",
        {"": f"{rate('prefix_cache_hits_total')} / {rate('prefix_cache_queries_total')}"},
    ),
    (
        "Failures per second",
        "none",
        {
            "drafts, {{drafter}}: {{reason}}": rate("draft_failures_total", "drafter, reason"),
            "preemptions": rate("num_preemptions_total"),
            "engines": rate("engine_restarts_total"),
        },
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana imports it."""
    source = {"type": "prometheus", "uid": "${source}"}
    panels = []
    for number, (title, unit, queries) in enumerate(PANELS):
        panels.append(
            {
                "id": number + 1,
                "type": "timeseries",
                "title": title,
                "datasource": source,
                "gridPos": {"h": 8, "w": 8, "x": number % 3 * 8, "y": number // 3 * 8},
                "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
                "targets": [
                    {
                        "refId": chr(ord("A") + place),
                        "datasource": source,
                        "expr": query,
                        "legendFormat": " ".join(filter(None, [label, "{{model_name}}"])),
                    }
                    for place, (label, query) in enumerate(queries.items())
                ],
            }
        )
    return {
        "title": "Paceline",
        "uid": "paceline",
        "schemaVersion": 39,
        "time": {"from": "now-30m", "to": "now"},
        "refresh": "10s",
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "model",
                    "type": "query",
                    "datasource": source,
                    "query": f"label_values({PREFIX}num_requests_running, model_name)",
                    "multi": True,
                    "includeAll": True,
                },
            ]
        },
        "panels": panels,
    }


if __name__ == "__main__":
    PAGE.write_text(json.dumps(dashboard(), indent=1) + "\n", encoding="utf-8")
