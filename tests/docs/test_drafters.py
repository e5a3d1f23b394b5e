"""Every drafter has its page, and the options listed there are the real ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paceline.drafters import names, options

PAGES = Path(__file__).parents[2] / "docs" / "drafters"
HEADINGS = [
    "What it proposes",
    "When it helps",
    "When it hurts",
    "Why it stays exact",
    "Options",
    "Example",
    "Reference",
]


def listed(page: str) -> dict[str, str]:
    """{option: default}, from a page's table of options."""
    section = page.partition("\n## Options\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", section, re.MULTILINE))


def test_every_drafter_has_a_page_and_every_page_a_drafter() -> None:
    assert sorted(page.stem for page in PAGES.glob("*.md")) == names()


@pytest.mark.parametrize("name", names())
def test_a_page_has_the_usual_headings(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}: ")
    assert re.findall("^## (.*)$", page, re.MULTILINE) == HEADINGS
    assert all(part.strip() for part in re.split("^## .*$", page, flags=re.MULTILINE)[1:])


@pytest.mark.parametrize("name", names())
def test_a_page_lists_the_real_options(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert listed(page) == {option: str(default) for option, default in options(name).items()}
    assert f"drafter {name}" in page or name in page.partition("## Example")[2]


def test_an_option_that_a_page_leaves_out_would_be_found() -> None:
    page = (PAGES / "ngram.md").read_text(encoding="utf-8")
    assert "longest" not in listed(re.sub(r"^\| `longest`.*\n", "", page, flags=re.MULTILINE))
