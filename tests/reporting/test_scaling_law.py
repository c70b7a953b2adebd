"""The scaling law: generated losses recover their law, intervals contain it, and too few runs are refused."""

from __future__ import annotations

import itertools
import types

import numpy as np
import pytest

from lm_research.reporting import scaling
from lm_research.reporting.scaling import Law, fit

SIZES = np.geomspace(1e6, 1e9, 6)
# The law of Hoffmann et al. 2022, equation 10.
E, A, ALPHA, B, BETA = 1.69, 406.4, 0.34, 410.7, 0.28


def law_of(points: list[tuple[float, float, float]], draws: int = 10) -> Law:
    law = fit(points, draws)
    assert isinstance(law, Law), law
    return law


def test_sizes() -> None:
    """B / D^beta is the same for all and becomes a part of E."""
    law = law_of([(n, 1e9, E + A / n**ALPHA) for n in SIZES])
    assert law.variables == ("N",)
    assert law.values == pytest.approx({"E": E, "A": A, "alpha": ALPHA}, rel=1e-4)
    assert law.residual < 1e-6 and law.notes == []
    loss, low, high = law.predict(N=1e12)
    assert low <= loss * (1 + 1e-6) and loss == pytest.approx(E + A / 1e12**ALPHA, rel=1e-4) and high < loss * 1.001


def test_data() -> None:
    law = law_of([(1e6, d, E + B / d**BETA) for d in SIZES])
    assert law.values == pytest.approx({"E": E, "B": B, "beta": BETA}, rel=1e-4)
    assert str(law) == "L = 1.69 + 410.7 / D^0.280"


def test_both() -> None:
    points = [(n, d, E + A / n**ALPHA + B / d**BETA) for n in SIZES[:4] for d in (1e8, 1e9, 1e10, 1e11)]
    law = law_of(points, draws=2)
    assert law.values == pytest.approx({"E": E, "A": A, "alpha": ALPHA, "B": B, "beta": BETA}, rel=1e-3)


def test_intervals_contain_the_truth_and_grow_with_the_noise() -> None:
    """One bad run in eight changes the law little, because of the Huber loss."""
    rng = np.random.default_rng(1)
    sizes = np.repeat(np.geomspace(1e5, 1e9, 8), 2)
    noise = rng.normal(size=len(sizes))
    widths = []
    for level in (0.001, 0.01):
        law = law_of([(n, 1e9, (E + A / n**ALPHA) * np.exp(level * z)) for n, z in zip(sizes, noise, strict=True)], 60)
        low, high = law.intervals["alpha"]
        assert low < ALPHA < high
        widths.append(high - low)
    assert widths[1] > 3 * widths[0]
    points = [(n, 1e9, E + A / n**ALPHA) for n in np.geomspace(1e5, 1e9, 8)]
    points[3] = (points[3][0], 1e9, 1.3 * points[3][2])
    assert law_of(points).values["alpha"] == pytest.approx(ALPHA, rel=0.02)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ([(n, 1e9, 3.0) for n in SIZES[:3]], "3 model sizes"),
        (
            [(n, 1e9, 3.0) for n in (1e6, 1.001e6, 1.002e6, 2e6)],
            "2 model sizes",
        ),  # a thousandth apart is not another size
        ([(1e6, d, 3.0) for d in SIZES[:2]], "2 amounts of data"),
        ([(1e6, 1e9, 3.0)] * 5, "neither in parameters nor in tokens"),
        ([(n, 20 * n, 3.0) for n in SIZES], "grow together"),
        ([(n, 1e9, 3.0) for n in SIZES] + [(1e6, 1e9, float("nan"))], "no finite, positive"),
        ([(n, 1e9, 3.0) for n in SIZES] + [(0.0, 1e9, 3.0)], "no finite, positive"),
        (
            [(1e6, 1e9, 3.0), (1e7, 1e10, 3.0), (1e8, 1e8, 3.0), (1e9, 1e11, 3.0), (1e6, 1e11, 3.0)],
            "fewer than six runs",
        ),
    ],
)
def test_refusals(points: list[tuple[float, float, float]], words: str) -> None:
    found = fit(points)
    assert isinstance(found, str) and words in found


