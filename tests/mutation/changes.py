"""The small changes that mutation testing makes to Python source."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SWAPPED: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.FloorDiv,), ast.Pow: (ast.Mult,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,), ast.And: (ast.Or,), ast.Or: (ast.And,),
}  # fmt: skip
PAIRS = (
    "min max",
    "any all",
    "floor ceil",
    "argmin argmax",
    "minimum maximum",
    "left right",
    "append extend",
    "ljust rjust",
)
ROOT = Path(__file__).resolve().parents[2]
NAMES = {a: b for pair in PAIRS for a, b in (pair.split(), pair.split()[::-1])}
LEFT_ALONE = {
    "strict",
    "stacklevel",
    "frozen",
    "slots",
    "daemon",
    "exist_ok",
    "parents",
    "encoding",
    "errors",
    "repr",
    "maxsize",
    "kw_only",
}


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Mutated copies of one node."""

    def new():
        return copy.deepcopy(node)

    if isinstance(node, ast.Compare):
        for place, op in enumerate(node.ops):
            for other in SWAPPED[type(op)]:
                (found := new()).ops[place] = other()
                yield found
    elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)):
        for other in SWAPPED.get(type(node.op), ()):
            (found := new()).op = other()
            yield found
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not 0 < node.value < 1e-5:
        steps = (1, -1) if isinstance(node.value, int) else (node.value / 10 or 1.0,)
        yield from (ast.Constant(node.value + step) for step in steps)
    elif isinstance(node, ast.Constant) and node.value in NAMES:
        yield ast.Constant(NAMES[node.value])
    elif isinstance(node, ast.Name) and node.id in NAMES:
        yield ast.Name(NAMES[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        yield ast.Attribute(node.value, NAMES[node.attr])
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Call):
        for place, keyword in enumerate(node.keywords):
            if keyword.arg is not None and keyword.arg not in LEFT_ALONE:
                del (found := new()).keywords[place]
                yield found
        if isinstance(node.func, ast.Name) and node.func.id == "sorted":
            yield ast.Subscript(node, ast.Slice(None, None, ast.UnaryOp(ast.USub(), ast.Constant(1))))
    if isinstance(node, (ast.Raise, ast.AugAssign, ast.Delete)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield ast.Pass()
    elif isinstance(node, (ast.Continue, ast.Break)):
        yield ast.Pass()


def sites(node: ast.AST, function: int = 0) -> Iterator[tuple[ast.AST, int]]:
    """(node, first line of the function around it, 0 for none) of every node that may be changed."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or (name == "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom)) or not isinstance(
                child, ast.AST
            ):
                continue  # texts in messages; positions inside f-strings are unreliable before Python 3.12
            if isinstance(child, ast.keyword) and child.arg in LEFT_ALONE:
                continue
            if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
                continue
            inside = function
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                inside = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
            if hasattr(child, "lineno"):
                yield child, inside
            yield from sites(child, inside)


def mutations(path: Path) -> Iterator[dict[str, Any]]:
    """Each mutation of a file: where, its text before and after, the new source, the function around it."""
    source, name = path.read_bytes(), path.relative_to(ROOT).as_posix()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node, function in sites(ast.parse(source)):
        begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        for changed in changes(node):
            text = ast.unparse(ast.fix_missing_locations(changed))
            text = text if isinstance(node, ast.stmt) else f"({text})"
            line = source.splitlines()[node.lineno - 1].strip().decode()
            yield {"file": name, "line": node.lineno, "column": node.col_offset, "code": line, "old": " ".join(source[begin:end].decode().split()), "new": text,
                   "source": source[:begin] + text.encode() + source[end:], "function": function}  # fmt: skip
