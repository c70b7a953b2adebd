"""HTML page of a report, which includes its data, its styles and its chart library (plotly.js, MIT)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from lm_research.errors import ConfigError
from lm_research.reporting import contents
from lm_research.reporting.contents import ReportData

_HERE = Path(__file__).parent


def render(data: ReportData) -> str:
    """Return the HTML of a report.

    Raises:
      ConfigError: the chart library is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigError("The charts of a report need plotly: pip install 'lm_research[report]'.") from error
    runs, studies = data.runs, data.studies
    single = [run.name for run in runs if not any(study.directory in run.directory.parents for study in studies)]
    law = contents.scaling_law(data.all_runs)
    different, same = contents.config_table(runs)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": number, "share": lambda value: f"{value:.1%}"}
    return environment.get_template("page.html").render(
        title=title([*data.titles, *single]),
        runs=runs,
        studies=list(zip(data.titles, studies, strict=True)),
        notes=[*data.notes, *(note for run in runs for note in run.notes)],
        finals=contents.final_table(runs),
        spreads=contents.spreads(data.all_runs),
        different=different,
        same=same,
        law=law,
        samples={run.name: spaced(run.samples, contents.MAX_SAMPLES) for run in runs if run.samples},
        data=contents.to_json(contents.chart_data(runs, studies, law)),
        plotly=get_plotlyjs(),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        script=(_HERE / "page.js").read_text(encoding="utf-8"),
    )


def title(names: Sequence[str], max_names: int = 4) -> str:
    """Join the first names, and count the rest."""
    return ", ".join(names[:max_names]) + (f" and {len(names) - max_names} more" if len(names) > max_names else "")


def number(value: Any) -> str:
    """Format a value for people: five digits of a float, an integer with thousands separators, anything else unchanged."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value)


def spaced(items: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` evenly spaced items, including the first and the last."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