def test_what_the_runs_do_not_determine_is_reported() -> None:
    """Without an irreducible loss in the data E falls to its lower bound."""
    law = law_of([(n, 1e9, 1000 / n**0.3) for n in SIZES], draws=2)
    assert "E, the loss of an infinite model, is not determined" in law.notes[0]
    assert law.values["alpha"] == pytest.approx(0.3, rel=1e-2)
    steep = law_of(
        [(n, 1e9, E + (1e6 / n) ** 4) for n in np.geomspace(1e6, 4e6, 6)], draws=2
    )  # an exponent above the searched ones
    assert any(note.startswith("alpha is not determined") for note in steep.notes)
    assert not any(note.startswith("alpha") for note in law.notes)
    few = fit([(n, 1e9, (2 + 1000 / n**0.3) * z) for n, z in zip(SIZES[:5], (1, 0.9, 1.1, 0.9, 1), strict=True)], 20)
    assert (
        isinstance(few, Law) and few.notes and few.intervals["E"][0] < 1
    )  # noise of a tenth: no irreducible loss can be determined


def test_how_well_the_law_fits() -> None:
    """The residual is the root mean square of log(measured / fitted). Losses below 1 are losses."""
    points = [(n, 1e9, (0.2 + 3 / n**0.3) * z) for n, z in zip(SIZES[:5], (1, 1.1, 0.9, 1.05, 1), strict=True)]
    law = law_of(points, draws=1)
    errors = [np.log(loss / law.predict(N=n)[0]) for n, _, loss in points]
    assert law.residual == pytest.approx(np.mean(np.square(errors)) ** 0.5, rel=1e-6)


def test_six_runs_with_four_sizes_and_four_amounts_suffice() -> None:
    pairs = [(0, 0), (1, 3), (2, 1), (3, 2), (0, 3), (3, 0)]
    law = law_of([(SIZES[n], SIZES[d], E + A / SIZES[n] ** ALPHA + B / SIZES[d] ** BETA) for n, d in pairs], draws=1)
    assert law.variables == ("N", "D")


