"""Charts as inline SVG, in the colors of the page that contains them.

Legend: N examples, C classes.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from lm_research.common.rounding import ceil_div

_BINS = 10
_SIZE, _LEFT, _TOP, _BOTTOM = 300, 50, 10, 40


def _svg(width: float, height: float, content: str, title: str) -> str:
    head = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">'
    return f"{head}<title>{html.escape(title)}</title>{content}</svg>"


def confusion(counts_CC: np.ndarray, labels: Sequence[str]) -> str:
    """Draw a confusion matrix; the color of a cell is its fraction of the true class.

    Args:
      counts_CC: number of examples for each true (row) and predicted (column) class.
      labels: names of the classes.
    """
    cell, count = 56, len(labels)
    left, top = 16 + 7 * min(20, max(map(len, labels))), 24
    fraction_CC = counts_CC / np.maximum(1, counts_CC.sum(1, keepdims=True))
    short = [html.escape(name if len(name) <= 20 else name[:19] + "…") for name in labels]
    parts = []
    for i in range(count):
        y = top + i * cell
        parts.append(f'<text x="{left - 8}" y="{y + cell / 2 + 4}" text-anchor="end">{short[i]}</text>')
        name = short[i] if len(labels[i]) <= 8 else html.escape(labels[i][:7]) + "…"
        parts.append(f'<text x="{left + (i + 0.5) * cell}" y="{top - 8}" text-anchor="middle">{name}</text>')
        for j in range(count):
            x = left + j * cell
            fill = f'style="fill:rgba(var(--blue),{0.75 * fraction_CC[i, j]:.3f})"'
            parts.append(f'<rect class="axis" {fill} x="{x}" y="{y}" width="{cell}" height="{cell}"/>')
            parts.append(
                f'<text x="{x + cell / 2}" y="{y + cell / 2 + 4}" text-anchor="middle">{counts_CC[i, j]:,}</text>'
            )
    return _svg(left + count * cell + 8, top + count * cell + 8, "".join(parts), "Confusion matrix")


def _frame(x_name: str, y_name: str, x: tuple[float, float], y: tuple[float, float]) -> str:
    """Draw axes with their names and limits."""
    bottom, right = _TOP + _SIZE, _LEFT + _SIZE
    return (
        f'<rect class="axis" x="{_LEFT}" y="{_TOP}" width="{_SIZE}" height="{_SIZE}"/>'
        f'<text class="soft" x="{_LEFT}" y="{bottom + 16}" text-anchor="middle">{x[0]:.3g}</text>'
        f'<text class="soft" x="{right}" y="{bottom + 16}" text-anchor="end">{x[1]:.3g}</text>'
        f'<text class="soft" x="{_LEFT - 6}" y="{bottom}" text-anchor="end">{y[0]:.3g}</text>'
        f'<text class="soft" x="{_LEFT - 6}" y="{_TOP + 10}" text-anchor="end">{y[1]:.3g}</text>'
        f'<text x="{_LEFT + _SIZE / 2}" y="{bottom + 32}" text-anchor="middle">{x_name}</text>'
        f'<text x="14" y="{_TOP + _SIZE / 2}" text-anchor="middle" transform="rotate(-90 14 {_TOP + _SIZE / 2})">{y_name}</text>'
    )


def _to_pixels(x: float, y: float) -> tuple[float, float]:
    """Map a point of the unit square to coordinates of the chart."""
    return _LEFT + _SIZE * x, _TOP + _SIZE * (1 - y)


def _chart(content: str, title: str) -> str:
    return _svg(_LEFT + _SIZE + 16, _TOP + _SIZE + _BOTTOM, content, title)


def calibration(confidence_N: np.ndarray, correct_N: np.ndarray) -> str:
    """Draw a reliability diagram: accuracy over mean confidence in ten equal bins, with the fraction of examples as bars."""
    bin_N = np.minimum((confidence_N * _BINS).astype(int), _BINS - 1)
    count = np.bincount(bin_N, minlength=_BINS)
    (x0, y0), (x1, y1) = _to_pixels(0, 0), _to_pixels(1, 1)
    parts = [
        _frame("confidence", "accuracy", (0, 1), (0, 1)),
        f'<line class="axis" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}"/>',
    ]
    for number in np.flatnonzero(count):
        fraction = count[number] / len(bin_N)
        x, y = _to_pixels(number / _BINS, fraction)
        parts.append(
            f'<rect style="fill:rgba(var(--blue),.25)" x="{x + 1:.1f}" y="{y:.1f}" width="{_SIZE / _BINS - 2:.1f}" height="{_SIZE * fraction:.1f}"/>'
        )
    for number in np.flatnonzero(count):
        in_bin_N = bin_N == number
        confidence, accuracy = confidence_N[in_bin_N].mean(), correct_N[in_bin_N].mean()
        x, y = _to_pixels(confidence, accuracy)
        title = f"{count[number]:,} records: confidence {confidence:.3f}, accuracy {accuracy:.3f}"
        parts.append(f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{title}</title></circle>')
    return _chart("".join(parts), "Calibration")


def scatter(true_N: np.ndarray, predicted_N: np.ndarray, max_points: int = 2000) -> str:
    """Draw predicted over true values on equal scales, thinned to `max_points` examples."""
    step = ceil_div(len(true_N), max_points)
    low, high = float(min(true_N.min(), predicted_N.min())), float(max(true_N.max(), predicted_N.max()))

    def unit(x: float) -> float:
        return (x - low) / (high - low or 1.0)

    (x0, y0), (x1, y1) = _to_pixels(0, 0), _to_pixels(1, 1)
    parts = [
        _frame("true", "predicted", (low, high), (low, high)),
        f'<line class="axis" x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}"/>',
    ]
    for true, predicted in zip(true_N[::step], predicted_N[::step], strict=True):
        x, y = _to_pixels(unit(true), unit(predicted))
        parts.append(f'<circle class="mark" fill-opacity=".5" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
    return _chart("".join(parts), "Predicted over true values")


def histogram(values_N: np.ndarray, bins: int = 30) -> str:
    """Draw a histogram of differences of log-probability [nats], with a line at zero."""
    low, high = min(0.0, float(values_N.min())), max(0.0, float(values_N.max()))
    high = high if high > low else low + 1.0
    counts, edges = np.histogram(values_N, bins, (low, high))
    highest = counts.max()
    parts = [_frame("nats", "records", (low, high), (0, highest))]
    for count, left in zip(counts, edges[:-1], strict=True):
        x, y = _to_pixels((left - low) / (high - low), count / highest)
        parts.append(
            f'<rect class="mark" x="{x:.1f}" y="{y:.1f}" width="{_SIZE / bins - 1:.1f}" height="{_SIZE * count / highest:.1f}"/>'
        )
    x, _ = _to_pixels(-low / (high - low), 0)
    parts.append(
        f'<line stroke="currentColor" stroke-dasharray="4 3" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_TOP + _SIZE}"/>'
    )
    return _chart("".join(parts), "Histogram")
