"""The comparison of plans with compiled programs continues where it stopped, and calibrates the compiler's cycles."""

from __future__ import annotations

import pathlib

import pytest

from experiments.plans import compare
from lm_research.planning.calibration import factors

COMPILED = dict(roof_mfu=0.5, cycles_mfu=0.2, peak_bytes=2 * 2**30)
FIGURES = compare.fractions(compare.PREDICTED, (0.3, 0.9, 3.0)) | compare.read(COMPILED)


def test_cycles_are_calibrated() -> None:
    factor = factors("v5e")
    assert factor is not None
    assert float(FIGURES["calibrated"]) == pytest.approx(0.2 * factor.cycles, abs=1e-4)
    assert (FIGURES["roof"], FIGURES["predicted_gib"], FIGURES["peak_gib"]) == ("0.5000", "3.0000", "2.0000")


def test_a_second_run_compiles_what_is_missing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = tmp_path / "rows.tsv", []

    def compiled(config: str, topology: str, effort: str) -> dict[str, str]:
        asked.append(config)
        row = {"config": config, "topology": topology, "effort": effort}
        return row | ({"error": "too large"} if config == "b" else FIGURES)

    monkeypatch.setattr(compare, "compare", compiled)
    flags = [f"--out={path}", "--topologies=v5e:4x4"]
    assert compare.main([*flags, "--only=a"]) == compare.main([*flags, "--only=a,b"]) == 0
    assert asked == ["a", "b"]
    first, second = compare.table(compare.rows(path)).splitlines()[2:]
    assert first.startswith("| a | v5e:4x4 | 30.0% |") and second.startswith("| b | v5e:4x4 | too large |")
