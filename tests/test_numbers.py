"""Numbers that users rely on do not change silently: limits and other constants, and defaults of parameters and fields.

Keys of a config have a golden of their own (goldens/schema.txt). After an intended change of a number or a name, rewrite the golden:

    python tests/test_numbers.py > tests/goldens/numbers.txt
"""

from __future__ import annotations

import ast
import collections
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "goldens" / "numbers.txt"


def written(node: ast.expr | None) -> str:
    """An expression, if it is made of only literals, names and calls and contains a number or truth value; else nothing."""
    inside = list(ast.walk(node)) if node else []
    numbers = [one for one in inside if isinstance(one, ast.Constant) and isinstance(one.value, (int, float))]
    plain = not any(isinstance(one, (ast.Lambda, ast.comprehension, ast.JoinedStr)) for one in inside)
    return ast.unparse(node) if node and numbers and plain else ""


def named(tree: ast.AST) -> Iterator[tuple[str, ast.expr | None]]:
    """Names of constants, fields and parameters of a file, with their defaults."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef)):
            for line in node.body:
                if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                    yield line.targets[0].id, line.value
                elif isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    yield line.target.id, line.value
        elif isinstance(node, (ast.FunctionDef, ast.Lambda)):
            given = node.args
            positional = [*given.posonlyargs, *given.args]
            yield from zip(
                [arg.arg for arg in positional[len(positional) - len(given.defaults) :]], given.defaults, strict=True
            )
            yield from zip([arg.arg for arg in given.kwonlyargs], given.kw_defaults, strict=True)


def numbers() -> str:
    """A line for each name and number with its count, in an order independent of files, so that moving code changes nothing."""
    found = collections.Counter(
        f"{name} = {text}"
        for path in (ROOT / "lm_research").rglob("*.py")
        for name, node in named(ast.parse(path.read_bytes()))
        if (text := written(node)) and not text.startswith("key(")
    )
    return "".join(f"{line}  ({count})\n" if count > 1 else f"{line}\n" for line, count in sorted(found.items()))


def test_numbers_match_the_reviewed_ones() -> None:
    assert numbers() == GOLDEN.read_text(encoding="utf-8")


if __name__ == "__main__":
    print(numbers(), end="")
