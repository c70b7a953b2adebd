"""Directories like opus-mt's: reading, generating, fine-tuning and writing back match transformers."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers.opus_folder import files, golden, write_opus
from helpers.train_helpers import ROOT, call, summary
from lm_research.pretrained import LanguageModel
from lm_research.tasks import TASKS
from lm_research.tasks.dataset import open_labeled

SOURCES, TOKENIZER = golden()["sources"], ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def opus(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Read-only."""
    return write_opus(tmp_path_factory.mktemp("opus"))


@pytest.fixture(scope="module")
def lm(opus: pathlib.Path) -> LanguageModel:
    return lm_research.from_pretrained(opus)


@pytest.mark.parametrize("number", range(len(golden()["ways"])))
def test_it_writes_what_transformers_writes(number: int, lm: LanguageModel) -> None:
    """Greedy, the beams of generation_config.json, and beams with banned tokens.

    The banned tokens leave log-probabilities to be normalized again (renormalize_logits).
    """
    way, wanted = golden()["ways"][number], golden()["sequences"][number]
    found = lm.generate(prompts=SOURCES, return_dict_in_generate=True, **way)
    assert found.sequences.tolist() == wanted
    tokens = lm.generate(
        input_ids=golden()["padded"]["input_ids"], attention_mask=golden()["padded"]["attention_mask"], **way
    )
    assert tokens.tolist() == wanted


def test_pipelines_translate(lm: LanguageModel) -> None:
    translate = lm_research.pipeline("translation_en_to_es", lm)
    wanted = [lm.tokenizer.decode(row) for row in golden()["sequences"][1]]
    assert [one["translation_text"] for one in translate(SOURCES)] == wanted
    assert translate(SOURCES[0], truncation=True) == [{"translation_text": wanted[0]}]


def test_it_is_written_back(lm: LanguageModel, opus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    lm.save_pretrained(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in TOKENIZER} == {name: files()[name] for name in TOKENIZER}
    assert json.loads((tmp_path / "generation_config.json").read_text()) == json.loads(
        files()["generation_config.json"]
    )
    again = lm_research.from_pretrained(tmp_path)
    assert again.generate(prompts=SOURCES) == lm.generate(prompts=SOURCES)
    lm.save_native(tmp_path / "native")
    assert lm_research.from_pretrained(tmp_path / "native").tokenizer.digest == lm.tokenizer.digest


@pytest.mark.slow
def test_it_is_fine_tuned(opus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Rows are those of `tokenizer(sources, text_target=targets)`, the decoder begins with padding, and the saved model translates."""
    chosen = [4, 0, 9]  # a language code, a text, and an unknown piece
    pairs = [{"en": golden()["texts"][number], "es": golden()["texts"][number]} for number in chosen]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    keys = {
        "train.init_from": opus,
        "task.train": tmp_path / "pairs.jsonl",
        "task.validation": tmp_path / "pairs.jsonl",
        "task.text_key": "en",
        "task.label_key": "es",
        "data.max_length": 32,
        "objective.target_length": 32,
        "train.num_steps": 2,
        "train.batch_size": 3,
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 1e-3,
        "logging.trackers": "none",
        "eval.every_steps": 0,
        "task.generation": "num_beams=2",
    }
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    assert call([f"--config={ROOT}/configs/finetune/seq2seq.py", f"--workdir={tmp_path}/run", *flags]) == 0
    assert np.isfinite(summary(tmp_path / "run")["validation"]["eval_lm_loss_nats"])
    left = tmp_path / "run" / "model"
    assert {name: (left / name).read_bytes() for name in TOKENIZER} == {name: files()[name] for name in TOKENIZER}
    config = json.loads((left / "config.json").read_text())
    size = len(json.loads(files()["vocab.json"]))
    assert (config["model_type"], config["decoder_start_token_id"], config["eos_token_id"]) == ("marian", size - 1, 0)
    written = [
        json.loads(line)["prediction"]
        for line in (tmp_path / "run/predictions_validation.jsonl").read_text().splitlines()
    ]
    answers = lm_research.pipeline("translation", left)([pair["en"] for pair in pairs])
    assert [one["translation_text"].strip() for one in answers] == written
    rows = rows_of(tmp_path / "run")
    wanted = [(golden()["input_ids"][number], golden()["labels"][number]) for number in chosen]
    assert rows == [(read, [size - 1, *labels[:-1]], labels) for read, labels in wanted]


def rows_of(run: pathlib.Path) -> list[tuple[Any, ...]]:
    """Source, what the decoder reads, and labels of each pair of a run."""
    config = lm_research.config.resolve(json.loads((run / "config.json").read_text()))
    corpus = open_labeled(config, run, TASKS["seq2seq"].reader(config), lambda line: None)
    batch = (
        TASKS["seq2seq"](config, corpus)
        .examples(corpus.train, "train")
        .batch(np.zeros(3, np.int64), np.arange(3), (32, 32))
    )
    kept = {"S": batch["source_segments_BS"] > 0, "L": batch["segments_BL"] > 0}
    names = ("source_tokens_BS", "tokens_BL", "targets_BL")
    return [tuple(batch[name][row][kept[name[-1]][row]].tolist() for name in names) for row in range(3)]
