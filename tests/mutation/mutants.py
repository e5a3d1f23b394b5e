"""Small changes to a module, each of which some test should notice.

A mutant is a module with one operator, constant, condition or statement changed.

Method: mutation analysis; DeMillo, Lipton and Sayward, "Hints on test data selection", 1978.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.mutation.changed import path_of


class Mutant(NamedTuple):
    """One changed module. `change` says what, as "line: before -> after"."""

    module: str
    change: str
    source: str


SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "argmax": "argmin", "minimum": "maximum"}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """All variants of one node; its children stay as they are."""
    match node:
        case ast.Compare():
            for place, operator in enumerate(node.ops):
                if type(operator) in SWAPS:
                    yield _with(node, "ops", _replaced(node.ops, place, SWAPS[type(operator)]()))
        case ast.BinOp() | ast.AugAssign() | ast.BoolOp():
            if type(node.op) in SWAPS:
                yield _with(node, "op", SWAPS[type(node.op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(node.value + 1)
        case ast.Name() if node.id in NAMES:
            yield ast.Name(NAMES[node.id], node.ctx)
        case ast.Attribute() if node.attr in NAMES:
            yield _with(node, "attr", NAMES[node.attr])
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.If() | ast.While() | ast.IfExp():
            yield _with(node, "test", ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.Assign | ast.AugAssign | ast.Expr | ast.Delete) and not _is_text(node):
        yield ast.Pass()


def mutants(module: str, functions: Sequence[str] | None = None) -> list[Mutant]:
    """All mutants of a module, or of some of its functions and classes."""
    path = path_of(module)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    places = list(_places(tree, functions))
    for parent, field, index, node in places:
        for changed in changes(node):
            before = ast.unparse(node).splitlines()[0]
            after = ast.unparse(ast.fix_missing_locations(ast.copy_location(changed, node))).splitlines()[0]
            _put(parent, field, index, changed)
            found.append(Mutant(module, f"{path.name}:{node.lineno}: {before} -> {after}", ast.unparse(tree)))
            _put(parent, field, index, node)
    return found


Place = tuple[ast.AST, str, int | None, ast.AST]


def _places(tree: ast.Module, functions: Sequence[str] | None) -> Iterator[Place]:
    """Every node that holds code: not in annotations, defaults of types, decorators or messages."""
    for top in tree.body:
        if isinstance(top, ast.FunctionDef | ast.ClassDef) and (functions is None or top.name in functions):
            yield from _inside(top)


def _inside(node: ast.AST) -> Iterator[Place]:
    skipped = {"annotation", "returns", "decorator_list", "bases", "keywords"}
    if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AnnAssign | ast.arg):
        skipped = set()
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
        return
    for field, value in ast.iter_fields(node):
        if field in skipped:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else ((None, value),):
            if isinstance(child, ast.expr | ast.stmt | ast.arguments | ast.comprehension | ast.match_case):
                if isinstance(child, ast.expr | ast.stmt):
                    yield node, field, index, child
                yield from _inside(child)


def _is_text(node: ast.AST) -> bool:
    """A docstring, or a statement that only names what is there."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__"


def _with(node: ast.AST, field: str, value: object) -> ast.AST:
    changed = copy.copy(node)
    setattr(changed, field, value)
    return changed


def _replaced(values: Sequence[ast.AST], place: int, value: ast.AST) -> list[ast.AST]:
    return [*values[:place], value, *values[place + 1 :]]


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node
