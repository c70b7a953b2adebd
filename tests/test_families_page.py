"""docs/families.md and the README list the families that the package has.

`python tests/test_families_page.py` writes the first table of docs/families.md again.
"""

from __future__ import annotations

import pathlib
import re

import lm_research
from lm_research.models.families import FAMILIES, FamilyInfo

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/families.md"
HEADER = "| Family | What it is |"


def own() -> list[FamilyInfo]:
    """The package's families, without those of plug-ins that other tests have registered."""
    return [one for one in lm_research.families() if type(FAMILIES[one.name]).__module__.startswith("lm_research.")]


def rows() -> list[str]:
    """The table's rows, one for each family."""
    return [
        f"| `{one.name}` | {one.description} | {', '.join(one.model_types) or '-'} | {', '.join(one.heads) or '-'} "
        f"| {', '.join(one.sizes) or '-'} | {one.reference or '-'} |"
        for one in own()
    ]


def split(page: str) -> tuple[list[str], list[str], list[str]]:
    """The lines up to the table's rows, the rows, and the lines after them."""
    lines = page.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(HEADER)) + 2
    end = lines.index("", start)
    return lines[:start], lines[start:end], lines[end:]


def test_the_page_has_a_row_for_each_family() -> None:
    written = split(PAGE.read_text(encoding="utf-8"))[1]
    assert written == rows(), "run python tests/test_families_page.py"


def test_the_readme_names_each_family() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("## Model families")[2].partition("\n## ")[0]
    assert {one.name for one in own()} <= set(re.findall(r"`([\w.]+)`", table))


if __name__ == "__main__":
    before, _, after = split(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text("\n".join([*before, *rows(), *after]) + "\n", encoding="utf-8")
