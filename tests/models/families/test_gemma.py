"""What files of Gemma, Gemma 3 and T5Gemma say that is refused, and masks that T5Gemma makes itself."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

import lm_research
from helpers.golden_models import golden_path, load_golden, write_checkpoint
from lm_research.errors import PretrainedError
from lm_research.models.families import FAMILIES
from lm_research.tasks.generation import read_init_settings


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("gemma2", {"layer_types": ["full_attention"]}, "layer_types has 1 entries"),
        ("gemma2", {"sliding_window": None}, "no sliding_window is in use"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (
            "gemma3",
            {"rope_parameters": {"full_attention": 3}},
            "rope_parameters: full_attention is 3, but it must be an object",
        ),
        ("t5gemma", {"is_encoder_decoder": False}, "is_encoder_decoder is false, a classifier of the encoder's states"),
        ("t5gemma", {"encoder": {"hidden_size": "wide"}}, "hidden_size"),
        ("t5gemma2", {"dropout_rate": 2.0}, "dropout_rate"),
        ("t5gemma2", {"encoder": {"text_config": "x"}}, "config.json: encoder: text_config"),
        ("gemma3_multimodal", {"text_config": []}, "text_config"),
    ],
)
def test_unsupported_values_are_refused_by_their_key(family: str, changes: dict[str, Any], words: str) -> None:
    kind = next(iter(FAMILIES[family].model_types))
    with pytest.raises(PretrainedError, match=words):
        FAMILIES[family].from_hf({"model_type": kind, **changes}, set())


def test_defaults_are_those_of_the_configuration_classes() -> None:
    """Transformers 5.24: Gemma2Config(), Gemma3TextConfig() and the two stacks of T5Gemma2Config()."""
    second, third = (
        FAMILIES[name].from_hf({"model_type": kind}, set())
        for name, kind in (("gemma2", "gemma2"), ("gemma3", "gemma3_text"))
    )
    assert [spec.window for spec in second.layer_specs] == [4096, 0] * 13
    first = second.layer_specs[0]
    assert (second.logit_cap, first.score_cap, first.score_scale) == (30, 50, 256**-0.5)
    assert [bool(spec.window) for spec in third.layer_specs] == ([True] * 5 + [False]) * 4 + [True] * 2
    assert {spec.rotary_theta for spec in third.layer_specs if spec.window} == {1e4}
    assert {spec.rotary_theta for spec in third.layer_specs if not spec.window} == {1e6}
    pair = FAMILIES["t5gemma2"].from_hf({"model_type": "t5gemma2"}, set())
    near = pair.source.layer_specs[
        0
    ]  # a window of 4,096 in total: 2,047 positions before the query's and 2,048 after it
    assert (near.window // 2, near.window_ahead) == (2047, 2048)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("family", ["t5gemma", "t5gemma2"])
def test_windows_of_encoders_are_written_as_they_were_read(family: str, width: int) -> None:
    stack = {"sliding_window": width, "num_hidden_layers": 3}
    hf = {"encoder": {"text_config": stack, **stack}, "decoder": stack}
    arch = FAMILIES[family].from_hf({"model_type": family, **hf}, set())
    encoder = FAMILIES[family].to_hf(arch)["encoder"]
    assert encoder.get("text_config", encoder)["sliding_window"] == width


def test_padding_is_attended_to_without_a_mask(tmp_path: pathlib.Path) -> None:
    """T5Gemma 2 in transformers has no make_default_2d_attention_mask; T5Gemma has it, see the golden t5gemma_unmasked."""
    golden = load_golden(golden_path("t5gemma2_generation"))
    write_checkpoint(tmp_path, golden)
    lm = lm_research.from_pretrained(tmp_path)
    tokens, targets = golden.inputs["input_ids"], np.array([[2, 5, 9]] * 3)
    inputs = dict(input_ids=tokens, decoder_input_ids=targets)
    whole = np.asarray(lm(**inputs, attention_mask=np.ones_like(tokens))["logits"])
    np.testing.assert_array_equal(np.asarray(lm(**inputs)["logits"]), whole)


def test_the_decoder_begins_with_bos(tmp_path: pathlib.Path) -> None:
    """transformers: `_shift_right` of T5Gemma begins with the decoder's bos_token_id, here 2, and its files have no decoder_start_token_id."""
    golden = load_golden(golden_path("t5gemma_generation"))
    assert "decoder_start_token_id" not in json.loads(golden.config)
    write_checkpoint(tmp_path, golden)
    lm = lm_research.from_pretrained(tmp_path)
    labels = golden.inputs["labels"]
    shifted = np.concatenate([np.full((3, 1), 2), np.where(labels == -100, 0, labels)[:, :-1]], axis=1)
    common = {name: golden.inputs[name] for name in ("input_ids", "attention_mask")}
    assert read_init_settings(str(tmp_path))["decoder_start_token_id"] == 2  # in fine-tuning
    given = lm(**common, decoder_input_ids=shifted)["logits"]
    np.testing.assert_array_equal(lm(**common, labels=labels)["logits"], given)
