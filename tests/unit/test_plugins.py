"""Parts are found by their file's name, and what users type is read or refused."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from paceline import drafters, plugins, rules
from paceline.core import Promise
from paceline.errors import ConfigError
from paceline.plugins import Plugins
from paceline.verify import Outcome, Row, rule


@pytest.fixture
def part(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """A package with one part whose options are of every kind."""
    folder = tmp_path / "some_parts"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "_helper.py").write_text("raise RuntimeError")
    (folder / "mill.py").write_text(
        "def build(info, *, stones=2, speed=1.5, wet=False, name='old'):\n    return stones\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return Plugins("engine", "some_parts", "build")


def test_files_are_parts_and_those_with_an_underscore_are_not(part: Plugins) -> None:
    assert part.names() == ["mill"]
    assert part.find("mill")(None, stones=3) == 3
    assert part.options("mill") == {"stones": 2, "speed": 1.5, "wet": False, "name": "old"}


@pytest.mark.parametrize(
    ("spec", "chosen"),
    [
        ("mill", {}),
        ("mill:", {}),
        ("mill:stones=4", {"stones": 4}),
        ("mill:stones=4,speed=2,", {"stones": 4, "speed": 2.0}),
        ("mill:wet=TRUE,name=new=er", {"wet": True, "name": "new=er"}),
        ("mill:wet=false", {"wet": False}),
    ],
)
def test_options_are_read_as_their_defaults_are(part: Plugins, spec: str, chosen: dict[str, object]) -> None:
    name, found = part.parse(spec)
    assert (name, found) == ("mill", chosen)
    assert [type(value) for value in found.values()] == [type(value) for value in chosen.values()]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mull", "there is no engine 'mull'; there are mill"),
        ("_helper", "there is no engine '_helper'; there are mill"),
        ("mill:sand=1", "engine mill has no option 'sand'; it has stones, speed, wet, name"),
        ("mill:stones=two", "mill:stones must be a whole number, got 'two'"),
        ("mill:stones=2.5", "mill:stones must be a whole number, got '2.5'"),
        ("mill:speed=fast", "mill:speed must be a number, got 'fast'"),
        ("mill:wet=1", "mill:wet must be true or false, got '1'"),
        ("mill:stones", "mill:stones must be a whole number, got ''"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_can(part: Plugins, spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as info:
        part.parse(spec)
    assert str(info.value) == message


def test_a_part_without_options_says_so() -> None:
    with pytest.raises(ConfigError, match="rule match has no option 'x'; it has none at all"):
        rules.load("match:x=1")


@rule(Promise.LAW)
def borrowed(row: Row) -> Outcome:
    return [], 0


def test_other_packages_add_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint("foreign", f"{__name__}:borrowed", group)] if group == "paceline.rules" else []

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    monkeypatch.setattr(EntryPoint, "load", lambda self: borrowed)
    assert "foreign" in rules.names()
    assert rules.load("foreign") == borrowed.with_options()
    assert "foreign" not in drafters.names()


def test_every_exact_rule_is_offered_where_a_lossy_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="lossy") as info:
        rules.load("typical")
    offered = str(info.value).rsplit("take one of ", 1)[1].split(", ")
    promises = {name: rules.load(name, allow_lossy=True).promise for name in rules.names()}
    assert offered == [name for name, promise in promises.items() if promise is not Promise.LOSSY]
