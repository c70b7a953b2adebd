"""Encoder families as decoders, and encoder-decoders made of two models: read from the files of other classes, refused, written natively.

Outputs of their own files are tested in test_goldens.py, generated tokens in decoding/test_decoding_goldens.py.
"""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import lm_research
from helpers.golden_models import FOLDER, Golden, golden_tensors, load_golden, write_checkpoint
from lm_research.errors import PretrainedError, UserError
from lm_research.models.families import FAMILIES


def written(name: str, directory: pathlib.Path, **changes: Any) -> tuple[Golden, pathlib.Path]:
    golden = load_golden(FOLDER / f"{name}.npz")
    write_checkpoint(directory, golden)
    config = json.loads(golden.config) | changes
    (directory / "config.json").write_text(json.dumps(config))
    return golden, directory


def logits(lm: Any, golden: Golden) -> np.ndarray:
    return np.asarray(lm(**golden.inputs)["logits"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("bert", "BertForMaskedLM"), ("roberta", "RobertaForMaskedLM"), ("electra", "ElectraForMaskedLM")],
)
def test_a_masked_lm_is_read_as_a_decoder(name: str, kind: str, tmp_path: pathlib.Path) -> None:
    """Its tensors are those of the class with a causal mask, so transformers' outputs for that class are the expected ones."""
    golden, directory = written(f"{name}_decoder", tmp_path / "in", architectures=[kind], is_decoder=False)
    lm = lm_research.from_pretrained(directory, head="causal_lm")
    assert lm.config.is_decoder and lm.report.lines() == []
    mask = golden.inputs["attention_mask"][..., None]
    assert (np.abs(logits(lm, golden) - golden.outputs["logits"]) * mask).max() < 1e-4
    lm.save_pretrained(tmp_path / "out")
    again = lm_research.from_pretrained(tmp_path / "out")
    assert again.head == "causal_lm" and again.config.architectures == tuple(json.loads(golden.config)["architectures"])
    np.testing.assert_array_equal(logits(again, golden), logits(lm, golden))


def test_only_the_decoder_of_an_encoder_decoder_is_read(tmp_path: pathlib.Path) -> None:
    """Files of both stacks have one table for all; the encoder's tensors are reported as unused."""
    golden, directory = written(
        "bart_decoder",
        tmp_path,
        architectures=["BartForConditionalGeneration"],
        is_decoder=False,
        is_encoder_decoder=True,
    )
    tensors = golden_tensors(golden)
    tensors["model.shared.weight"] = tensors.pop("model.decoder.embed_tokens.weight")
    tensors["model.encoder.layers.0.fc1.bias"] = np.zeros(35, np.float32)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    lm = lm_research.from_pretrained(directory, head="causal_lm")
    assert lm.report.unused == ("model.encoder.layers.0.fc1.bias",)
    mask = golden.inputs["attention_mask"][..., None]
    assert (np.abs(logits(lm, golden) - golden.outputs["logits"]) * mask).max() < 1e-4


def test_given_positions_are_rows_of_the_table(tmp_path: pathlib.Path) -> None:
    """RoBERTa's first token has the row after the padding token's (transformers: create_position_ids_from_input_ids)."""
    _, directory = written("roberta_decoder", tmp_path)
    lm = lm_research.from_pretrained(directory)
    ids = np.arange(5, 10)[None]
    rows = lm.config.pad_token_id + 1 + np.arange(5)[None]
    np.testing.assert_allclose(lm(input_ids=ids, position_ids=rows)["logits"], lm(input_ids=ids)["logits"], atol=1e-5)


def test_a_model_that_sees_later_tokens_does_not_generate(tmp_path: pathlib.Path) -> None:
    lm = lm_research.from_pretrained(written("bert_decoder_both_ways", tmp_path)[1])
    with pytest.raises(UserError, match="is_decoder: false.*head='causal_lm'"):
        lm.generate([[5, 6, 7]], max_new_tokens=2)
    lm = lm_research.from_pretrained(tmp_path, head="causal_lm")
    assert lm.generate([[5, 6, 7]], max_new_tokens=2).shape == (1, 5)


def test_a_model_of_an_encoder_and_a_decoder_is_the_same_in_the_native_format(tmp_path: pathlib.Path) -> None:
    golden, directory = written("pair_bert_gpt2", tmp_path / "in")
    lm = lm_research.from_pretrained(directory)
    assert lm.family == "bert2gpt2" and lm.definition.arch.kind == "encoder-decoder"
    lm.save_native(tmp_path / "native")
    native = lm_research.from_pretrained(tmp_path / "native")
    native.save_pretrained(tmp_path / "out")
    for other in (native, lm_research.from_pretrained(tmp_path / "out")):
        np.testing.assert_array_equal(logits(other, golden), logits(lm, golden))
        assert other.config.decoder.add_cross_attention and other.config.decoder_start_token_id == 4


def test_tensors_that_a_part_leaves_unread_are_written_back_by_a_pair() -> None:
    """Transformers 5.24 leaves out RoFormer's table of sines only where the class itself is RoFormer's."""
    unread = FAMILIES["deberta_v22roformer"].unread
    assert any(re.search(pattern, "decoder.roformer.encoder.embed_positions.weight") for pattern in unread)
    assert any(re.search(pattern, "encoder.pooler.dense.weight") for pattern in unread)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("decoder", {"model_type": "llama"}, "model_type of the decoder is 'llama', which is not supported there"),
        (
            "decoder",
            {"model_type": "big_bird"},
            "model_type of the decoder is 'big_bird', which is not supported there",
        ),
        ("decoder", {"model_type": "gpt_bert"}, "model_type of the decoder is 'gpt_bert'"),
        ("encoder", {"model_type": "gpt2"}, "model_type of the encoder is 'gpt2'"),
        ("encoder", {"is_decoder": True}, "is_decoder is true in `encoder`"),
        ("decoder", {"cross_attention_hidden_size": 21}, "cross_attention_hidden_size"),
    ],
)
def test_invalid_models_of_an_encoder_and_a_decoder(
    part: str, changes: dict[str, Any], words: str, tmp_path: pathlib.Path
) -> None:
    golden, directory = written("pair_bert_bert", tmp_path)
    config = json.loads(golden.config)
    config[part] |= changes
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(PretrainedError, match=words):
        lm_research.from_pretrained(directory)


@pytest.mark.parametrize(
    "tensor", ["enc_to_dec_proj.weight", "decoder.bert.encoder.layer.0.crossattention.self.key.bias"]
)
def test_a_model_of_an_encoder_and_a_decoder_reports_missing_tensors(tensor: str, tmp_path: pathlib.Path) -> None:
    golden, directory = written("pair_bert_bert", tmp_path)
    tensors = golden_tensors(golden)
    del tensors[tensor]
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    with pytest.raises(PretrainedError, match=f"no tensor '{tensor}'"):
        lm_research.from_pretrained(directory)
