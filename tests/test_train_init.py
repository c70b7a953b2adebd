"""Runs that start from a model directory instead of random parameters."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

import lm_research
from lm_research.trees import flatten

STEPS = ("--config.train.num_steps=2", "--config.eval.every_steps=0", "--config.optimizer.learning_rate=0.0")


def params(path: pathlib.Path) -> dict[str, Any]:
    return {name: np.asarray(leaf) for name, leaf in flatten(lm_research.from_pretrained(path).params).items()}


@pytest.fixture(scope="module")
def hf(bert_run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The uninterrupted BERT run as a Hugging Face directory."""
    directory = tmp_path_factory.mktemp("hf") / "model"
    lm_research.from_pretrained(bert_run).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("kind", ["run", "hf", "checkpoint"])
def test_training_starts_from_the_parameters_shape_and_tokenizer_of_a_directory(
    kind: str, lab: Any, bert_run: pathlib.Path, hf: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    newest = max((bert_run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    origin = {"run": bert_run, "hf": hf, "checkpoint": newest}[kind]
    workdir = tmp_path / "again"
    # Another width is requested, but the directory decides. At a learning rate of 0 nothing moves.
    assert lab.train(workdir, f"--config.train.init_from={origin}", "--config.model.hidden_size=64", *STEPS) == 0
    before, after = params(origin), params(workdir)
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["hidden_size"] == json.loads((bert_run / "config.json").read_text())["model"]["hidden_size"]
    assert config["tokenizer"]["path"] == str(origin)
    ours, theirs = (lm_research.from_pretrained(path).tokenizer.digest for path in (workdir, origin))
    assert ours == theirs
    # The same command finds it finished; the stored config starts the same run.
    assert lab.train(workdir, f"--config.train.init_from={origin}", "--config.model.hidden_size=64", *STEPS) == 0


def test_what_does_not_fit_is_logged(lab: Any, hf: pathlib.Path, tmp_path: pathlib.Path) -> None:
    workdir = tmp_path / "plain"
    assert lab.train(workdir, f"--config.train.init_from={hf}", "--config.objective.sentence_pair=none", *STEPS) == 0
    log = (workdir / "log.txt").read_text()
    assert "not used by this model" in log and "cls.seq_relationship.weight" in log


def test_an_encoder_becomes_a_decoder(lab: Any, hf: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """As transformers' BertLMHeadModel with is_decoder: the same parameters, the same head, and no attention to later tokens."""
    workdir = tmp_path / "gpt"
    assert lab.train(workdir, f"--config.train.init_from={hf}", *STEPS, variant="gpt") == 0
    lm = lm_research.from_pretrained(workdir)
    assert lm.head == "causal_lm" and lm.config.is_decoder and lm.config.architectures == ("BertLMHeadModel",)
    before, after = params(hf), params(workdir)
    moved = {name.replace("decoder/", "encoder/").replace("next_token/", "masked_lm/"): x for name, x in after.items()}
    assert set(before) - set(moved) == {name for name in before if name.startswith(("pooler/", "next_sentence/"))}
    for name, value in moved.items():  # the averaged parameters of this run are rounded
        np.testing.assert_allclose(value, before[name], rtol=1e-6, atol=1e-8, err_msg=name)


def test_a_decoder_cannot_start_from_what_is_always_an_encoder(
    lab: Any, hf: pathlib.Path, tmp_path: pathlib.Path, capsys: Any
) -> None:
    config = {
        "model_type": "distilbert",
        "architectures": ["DistilBertForMaskedLM"],
        "dim": 32,
        "n_heads": 4,
        "hidden_dim": 64,
    }
    shutil.copytree(hf, tmp_path / "distil")
    (tmp_path / "distil" / "config.json").write_text(json.dumps(config))
    assert lab.train(tmp_path / "gpt", f"--config.train.init_from={tmp_path}/distil", *STEPS, variant="gpt") == 2
    assert "head 'causal_lm' needs a decoder, but distilbert is an encoder" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert lab.train(tmp_path / "x", f"--config.train.init_from={empty}", *STEPS) == 2
    assert "has no config.json" in capsys.readouterr().err
    without = tmp_path / "without"
    shutil.copytree(hf, without)
    for file in without.glob("tokenizer*"):
        file.unlink()
    assert lab.train(tmp_path / "y", f"--config.train.init_from={without}", *STEPS) == 2
    assert "tokenizer" in capsys.readouterr().err
