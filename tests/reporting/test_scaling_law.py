"""The scaling law: generated losses recover their law, intervals contain it, and too few runs are refused."""

from __future__ import annotations

import numpy as np
import pytest

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
