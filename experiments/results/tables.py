"""The table of results and the page of each row, as Markdown."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.results.row import MEMORY, Figure, Row
from lm_research.common.disk import write_atomically
from lm_research.common.documents import Object, read_json
from lm_research.evaluation.results import markdown

AGREES, DIFFERS, PLANNED = "agrees", "differs", "planned"
HEAD = """# Results

Published results, and what this library finds with the command of each row. Every row has a page with all figures, the commit, the
machine and the reason of any difference. `agrees` means within the tolerance that the page states. Rows that differ or fail stay here,
and `planned` rows have not been run by anyone.

    python -m experiments.results.run --only NAME    # measures a row again and writes this table

The data are in the folder that LM_RESEARCH_PUBLIC_DATA names, by default ../shared/data/public next to the repository. A row is one file
of `rows/`; `row.py` describes its parts.

"""


# Published results that have no row, so that their absence is seen.
WITHOUT_ROW = """
- Fine-tuning on PAWS-X: the public data have its development and test parts, and no English training part.
- TyDiQA-GoldP's development part, whose public files have no answers (glue_tydiqa is scored on a tenth of the training part).
- Fine-tuning beside transformers' Trainer with equal settings, except on the sets of `references/trainer.json`.
- tinyshakespeare with nanoGPT's larger recipe (`configs/tinyshakespeare.py:gpu`, 1.47 nats), which needs a GPU.
- BLiMP and Zorro with BERT, ELECTRA and T5 trained on ten million words, and BabyLM's tracks on their own corpora (`configs/babylm`).
- What pre-training brings on downstream sets with larger encoders and corpora than the quick start's.
- The ranking of optimizers, scaling laws and muP on ten million words. The [studies](../README.md) have them on one book only.
"""


def status(found: Mapping[str, Any] | None) -> str:
    """Return the status of a row from its measurement, None if there is none."""
    if found is None:
        return PLANNED
    if "error" in found:
        return "failed"
    return AGREES if all(Figure(**figure).agrees for figure in found["figures"]) else DIFFERS


def write(folder: pathlib.Path, rows: Mapping[str, Row]) -> None:
    """Write results.md, and the page of each row, from the measurements in `folder`/pages."""
    lines, planned = [], []
    for name, row in rows.items():
        path = folder / "pages" / f"{name}.json"
        found = read_json(path, Object, fix="Measure the row again.") if path.is_file() else None
        write_atomically(folder / "pages" / f"{name}.md", page(name, row, found))
        figures = [Figure(**figure) for figure in found["figures"]] if found else []
        agree = f"{sum(figure.agrees for figure in figures)} of {len(figures)}" if figures else ""
        first = figures[0] if figures else None
        planned += [name] if found is None else []
        lines.append(
            [
                f"[{name}](pages/{name}.md)",
                row.title,
                f"{first.name}: {number(first.ours)}" if first else "",
                number(first.theirs) if first else "",
                first.origin if first else "",
                agree,
                status(found),
            ]
        )
    heads = ["row", "question", "ours (first figure)", "theirs", "theirs is", "figures that agree", "status"]
    write_atomically(folder / "results.md", HEAD + markdown(heads, lines) + not_run(rows, planned) + origins(rows))


def not_run(rows: Mapping[str, Row], planned: Sequence[str]) -> str:
    """Return the section of results that no one has measured: rows, and what has no row."""
    lines = "".join(f"- [{name}](pages/{name}.md): {rows[name].title}\n" for name in planned)
    return f"\n## What no one has run\n\nRows:\n\n{lines or '- none'}\n\nWithout a row:\n{WITHOUT_ROW}"


def origins(rows: Mapping[str, Row]) -> str:
    """Return the section of where published figures were read, by the sources of the rows."""
    text = "".join(f"- [{name}](pages/{name}.md): {row.source}\n" for name, row in rows.items() if MEMORY in row.source)
    return (
        "\n## Published figures from memory\n\nThese were not found in a file, and have to be verified before they are relied on; the pages "
        "mark each figure. All others were read in the named file, or computed from the data by another program.\n\n"
        + (text or "- none\n")
    )


def page(name: str, row: Row, found: Mapping[str, Any] | None) -> str:
    """Return the page of a row."""
    command = row.command or f"python -m experiments.results.run --only {name}"
    text = f"# {row.title}\n\nStatus: {status(found)}.\n\n    {command}\n\nPublished: {row.source}.\n"
    if found is None:
        return text + f"\n{row.why}\n"
    if "error" in found:
        text += f"\nThe command fails: {found['error']}\n"
    if found["figures"]:
        figures = [Figure(**figure) for figure in found["figures"]]
        cells = [
            [
                one.name,
                number(one.ours) + (f" ± {one.interval:.2g}" if one.interval else ""),
                "≥ " * one.at_least + "≤ " * one.at_most + number(one.theirs),
                f"{one.tolerance:.3g}",
                one.origin,
                "yes" if one.agrees else "no",
            ]
            for one in figures
        ]
        text += "\n" + markdown(["figure", "ours", "theirs", "tolerance", "theirs is", "agrees"], cells)
        if any(one.interval for one in figures):
            text += "\n± is half of the 95% interval of the mean over the seeds (Student's t).\n"
    if "curve" in found:
        lines = [[number(value) for value in line] for line in found["curve"]["lines"]]
        text += "\n" + markdown(found["curve"]["heads"], lines)
    seeds = ", ".join(map(str, row.seeds)) or "none"
    text += f"\n{row.why}\n"
    text += (
        f"\nCommit {found['commit']}, {found['date']}; {found['machine']}; {found['seconds']:g} s; seeds: {seeds}.\n"
    )
    return text


def number(value: float) -> str:
    """Format a figure: counts whole, others with up to seven digits."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 1000 else f"{value:.7g}"