def test_the_bootstrap_draws_residuals_of_the_size_of_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five runs determine three numbers: residuals r become (r - mean r) sqrt(5 / 2)."""
    points = [(n, 1e9, (2 + 1000 / n**0.3) * z) for n, z in zip(SIZES[:5], (1, 0.9, 1.1, 0.9, 1), strict=True)]
    minimize, fitted = scaling._minimize, []

    def record(logs: dict, log_loss: np.ndarray, starts: list[np.ndarray]) -> np.ndarray:
        fitted.append(log_loss)
        return minimize(logs, log_loss, starts)

    monkeypatch.setattr(scaling, "_minimize", record)
    law = law_of(points, draws=8)
    at_runs = np.log([law.predict(N=n)[0] for n, _, _ in points])
    errors = np.log([loss for _, _, loss in points]) - at_runs
    expected = (errors - errors.mean()) * (5 / 2) ** 0.5
    drawn = np.array(fitted[1:]) - at_runs
    assert np.abs(drawn[..., None] - expected).min(-1).max() < 1e-9 and np.abs(errors.mean()) > 1e-4
    assert {int(i) for i in np.abs(drawn[..., None] - expected).argmin(-1).flat} == set(range(5))


@pytest.mark.parametrize(("part", "noted"), [(0.99, True), (1, False)])
def test_an_interval_of_e_below_a_tenth_of_the_lowest_loss_is_noted(
    part: float, noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [(n, 1e9, E + A / n**ALPHA) for n in SIZES]
    lowest = float(0.1 * np.exp(np.log(points[-1][2])))
    monkeypatch.setattr(scaling, "_interval", lambda values: (part * lowest, 9.0))
    notes = law_of(points, draws=1).notes
    assert [note.split(":")[0] for note in notes] == ["The interval of E reaches almost to zero"] * noted


def test_sizes_within_a_fiftieth_of_the_next_smaller_one_are_one() -> None:
    for values, count in [([100, 102], 1), ([100, 102.1], 2), ([150, 100, 151], 2), ([100, 101, 102, 103], 1)]:
        assert scaling._distinct(np.array(values, float)) == count


def test_an_interval_holds_the_middle_nine_tenths() -> None:
    assert scaling._interval(list(range(101))) == pytest.approx((5, 95))


@pytest.mark.parametrize(
    ("log_e", "alpha", "beta", "starts"),
    [
        (-2.0, 1.0, 1.0, []),  # three below the lowest log loss, 1
        (-2.01, 1.0, 1.0, ["E, "]),
        (1.0, 0.01095, 0.01105, ["alpha "]),
        (1.0, 2.99895, 2.99905, ["beta "]),
        (-9.0, 3.0, 0.01, ["E, ", "alpha ", "beta "]),
    ],
)
def test_what_counts_as_undetermined(log_e: float, alpha: float, beta: float, starts: list[str]) -> None:
    notes = scaling._unsettled(np.array([log_e, 0, alpha, 0, beta]), ("N", "D"), np.array([5.0, 1.0, 2.0]))
    assert len(notes) == len(starts) and all(note.startswith(start) for note, start in zip(notes, starts, strict=True))


def test_the_search_starts_from_laws_that_split_the_mean_loss() -> None:
    """E is a share of the lowest loss, and the terms, equal at the mean, are the other share of the mean loss."""
    log_loss = np.log([4.0, 3.0, 2.0])
    for variables in (1, 2):
        starts = scaling._starts(variables, log_loss)
        shares = [round(float(np.exp(start[0])) / 2, 9) for start in starts]
        terms = np.array([np.exp(start[1::2]) for start in starts]) / np.exp(log_loss.mean())
        assert set(shares) == {0.3, 0.8}
        np.testing.assert_allclose(terms, np.repeat((1 - np.array(shares))[:, None] / variables, variables, 1))
        exponents = [(share, *start[2::2]) for share, start in zip(shares, starts, strict=True)]
        assert exponents == list(itertools.product((0.3, 0.8), *[(0.2, 0.5, 1.0)] * variables))
    lower, upper = scaling._bounds(2, log_loss)
    assert upper == [np.log(2), np.log(4) + 2, 3, np.log(4) + 2, 3]  # E is below the lowest loss
    assert lower == [np.log(4) - 10, np.log(4) - 10, 0.01, np.log(4) - 10, 0.01]


def test_the_search_continues_from_the_three_best_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solver that does not move, whose cost is |x - 7|, and after that |x - 8|."""
    calls = []

    def stay(residuals, start, *, jac, bounds, loss, f_scale, x_scale, max_nfev):
        calls.append((loss, max_nfev, float(start[0])))
        assert (f_scale, x_scale) == (1e-3, "jac") and np.all(bounds[0] < start) and np.all(start < bounds[1])
        numeric = [(residuals(start + step) - residuals(start - step)) / 2e-6 for step in 1e-6 * np.eye(3)]
        np.testing.assert_allclose(jac(start), np.transpose(numeric), atol=1e-6)
        return types.SimpleNamespace(x=start, cost=abs(start[0] - (7 if loss == "linear" else 8)))

    monkeypatch.setattr(scaling, "least_squares", stay)
    logs, log_loss = {"N": np.log(SIZES)}, np.full(6, 9.5)
    starts = [np.array([e, 1.0, 0.5]) for e in (2.0, 9.0, 6.5, 4.0, 7.25)]
    assert scaling._minimize(logs, log_loss, starts).tolist() == [7.25, 1, 0.5]
    assert calls == [
        *(("linear", 100, e) for e in (2.0, 9.0, 6.5, 4.0, 7.25)),
        *(("huber", 200, e) for e in (7.25, 6.5, 9.0)),
    ]
    for count, loss in ((1, "huber"), (2, "linear")):
        calls.clear()
        scaling._minimize(logs, log_loss, starts[:count])
        assert calls[0] == (loss, *calls[0][1:2], 2.0)
