"""The config.json of a model: ids of special tokens, and models without `architectures`."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from helpers import golden_models
from lm_research.interop import huggingface
from lm_research.interop.model_directories import inspect
from lm_research.models.architecture import Architecture
from lm_research.models.families import FAMILIES


def config_of(golden: str) -> dict[str, Any]:
    return json.loads(golden_models.load_golden(golden_models.FOLDER / f"{golden}.npz").config)


def arch_of(family: str, config: dict[str, Any]) -> Architecture:
    return FAMILIES[family].from_hf(config, set())


@pytest.mark.parametrize(("pad", "written", "rows"), [(1, 1, 22), (0, 0, 21), (2, 1, 22)])
def test_positions_of_roberta_start_after_the_padding_id(pad: int, written: int, rows: int) -> None:
    """A table of 22 rows with padding id 1 has 20 positions; id 0 leaves one row before them unused, and id 2 needs one more."""
    config = {**config_of("roberta_masked"), "max_position_embeddings": 22, "pad_token_id": 1}
    found = huggingface.with_tokens(
        config, "roberta", arch_of("roberta", config), {"pad_token_id": pad, "bos_token_id": 5}
    )
    assert found == {**config, "pad_token_id": written, "max_position_embeddings": rows, "bos_token_id": 5}


def test_positions_of_other_families_do_not() -> None:
    config = config_of("bert_sequence")
    assert huggingface.with_tokens(config, "bert", arch_of("bert", config), {"pad_token_id": 5}) == {
        **config,
        "pad_token_id": 5,
    }


@pytest.mark.parametrize(
    ("golden", "head"),
    [("bert_sequence", "pretraining"), ("gpt2_causal", "causal_lm"), ("t5_generation", "seq2seq_lm")],
)
def test_a_model_without_architectures_has_the_head_of_its_pretraining(
    golden: str, head: str, tmp_path: pathlib.Path
) -> None:
    found = golden_models.load_golden(golden_models.FOLDER / f"{golden}.npz")
    golden_models.write_checkpoint(tmp_path, found)
    (tmp_path / "config.json").write_text(json.dumps({**config_of(golden), "architectures": None}))
    definition = inspect(tmp_path, None).definition
    assert definition.head.name == head and (definition.arch.encoder is not None) == (head == "seq2seq_lm")


@pytest.mark.parametrize(
    ("head", "labels", "written"),
    [
        (None, None, "BertForSequenceClassification"),
        ("token_classification", None, "BertForTokenClassification"),
        (None, 5, "BertForSequenceClassification"),
    ],
)
def test_the_config_of_another_head_or_number_of_labels(
    head: str | None, labels: int | None, written: str, tmp_path: pathlib.Path
) -> None:
    golden_models.write_checkpoint(tmp_path, golden_models.load_golden(golden_models.FOLDER / "bert_sequence.npz"))
    found = inspect(tmp_path, head, labels)
    assert found.config["architectures"] == [written]
    count = labels or len(config_of("bert_sequence")["id2label"])
    assert len(found.config["id2label"]) == found.definition.head.num_labels == count
    if labels:
        assert found.config["id2label"] == {str(i): f"LABEL_{i}" for i in range(5)}
        assert found.config["label2id"] == {f"LABEL_{i}": i for i in range(5)}
