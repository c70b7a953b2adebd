"""seq2seq with tokenizers that mark texts with their language: sources, targets and outputs each carry their own code."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers import tiny
from helpers.language_folders import goldens, write_family
from lm_research.config import ModelConfig, resolve
from lm_research.errors import ConfigError, UserError
from lm_research.interop import huggingface
from lm_research.models.families import define_model
from lm_research.pretrained import LanguageModel
from lm_research.tasks import TASKS
from lm_research.tasks.dataset import open_labeled
from lm_research.tokenizers.loading import load_tokenizer

SOURCES, TARGETS = goldens()["sources"], goldens()["targets"]


def model_dir(folder: pathlib.Path, family: str, golden: str, **config: Any) -> dict[str, Any]:
    """A tiny model of a family with a golden's tokenizer."""
    found = write_family(folder, golden)
    shape = ModelConfig(family=family, num_layers=1, hidden_size=16, num_heads=2, intermediate_size=32, max_length=64)
    definition = define_model(shape, load_tokenizer(folder).size, "seq2seq_lm")
    hf = huggingface.hf_config(definition, family) | config
    huggingface.save(folder, definition, family, tiny.random_params(definition, scale=0.5), hf)
    return found


def task_of(folder: pathlib.Path, **keys: Any) -> tuple[Any, Any]:
    """The task of fine-tuning the model in a folder, and its data."""
    pairs = ({"s": source, "t": target} for source, target in zip(SOURCES, TARGETS, strict=True))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    task = {"name": "seq2seq", "text_key": "s", "label_key": "t", "train": str(folder / "pairs.jsonl")}
    config = resolve(
        {
            "task": task | {"validation": task["train"]} | keys,
            "data": {"max_length": 64},
            "tokenizer": {"path": str(folder)},
            "train": {"batch_size": 3, "init_from": str(folder)},
        }
    )
    corpus = open_labeled(config, folder / "run", TASKS["seq2seq"].reader(config), lambda line: None)
    return TASKS["seq2seq"](config, corpus), corpus


def rows_of(task: Any, corpus: Any) -> list[tuple[list[int], list[int], list[int]]]:
    """Source, what the decoder reads, and the labels of each pair."""
    batch = task.examples(corpus.train, "train").batch(np.zeros(3, np.int64), np.arange(3), (64, 64))
    kept = {"S": batch["source_segments_BS"] > 0, "L": batch["segments_BL"] > 0}
    names = ("source_tokens_BS", "tokens_BL", "targets_BL")
    return [tuple(batch[name][row][kept[name[-1]][row]].tolist() for name in names) for row in range(3)]


def opening(family: str, code: int) -> dict[str, int]:
    """The decoder of mBART begins with the language; of the others it is the first token that is written."""
    return {"decoder_start_token_id" if family == "MBart" else "forced_bos_token_id": code}


@pytest.mark.parametrize("how", ["keys", "decoder_start", "model"])
@pytest.mark.parametrize("family", ["MBart", "MBart50", "Nllb", "Nllb legacy", "M2M100"])
def test_each_side_carries_its_own_language(family: str, how: str, tmp_path: pathlib.Path) -> None:
    """Sources and labels are transformers' (`text_target`), and its mBART makes the decoder's inputs from labels rotated by one.

    The output language is given by the key, by the token that targets begin with, or by the model's files.
    """
    code, name = goldens()["families"][family]["code"], goldens()["families"][family]["target"]
    golden = model_dir(tmp_path, "mbart", family, **(opening(family, code) if how == "model" else {}))
    task, corpus = task_of(
        tmp_path, **{"keys": {"target_language": name}, "decoder_start": {"decoder_start": name}}.get(how, {})
    )
    for found, source, labels in zip(rows_of(task, corpus), golden["input_ids"], golden["labels"], strict=True):
        assert found == (source, [labels[-1], *labels[:-1]], labels)
    assert {key: getattr(task.options, key) for key in opening(family, code)} == opening(family, code)
    written = json.loads(task.files(None)["generation_config.json"])
    assert written["decoder_start_token_id"] == task.start == golden["labels"][0][-1]
    config = json.loads(corpus.tokenizer.files["tokenizer_config.json"])
    assert (config["src_lang"], config["tgt_lang"]) == (golden["source"], name)


def test_languages_of_the_keys_override_those_of_the_files(tmp_path: pathlib.Path) -> None:
    model_dir(tmp_path, "mbart", "MBart50", forced_bos_token_id=goldens()["families"]["MBart50"]["code"])
    task, corpus = task_of(tmp_path, source_language="fr_XX", target_language="de_DE")
    french, german = (corpus.tokenizer.token_id(code) for code in ("fr_XX", "de_DE"))
    source, read, labels = rows_of(task, corpus)[0]
    assert (source[0], read[:2], labels[0], labels[-1]) == (french, [2, german], german, 2)
    assert task.options.forced_bos_token_id == german


def test_invalid_languages(tmp_path: pathlib.Path) -> None:
    model_dir(tmp_path, "mbart", "MBart")
    for keys, message in (
        ({}, "no file names the language of targets. Set it in config.task.target_language"),
        ({"target_language": "ro"}, "no language 'ro'. Valid: ro_RO"),
        ({"target_language": "ro_RO", "source_language": "en-XX"}, "no language 'en-XX'. Did you mean 'en_XX'"),
        ({"target_language": "ro_RO", "decoder_start": "de_DE"}, "are two languages"),
    ):
        with pytest.raises(ConfigError, match=message):
            task_of(tmp_path, **keys)


@pytest.mark.parametrize("family", ["MBart", "MBart50"])
def test_generate_and_pipelines_write_in_the_requested_language(family: str, tmp_path: pathlib.Path) -> None:
    """As with transformers' `generate`: by ids of the source, and the start or the first token of the text."""
    golden = model_dir(tmp_path, "mbart", family, decoder_start_token_id=2)
    lm: LanguageModel = lm_research.from_pretrained(tmp_path)
    source, target, text = golden["source"], golden["target"], SOURCES[0]
    told = lm.generate(input_ids=golden["input_ids"][:1], max_new_tokens=5, **opening(family, golden["code"]))
    pair = {"src_lang": source, "tgt_lang": target}
    assert lm.generate(input_ids=golden["input_ids"][:1], max_new_tokens=5).tolist() != told.tolist()

    def ids(lm: LanguageModel, **more: Any) -> list[list[int]]:
        found = lm.generate(prompts=[text], max_new_tokens=5, return_dict_in_generate=True, **more)
        return found.sequences.tolist()

    assert ids(lm, **pair) == told.tolist()
    for task in ("translation", f"translation_{source}_to_{target}"):
        answer = lm_research.pipeline(task, lm, max_new_tokens=5, return_tensors=True)
        options = pair if task == "translation" else {}
        assert answer(text, **options) == [{"translation_token_ids": told[0].tolist()}]
        assert answer(text, truncation=True, **options) == [{"translation_token_ids": told[0].tolist()}]
    with pytest.raises(UserError, match="no language 'xx_XX'"):
        ids(lm, tgt_lang="xx_XX")
    write_family(tmp_path, family, **pair)  # which now declares it
    assert ids(lm_research.from_pretrained(tmp_path)) == told.tolist()
