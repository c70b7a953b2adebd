"""The verb: tables, JSON, and mistakes in one paragraph."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

from lm_research import plan

ROOT = pathlib.Path(__file__).resolve().parents[1]
BERT = "--config=configs/bert_tiny.py"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # the verb sets it; this takes it back afterwards


def test_a_plan_as_table_and_json(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "plan.json"
    assert (
        plan.main(
            [
                BERT,
                "--topology=v5e:4x4",
                "--price=1.2",
                f"--json={path}",
                "--config.train.num_steps=7",
                "--config.schedule.warmup_steps=0",
            ]
        )
        == 0
    )
    values, text = json.loads(path.read_text()), capsys.readouterr().out
    assert values["num_steps"] == 7 and values["chips"] == 16
    assert values["memory_bytes"] == sum(values["memory"].values())
    assert values["chip_hours"] == pytest.approx(16 * 7 * values["step_seconds"] / 3600)
    assert values["cost"] == pytest.approx(1.2 * values["chip_hours"])
    assert f"{values['parameters']:,} parameters" in text and ": fits" in text and f"{values['mfu']:.1%}" in text


def test_a_search_prints_what_fits(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "plans.json"
    assert plan.main([BERT, "--hardware=h200:2", "--search", f"--json={path}"]) == 0
    plans = json.loads(path.read_text())
    assert f"{len(plans)} plans fit" in capsys.readouterr().out and plans


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([BERT], "Give one of --topology"),
        ([BERT, "--topology=v5e:4x4", "--hardware=h200:8"], "Give one of --topology"),
        ([BERT, "--topology=v9:4x4"], "there is no chip 'v9'"),
        ([BERT, "--topology=v5e:4x4", "--price=-1"], "--price=-1.0 must be"),
        (
            [BERT, "--topology=v5e:4x4", "--config.mesh.tensor=4", "--config.model.vocab_size=30592"],
            "has 2 'heads' entries",
        ),
        ([BERT, "--topology=v5e:4x4", "--config.model.hiden_size=4"], "hidden_size"),
        ([BERT, "--topology=v5e:4x4", "--search", "--compile"], "--search ranks"),
        ([BERT, "--topology=v5e:4x4", "--json=/nowhere/plan.json"], "cannot be written"),
        (["--topology=v5e:4x4"], "--config is missing"),
    ],
)
def test_mistakes_are_one_paragraph(flags: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert plan.main(flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_no_accelerator_is_touched() -> None:
    """No device is asked for at all: jax's back ends stay unstarted."""
    code = (
        "from lm_research import plan; "
        f"assert plan.main([{BERT!r}, '--topology=v5e:4x4']) == 0; "
        "from jax._src import xla_bridge; assert set(xla_bridge._backends) <= {'cpu'}, xla_bridge._backends"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
