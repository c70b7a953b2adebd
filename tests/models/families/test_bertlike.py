"""Encoders of BERT's kind: what their config.json may not have, and DeBERTa-v3's directories as released."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lm_research
from helpers.golden_models import golden_path, golden_tensors, load_golden, write_checkpoint
from lm_research.errors import PretrainedError
from lm_research.models.families import FAMILIES


@pytest.mark.parametrize(
    ("family", "keys", "words"),
    [
        ("deberta_v2", {"pos_att_type": ["c2p", "p2p"]}, "pos_att_type has 'p2p', which is not supported"),
        ("deberta_v2", {"embedding_size": 12}, "embedding_size is 12, which is not supported"),
        ("deberta_v2", {"pooler_hidden_size": 12}, "pooler_hidden_size is 12, which is not supported"),
        ("deberta_v2", {"attention_head_size": 5}, "attention_head_size is 5, which is not supported"),
        ("deberta", {"talking_head": True}, "talking_head is True, which is not supported"),
        ("mpnet", {"relative_attention_num_buckets": 40}, "relative_attention_num_buckets is 40"),
        ("convbert", {"summary_type": "first"}, "summary_type is 'first', which is not supported"),
        ("convbert", {"hidden_size": 30, "num_attention_heads": 8}, "not a multiple of 2 x 4"),
        ("ernie", {"use_task_id": "yes"}, "use_task_id"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(family: str, keys: dict, words: str) -> None:
    hf = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, **keys}
    with pytest.raises(PretrainedError, match=words):
        FAMILIES[family].from_hf(hf, set())


def test_deberta_v3_as_released_is_read_with_the_head_it_was_trained_with(tmp_path: pathlib.Path) -> None:
    """Its config.json has no `legacy`, which is then true, but its head has the other names; those of its discriminator are not used.

    transformers initializes the head of such files. The golden is its result with legacy=false, where it reads these names.
    """
    golden = load_golden(golden_path("deberta_v2_masked"))
    config = {name: value for name, value in json.loads(golden.config).items() if name != "legacy"}
    write_checkpoint(tmp_path, dataclasses.replace(golden, config=json.dumps(config)))
    extra = {"mask_predictions.dense.weight": np.zeros((20, 20), np.float32)}
    save_file(golden_tensors(golden) | extra, tmp_path / "model.safetensors", metadata={"format": "pt"})
    lm = lm_research.from_pretrained(tmp_path)
    assert lm.report.lines() == []
    real = golden.inputs["attention_mask"][..., None]
    found = np.asarray(lm(**{name: golden.inputs[name] for name in ("input_ids", "attention_mask")})["logits"])
    np.testing.assert_allclose(found * real, golden.outputs["logits"] * real, atol=1e-4)
    lm.save_pretrained(tmp_path / "saved")
    names = {name for name in load_file(tmp_path / "saved" / "model.safetensors") if not name.startswith("deberta.")}
    transform = "cls.predictions.transform"
    parts = ("dense.weight", "dense.bias", "LayerNorm.weight", "LayerNorm.bias")
    assert names == {"cls.predictions.bias", *(f"{transform}.{part}" for part in parts)}
