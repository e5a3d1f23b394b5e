"""bench step: what a pass costs."""

from __future__ import annotations

from typing import Any

import pytest

from paceline import kernels
from paceline.bench import step
from paceline.errors import ConfigError


def run(**more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"model": "smollm2-135m", "rows": [8, 2], "context": 40, "threads": 1, **more}
    return step.run(**options, note=lambda text: None)


@pytest.mark.model
def test_a_pass_is_timed_for_every_row_count_beside_the_floor() -> None:
    report = run()
    assert list(report["milliseconds"]) == list(report["ratios"]) == ["2", "8"]
    assert all(0 < low <= high for low, high in report["quartiles"].values())
    assert 50e6 < report["weight_bytes"] < 150e6
    table = step.table(report)
    assert "40 tokens in the cache" in table
    if kernels.compiled is None:
        assert report["floor_ms"] is None
        assert "not measured" in table
    else:
        assert report["floor_ms"] == pytest.approx(
            report["weight_bytes"] / report["bandwidth_gb_per_s"] / 1e6
        )
        assert "no pass takes less" in table
        assert f"one token again and again: {report['steady_ms']:.2f} ms" in table
        assert set(report["stages"]) == {"2", "8"}
        assert sum(report["stages"]["8"].values()) > 0


@pytest.mark.model
def test_rows_beyond_the_context_are_refused() -> None:
    with pytest.raises(ConfigError, match="context 8190 and 8 rows are 8198 tokens"):
        run(context=8190)
