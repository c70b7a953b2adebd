"""The command: tables, JSON, and errors in one paragraph."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from lm_research import plan

ROOT = pathlib.Path(__file__).resolve().parents[1]
BERT = "--config=configs/bert_tiny.py"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # the command sets it; this restores it afterwards


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


def test_a_search_prints_what_fits(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_research.planning.search.REMAT", ("none",))  # each policy traces the model again
    path = tmp_path / "plans.json"
    assert plan.main([BERT, "--hardware=h200:2", "--search", f"--json={path}"]) == 0
    plans = json.loads(path.read_text())
    assert f"{len(plans)} plans fit" in capsys.readouterr().out and plans


# As tests/interop/peft_goldens/bert/base/config.json has it: V 40, D 16, F 24, 16 positions, 2 layers.
EMBEDDINGS = 40 * 16 + 16 * 16 + 2 * 16 + 2 * 16
LAYERS = 2 * (4 * (16 * 16 + 16) + 2 * 2 * 16 + (16 * 24 + 24) + (24 * 16 + 16))
POOLER = 16 * 16 + 16


@pytest.mark.parametrize(
    ("task", "fields", "keys", "head", "texts"),
    [
        ("classification", {"text": "a b"}, ["--config.data.packing=False"], 16 * 3 + 3, 1),
        (
            "multiple_choice",
            {"context": "a", "choices": ["b", "c d", "e"], "answer": 1},
            [
                "--config.task.pair_key=",
                "--config.task.text_key=context",
                "--config.task.choices_key=choices",
                "--config.task.label_key=answer",
            ],
            16 + 1,
            3,
        ),
    ],
)
def test_a_task_from_a_model_directory(
    tmp_path: pathlib.Path, task: str, fields: dict, keys: list[str], head: int, texts: int
) -> None:
    model, records, out = tmp_path / "model", tmp_path / "train.jsonl", tmp_path / "plan.json"
    shutil.copytree(ROOT / "tests/interop/peft_goldens/bert/base", model)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789"][:40]
    (model / "vocab.txt").write_text("\n".join(words) + "\n")
    records.write_text("".join(json.dumps({"label": label, **fields}) + "\n" for label in ("x", "y", "z", "x")))
    flags = [
        f"--config.train.init_from={model}",
        f"--config.task.train={records}",
        "--config.data.max_length=16",
        *keys,
    ]
    given = [
        f"--config=configs/finetune/{task}.py",
        "--topology=v5e:2x2",
        f"--json={out}",
        "--config.train.batch_size=8",
    ]
    assert plan.main([*given, *flags]) == 0
    values = json.loads(out.read_text())
    assert values["parameters"] == EMBEDDINGS + LAYERS + POOLER + head
    assert values["tokens_per_step"] == 8 * texts * 16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([BERT], "Give either --topology"),
        ([BERT, "--topology=v5e:4x4", "--hardware=h200:8"], "Give either --topology"),
        ([BERT, "--topology=v9:4x4"], "'v9' is not a supported chip"),
        ([BERT, "--topology=v5e:4x4", "--price=-1"], "--price: '-1' is not a number from 0"),
        (
            [BERT, "--topology=v5e:4x4", "--config.mesh.tensor=4", "--config.model.vocab_size=30592"],
            "has 2 'heads' entries",
        ),
        ([BERT, "--topology=v5e:4x4", "--config.model.hiden_size=4"], "hidden_size"),
        ([BERT, "--topology=v5e:4x4", "--search", "--compile"], "--search ranks"),
        ([BERT, "--topology=v5e:4x4", "--json=/nowhere/plan.json"], "cannot be written"),
        (["--topology=v5e:4x4"], "--config is missing"),
        (["--config=configs/finetune/classification.py", "--topology=v5e:4x4"], "--config.task.train"),
        ([BERT, "--topology=v5e:4x4", "--config.train.init_from=/nowhere"], "/nowhere does not exist"),
    ],
)
def test_errors_are_one_paragraph(flags: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert plan.main(flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_no_accelerator_is_touched() -> None:
    """No device is requested: jax's backends are not started."""
    code = (
        "from lm_research import plan; "
        f"assert plan.main([{BERT!r}, '--topology=v5e:4x4']) == 0; "
        "from jax._src import xla_bridge; assert set(xla_bridge._backends) <= {'cpu'}, xla_bridge._backends"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
