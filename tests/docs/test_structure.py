"""docs/structure.md is true: imports keep to its table, and no part or folder is missing."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "paceline"
PAGE = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")


class Import(NamedTuple):
    """`name`: a part of this package or another package; own: which of the two."""

    name: str
    own: bool
    for_types: bool


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    lines = PAGE.partition(f"\n## {heading}")[2].splitlines()
    table = [line for line in lines[: _end(lines)] if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table]


def _end(lines: list[str]) -> int:
    return next((number for number, line in enumerate(lines) if line.startswith("## ")), len(lines))


def names(cell: str) -> set[str]:
    return set(filter(None, cell.split(", ")))


TABLE = {row[0]: tuple(map(names, row[2:])) for row in rows("The package")}


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def parts() -> set[str]:
    return {part_of(file) for file in PACKAGE.rglob("*.py")}


def imports(source: str) -> Iterator[Import]:
    """Everything that a module imports, inside functions too."""
    tree = ast.parse(source)
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            # "from paceline import kernels" imports the part, "from paceline.core import Draft" from it.
            modules = [f"{module}.{alias.name}" if module == "paceline" else module for alias in node.names]
        else:
            continue
        for module in modules:
            top, _, rest = module.partition(".")
            own = top == "paceline"
            yield Import(rest.partition(".")[0] or "__init__" if own else top, own, id(node) in for_types)


@pytest.mark.parametrize("part", sorted(TABLE))
def test_a_part_imports_only_what_the_page_allows(part: str) -> None:
    allowed, types, packages = TABLE[part]
    for file in PACKAGE.rglob("*.py"):
        if part_of(file) != part:
            continue
        for found in imports(file.read_text(encoding="utf-8")):
            if not found.own:
                free = {*sys.stdlib_module_names, *packages}
            elif found.for_types:
                free = allowed | types | {part}
            else:
                free = allowed | {part}
            assert found.name in free, f"{file.relative_to(ROOT)} imports {found.name}"


def test_only_a_few_files_import_pytorch_and_none_of_the_others_imports_them_at_once() -> None:
    extras = {"huggingface_hub", "safetensors", "torch", "transformers"}
    free = {"hf.py", *(file.relative_to(PACKAGE).as_posix() for file in PACKAGE.glob("targets/torch*.py"))}
    free |= {
        f"train/{name}.py"
        for name in (
            "batches",
            "checkpoint",
            "curves",
            "draft_attention",
            "head_loss",
            "loop",
            "losses",
            "optimizer",
            "processes",
            "start",
            "target_layers",
            "teacher",
        )
    }
    architectures = (PACKAGE / "train" / "architectures").glob("*.py")
    free |= {f"train/architectures/{file.name}" for file in architectures if file.name != "__init__.py"}
    for file in PACKAGE.rglob("*.py"):
        name, source = file.relative_to(PACKAGE).as_posix(), file.read_text(encoding="utf-8")
        if name in free:
            continue
        assert not extras & {found.name for found in imports(source) if not found.own}, name
        for line in re.findall(r"^(?:from|import) .*$", source, re.MULTILINE):
            assert not re.search(r"paceline\.(hf|targets\.torch|train\.loop)|paceline import hf", line), name


def test_the_page_has_every_part_and_no_other() -> None:
    assert parts() == set(TABLE)


def test_the_page_allows_no_import_that_nobody_makes() -> None:
    for part, (allowed, types, packages) in TABLE.items():
        found = [
            found
            for file in PACKAGE.rglob("*.py")
            if part_of(file) == part
            for found in imports(file.read_text(encoding="utf-8"))
        ]
        assert allowed <= {one.name for one in found if one.own and not one.for_types}, part
        assert types <= {one.name for one in found if one.own and one.for_types}, part
        assert packages <= {one.name for one in found if not one.own}, part


def test_the_page_has_every_folder_and_no_other() -> None:
    folders = {PACKAGE, *(ROOT / name for name in ("tests", "benchmarks", "docs", ".ci"))}
    for top in tuple(folders):
        # A folder with nothing but results or what Python left behind is no part of the house.
        folders |= {file.parent for file in top.rglob("*") if file.suffix in (".py", ".cpp", ".md")}
    assert {row[0].rstrip("/") for row in rows("Folders")} == {
        folder.relative_to(ROOT).as_posix() for folder in folders
    }


def test_an_import_that_is_not_allowed_would_be_found() -> None:
    source = "from paceline import engine\ndef f():\n    import torch.nn\n"
    assert set(imports(source)) == {Import("engine", True, False), Import("torch", False, False)}
