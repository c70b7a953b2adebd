"""Fit of a scaling law to the final losses of runs that differ in size, in data, or in both.

L(N, D) = E + A / N^alpha + B / D^beta, for N parameters and D tokens, the third approach of Hoffmann et al. 2022
(arXiv:2203.15556): a Huber loss on differences of logarithms, minimized from many starting points. The term of a variable
that does not vary among the runs is left out. Intervals come from a bootstrap of residuals, because each size has few runs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from scipy.optimize import OptimizeResult, least_squares

MIN_SIZES = 4
COVERAGE = 0.9
_HUBER = 1e-3  # as in the paper
_SAMENESS = 0.02  # relative difference up to which sizes or amounts of data count as equal
_ALPHAS = (0.01, 3.0)
_LETTERS = {"N": ("A", "alpha"), "D": ("B", "beta")}


@dataclasses.dataclass(frozen=True)
class Law:
    """A fitted law.

    Attributes:
      variables: "N", "D" or both.
      values: E and, for each variable, its factor and its exponent, by name.
      intervals: lower and upper end of the COVERAGE interval of each value.
      residual: root mean square of log(measured / fitted).
      notes: sentences about what the runs do not determine.
    """

    variables: tuple[str, ...]
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    residual: float
    notes: list[str]
    _draws: list[dict[str, float]] = dataclasses.field(repr=False, default_factory=list)

    def predict(self, **amounts: float) -> tuple[float, float, float]:
        """Return (loss, lower end, upper end of its interval) at N=..., D=... ."""
        losses = [_loss(values, self.variables, amounts) for values in self._draws]
        return (_loss(self.values, self.variables, amounts), *_interval(losses))

    def __str__(self) -> str:
        terms = [f"{self.values[f]:.4g} / {v}^{self.values[e]:.3f}" for v in self.variables for f, e in [_LETTERS[v]]]
        return " + ".join([f"L = {self.values['E']:.4g}", *terms])


def fit(points: Sequence[tuple[float, float, float]], draws: int = 200) -> Law | str:
    """Fit the law to runs, or return a sentence about why they do not suffice.

    Args:
      points: (N, D, final loss in nats) of each run; several runs may have one size.
      draws: number of bootstrap samples.
    """
    if any(not (np.isfinite(point).all() and min(point) > 0) for point in points):
        return "No scaling law: a run has no finite, positive size, number of tokens and final loss."
    amounts = {"N": np.array([n for n, _, _ in points], float), "D": np.array([d for _, d, _ in points], float)}
    log_loss = np.log([loss for _, _, loss in points])
    counts = {name: _distinct(values) for name, values in amounts.items()}
    variables = tuple(name for name, count in counts.items() if count > 1)
    words = {"N": "model sizes", "D": "amounts of data"}
    for name in variables:
        if counts[name] < MIN_SIZES:
            return (
                f"No scaling law: E, {_LETTERS[name][0]} and {_LETTERS[name][1]} cannot be determined from {counts[name]} {words[name]}. "
                f"Train at least {MIN_SIZES}, or use only one."
            )
    if not variables:
        return "No scaling law: the runs differ neither in parameters nor in tokens."
    logs = {name: np.log(amounts[name]) for name in variables}
    if len(variables) == 2:
        correlation = abs(np.corrcoef(logs["N"], logs["D"])[0, 1])
        if len(points) < 6 or correlation > 0.98:
            return (
                f"No scaling law: sizes and amounts of data grow together (correlation {correlation:.2f}) or there are fewer "
                "than six runs, so their effects cannot be separated. Vary one while the other is constant."
            )
    best = _minimize(logs, log_loss, _starts(len(variables), log_loss))
    fitted = _log_loss(best, logs)
    residuals = (log_loss - fitted) * np.sqrt(len(points) / (len(points) - len(best)))  # of more runs than numbers
    notes = _unsettled(best, variables, log_loss)
    rng = np.random.default_rng(0)
    drawn = [
        _named(_minimize(logs, fitted + rng.choice(residuals - residuals.mean(), len(points)), [best]), logs)
        for _ in range(draws)
    ]
    values = _named(best, logs)
    intervals = {name: _interval([draw[name] for draw in drawn]) for name in values}
    if not notes and intervals["E"][0] < 0.1 * np.exp(log_loss.min()):
        notes.append(
            "The interval of E reaches almost to zero: the law describes these runs, but does not extrapolate."
        )
    return Law(variables, values, intervals, float(np.sqrt(np.mean((log_loss - fitted) ** 2))), notes, drawn)


def _distinct(values: np.ndarray) -> int:
    ordered = np.sort(values)
    return 1 + int(np.sum(ordered[1:] > ordered[:-1] * (1 + _SAMENESS)))


def _terms(theta: np.ndarray, logs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the logarithms of the law's terms, one row per term.

    Args:
      theta: log E, then for each variable the log of its term at the mean of the variable's logarithm, and its exponent.
      logs: logarithms of the variables, one value per run.
    """
    rows = [np.full(len(next(iter(logs.values()))), theta[0])]
    for index, values in enumerate(logs.values()):
        rows.append(theta[1 + 2 * index] - theta[2 + 2 * index] * (values - values.mean()))
    return np.stack(rows)


