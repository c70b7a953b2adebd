"""index.html of an evaluation: scores and the model's errors, in one file without scripts or network access."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm_research.common.disk import write_atomically
from lm_research.evaluation import charts
from lm_research.evaluation.runner import EvalJob
from lm_research.evaluation.scorers import (
    MinimalPairScorer,
    MultiLabelScorer,
    RegressionScorer,
    Scorer,
    SingleLabelScorer,
    TagScorer,
)

_NUM_WORST = 20  # examples and confusions listed
_MAX_CLASSES = 12  # of a confusion matrix; with more, the most frequent confusions are listed
_MAX_CHARACTERS = 600  # of a text

_STYLE = """
:root{color-scheme:light dark;--ink:#1d2126;--soft:#5b6470;--line:#d8dde3;--paper:#fff;--card:#f6f8fa;--blue:31,111,190;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#9aa4b0;--line:#363d46;--paper:#14171b;--card:#1d2228;--blue:96,165,240;--bad:#ff8a80}}
*{box-sizing:border-box}body{margin:0 auto;max-width:60rem;padding:1rem;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem}h2{font-size:1.25rem;margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1rem}h3{font-size:1rem;margin:1.5rem 0 .4rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem}th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
td.n{text-align:right;font-variant-numeric:tabular-nums}p,li{color:var(--soft)}.record{background:var(--card);border-radius:.4rem;padding:.6rem .8rem;margin:.5rem 0;overflow-wrap:anywhere;white-space:pre-wrap}
.record small{color:var(--soft);display:block}.wrong{color:var(--bad);font-weight:600}svg{max-width:100%;height:auto;display:block}
svg text{fill:var(--ink);font:12px system-ui,sans-serif}svg .soft{fill:var(--soft)}svg .axis{stroke:var(--line);fill:none}svg .mark{fill:rgb(var(--blue))}
"""


def write(job: EvalJob, results: Mapping[str, Any], scorers: Mapping[str, Sequence[Scorer]]) -> None:
    """Write index.html; if there are several models, the listed errors are those of the first one."""
    models = "".join(f"<li>{html.escape(str(model))}</li>" for model in job.models)
    parts = [f"<h1>Evaluation</h1><p>Models:</p><ul>{models}</ul>{_overview(results)}"]
    parts += [_task(entry.name, results["tasks"][entry.name], scorers[entry.name][0]) for entry in job.entries]
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Evaluation</title><style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )
    write_atomically(job.output / "index.html", text)


def _overview(results: Mapping[str, Any]) -> str:
    rows = []
    for name, task in results["tasks"].items():
        found = task["scores"][task["metric"]]
        link = f'<a href="#{html.escape(name)}">{html.escape(name)}</a>'
        rows.append([link, html.escape(task["metric"]), _value(found), f"{task['records']:,}"])
    return _table(["task", "metric", "value", "records"], rows)


def _value(found: Mapping[str, Any]) -> str:
    std = "" if found["std"] is None else f" &plusmn; {found['std']:.4f}"
    between = "" if found["low"] is None else f" ({found['low']:.4f} to {found['high']:.4f})"
    return f"{found['mean']:.4f}{std}{between}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _task(name: str, task: Mapping[str, Any], scorer: Scorer) -> str:
    rows = [[html.escape(metric), _value(found)] for metric, found in task["scores"].items()]
    return (
        f'<h2 id="{html.escape(name)}">{html.escape(name)}</h2><p>{html.escape(task["task"])}, {task["records"]:,} records</p>'
        + _table(["metric", "value"], rows)
        + _charts(scorer)
        + _worst(scorer)
    )


def _charts(scorer: Scorer) -> str:
    given = scorer.scored.columns
    match scorer:
        case SingleLabelScorer():
            return _confusion(
                Counter(zip(given["references"].tolist(), given["predictions"].tolist(), strict=True)), scorer.labels
            ) + (
                "<h3>Calibration</h3><p>Accuracy by confidence. On the line the model is well calibrated; below it, the model is "
                f"overconfident. Bars: fraction of the records.</p>{charts.calibration(scorer.probs_NC.max(1), scorer.means['accuracy'])}"
            )
        case TagScorer():
            index = {tag: i for i, tag in enumerate(scorer.labels)}
            pairs = Counter(
                (index[true], index[predicted])
                for row in scorer.rows
                for true, predicted in zip(row["label"], row["prediction"], strict=True)
            )
            return _confusion(pairs, scorer.labels)
        case RegressionScorer():
            points = charts.scatter(given["references"].ravel(), given["predictions"].ravel())
            return f"<h3>Predicted over true values</h3>{points}"
        case MinimalPairScorer():
            return (
                "<h3>Log-probability of the acceptable sentence minus the other's [nats]</h3><p>Left of the line the model prefers the "
                "other sentence.</p>" + charts.histogram(-scorer.error_N)
            )
        case MultiLabelScorer():
            chosen_NC, labels_NC = given["predictions"], given["references"]
            missed, added = (labels_NC & ~chosen_NC).sum(0), (chosen_NC & ~labels_NC).sum(0)
            rows = [
                [html.escape(label), f"{labels_NC[:, i].sum():,}", f"{missed[i]:,}", f"{added[i]:,}"]
                for i, label in enumerate(scorer.labels)
            ]
            return "<h3>Errors by label</h3>" + _table(["label", "records", "missed", "wrongly predicted"], rows)
    return ""


def _confusion(pairs: Mapping[tuple[int, int], int], labels: Sequence[str]) -> str:
    """Render counts of (true, predicted) classes as a matrix or, with many classes, as a list of the most frequent errors."""
    if len(labels) > _MAX_CLASSES:
        errors = sorted((-n, true, predicted) for (true, predicted), n in pairs.items() if true != predicted)
        rows = [[html.escape(labels[a]), html.escape(labels[b]), f"{-n:,}"] for n, a, b in errors[:_NUM_WORST]]
        return "<h3>Most frequent confusions</h3>" + _table(["true", "predicted", "times"], rows)
    counts_CC = np.zeros((len(labels), len(labels)), int)
    for pair, count in pairs.items():
        counts_CC[pair] = count
    return f"<h3>Confusion matrix</h3><p>Rows: true; columns: predicted.</p>{charts.confusion(counts_CC, labels)}"


def _worst(scorer: Scorer) -> str:
    order = np.argsort(-scorer.error_N, kind="stable")[:_NUM_WORST]
    return "<h3>Worst records</h3>" + "".join(_record(scorer.rows[number]) for number in order.tolist())


def _record(row: Mapping[str, Any]) -> str:
    def clean(value: object) -> str:
        return html.escape(str(value) if len(str(value)) <= _MAX_CHARACTERS else str(value)[:_MAX_CHARACTERS] + " ...")

    if "good" in row:
        body = f"{clean(row['good'])} <small>{row['good_nats']:.2f} nats</small>{clean(row['bad'])} <small>{row['bad_nats']:.2f} nats</small>"
    elif "nats" in row:
        body = f"{clean(row['text'])}<small>{-row['nats'] / row['bytes']:.3f} nats per byte, {row['tokens']:,} tokens</small>"
    elif "rank" in row:
        body = f"{clean(row['text'])}<small>matching text found at rank {row['rank']:,}, similarity {row['similarity']:.3f}</small>"
    elif "answers" in row:
        true = " / ".join(dict.fromkeys(row["answers"])) or "no answer"
        wrong = ' class="wrong"' if row.get("exact_match", 1.0) < 1.0 else ""
        predicted = row["prediction"] or "no answer"
        body = (
            f"{clean(row['text'])}<small>true: {clean(true)}; <span{wrong}>predicted: {clean(predicted)}</span></small>"
        )
    elif isinstance(row.get("label"), list) and len(row["label"]) == len(row["text"].split(" ")) == len(
        row["prediction"]
    ):
        words = zip(row["text"].split(" "), row["label"], row["prediction"], strict=True)
        body = " ".join(
            clean(word)
            if true == predicted
            else f'<span class="wrong">{clean(word)} [{clean(predicted)}, true: {clean(true)}]</span>'
            for word, true, predicted in words
        )
    else:
        probability = f" ({row['probability']:.1%})" if "probability" in row else ""
        true = next(row[name] for name in ("label", "target", "answer") if name in row)
        wrong = ' class="wrong"' if true != row["prediction"] else ""
        body = f"{clean(row['text'])}<small>true: {clean(true)}; <span{wrong}>predicted: {clean(row['prediction'])}{probability}</span></small>"
    return f'<div class="record">{body}<small>{clean(row["where"])}</small></div>'
