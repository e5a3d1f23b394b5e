"""docs/cli.md says what --help says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_of_commands_is_current() -> None:
    spec = importlib.util.spec_from_file_location("write_cli", DOCS / "write_cli.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == writer.page(), "run `make docs`"