def _log_loss(theta: np.ndarray, logs: dict[str, np.ndarray]) -> np.ndarray:
    return np.logaddexp.reduce(_terms(theta, logs), axis=0)


def _slopes(theta: np.ndarray, logs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the derivatives of `_log_loss` by theta: each term's fraction of the loss times the term's derivative."""
    terms = _terms(theta, logs)
    shares = np.exp(terms - np.logaddexp.reduce(terms, axis=0))
    columns = [shares[0]]
    for share, values in zip(shares[1:], logs.values(), strict=True):
        columns += [share, -share * (values - values.mean())]
    return np.stack(columns, axis=1)


def _starts(variables: int, log_loss: np.ndarray) -> list[np.ndarray]:
    shares, alphas = (0.3, 0.8), (0.2, 0.5, 1.0)
    floor, middle = log_loss.min(), log_loss.mean()
    starts = []
    for share, *exponents in itertools.product(shares, *[alphas] * variables):
        factor = middle + np.log((1 - share) / variables)
        starts.append(np.array([floor + np.log(share), *(x for alpha in exponents for x in (factor, alpha))]))
    return starts


def _minimize(logs: dict[str, np.ndarray], log_loss: np.ndarray, starts: Sequence[np.ndarray]) -> np.ndarray:
    """Return the theta with the lowest Huber loss, starting from the three starts with the lowest squared error."""
    lower, upper = _bounds(len(logs), log_loss)

    def solve(start: np.ndarray, loss: str, steps: int) -> OptimizeResult:
        return least_squares(
            lambda theta: _log_loss(theta, logs) - log_loss,
            np.clip(start, np.add(lower, 1e-6), np.subtract(upper, 1e-6)),
            jac=lambda theta: _slopes(theta, logs),
            bounds=(lower, upper),
            loss=loss,
            f_scale=_HUBER,
            x_scale="jac",
            max_nfev=steps,
        )

    if len(starts) > 1:
        starts = [
            found.x for found in sorted((solve(start, "linear", 100) for start in starts), key=lambda f: f.cost)[:3]
        ]
    return min((solve(start, "huber", 200) for start in starts), key=lambda found: found.cost).x


def _bounds(variables: int, log_loss: np.ndarray) -> tuple[list[float], list[float]]:
    top = float(log_loss.max())
    pairs = [(top - 10, top + 2), _ALPHAS] * variables
    pairs = [(top - 10, float(log_loss.min())), *pairs]
    return [low for low, _ in pairs], [high for _, high in pairs]


def _unsettled(theta: np.ndarray, variables: tuple[str, ...], log_loss: np.ndarray) -> list[str]:
    notes = []
    if theta[0] < log_loss.min() - 3:
        notes.append("E, the loss of an infinite model, is not determined by these runs: they are all far from it.")
    for index, name in enumerate(variables):
        if min(abs(theta[2 + 2 * index] - bound) for bound in _ALPHAS) < 1e-3:
            notes.append(f"{_LETTERS[name][1]} is not determined by these runs: it is at the edge of {_ALPHAS}.")
    return notes


def _named(theta: np.ndarray, logs: dict[str, np.ndarray]) -> dict[str, float]:
    values = {"E": float(np.exp(theta[0]))}
    for index, (name, amounts) in enumerate(logs.items()):
        factor, exponent = _LETTERS[name]
        alpha = float(theta[2 + 2 * index])
        values |= {factor: float(np.exp(theta[1 + 2 * index] + alpha * amounts.mean())), exponent: alpha}
    return values


def _loss(values: dict[str, float], variables: tuple[str, ...], amounts: dict[str, float]) -> float:
    return values["E"] + sum(values[f] / amounts[v] ** values[e] for v in variables for f, e in [_LETTERS[v]])


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)
