"""Pairs of texts through the train command: files to a trained encoder-decoder, and its held-out loss."""

from __future__ import annotations

import json
import pathlib
import random
import subprocess

import pytest

from helpers.train_helpers import call, metrics, summary
from lm_research import prepare

NAMES = "zero one two three four five six seven eight nine".split()
KEYS = {
    "model.num_layers": 1,
    "model.hidden_size": 32,
    "model.num_heads": 2,
    "model.intermediate_size": 64,
    "model.vocab_size": 0,
    "model.max_length": 32,
    "model.dropout_rate": 0.0,
    "model.dtype": "float32",
    "data.max_length": 32,
    "data.validation_fraction": 0.1,
    "tokenizer.type": "byte_bpe",
    "tokenizer.vocab_size": 300,
    "objective.label_smoothing": 0.0,
    "schedule.warmup_steps": 5,
    "optimizer.learning_rate": 3e-3,
    "train.num_steps": 60,
    "train.batch_size": 16,
    "logging.every_steps": 20,
    "logging.trackers": "none",
    "eval.every_steps": 60,
    "eval.num_batches": 2,
    "checkpoint.every_steps": 60,
}


def pairs() -> list[tuple[str, str]]:
    draw = random.Random(0)
    numbers = [[draw.randrange(10) for _ in range(draw.randint(1, 4))] for _ in range(400)]
    return [(" ".join(NAMES[n] for n in row), " ".join(map(str, row))) for row in numbers]


def write_tsv(folder: pathlib.Path) -> pathlib.Path:
    """As the message about plain text suggests: two files of parallel lines, put together by paste."""
    for name, lines in zip(("sources", "targets"), zip(*pairs(), strict=True), strict=True):
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    command = "(printf 'source\\ttarget\\n'; paste sources targets) > pairs.tsv"
    subprocess.run(command, shell=True, cwd=folder, check=True)
    return folder / "pairs.tsv"


def write_jsonl(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps({"words": a, "digits": b}) + "\n" for a, b in pairs()))
    return path


def flags(source: pathlib.Path, workdir: pathlib.Path, **changes: object) -> list[str]:
    keys = {**KEYS, "data.source": source, **changes}
    return [f"--config=configs/{keys.pop('file')}.py", f"--workdir={workdir}"] + [
        f"--config.{key}={value}" for key, value in keys.items()
    ]


@pytest.mark.parametrize("packing", [True, False])
def test_translation_learns_from_files(packing: bool, tmp_path: pathlib.Path) -> None:
    """The held-out loss falls below that of unigram frequencies; the same texts in another format give the same run."""
    changes = {"file": "transformer_base", "data.packing": packing}
    assert call(flags(write_tsv(tmp_path), tmp_path / "tsv", **changes)) == 0
    found, log = summary(tmp_path / "tsv"), (tmp_path / "tsv" / "log.txt").read_text()
    assert found["eval"]["eval_loss_nats"] < found["unigram_loss_nats"] and found["eval"]["eval_tokens"] > 40
    assert "400 pairs, of which 0 have an empty side" in log and "0.0% of tokens cut off" in log
    assert "sources: " in log and "positions used; targets: " in log
    named = {"objective.source_key": "words", "objective.target_key": "digits"}
    if packing:
        assert call(flags(write_jsonl(tmp_path), tmp_path / "jsonl", **changes, **named)) == 0
        assert summary(tmp_path / "jsonl")["digests"] == found["digests"]
    losses = [line["loss_nats"] for line in metrics(tmp_path / "tsv") if "loss_nats" in line]
    assert losses[-1] < losses[0]


def test_t5_trains_on_pairs_and_inspect_shows_them(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {
        "file": "t5_small",
        "objective.name": "seq2seq",
        "train.num_steps": 6,
        "eval.every_steps": 6,
        "tokenizer.vocab_size": 400,
    }
    workdir = tmp_path / "run"
    assert call(flags(write_tsv(tmp_path), workdir, **changes)) == 0
    assert summary(workdir)["status"] == "finished"
    (store,) = (workdir / "data").iterdir()
    capsys.readouterr()
    assert prepare.main([f"--inspect={store}"]) == 0
    shown = capsys.readouterr().out
    example = shown[shown.index("seq2seq: ") :]
    assert "source_tokens:" in example and "targets:" in example and "</s>" in example
