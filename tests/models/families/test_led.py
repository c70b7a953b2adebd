"""What LED refuses; its values are compared with transformers in tests/interop."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

import lm_research
from helpers import golden_models
from lm_research.errors import PretrainedError, UserError


@pytest.mark.parametrize("window", [3, [4, 8], [4, 8, 5]])
def test_windows_must_be_even_and_one_per_layer(window: object, tmp_path: pathlib.Path) -> None:
    golden_models.write_checkpoint(tmp_path, golden_models.load_golden(golden_models.golden_path("led_generation")))
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attention_window": window}))
    with pytest.raises(
        PretrainedError, match="attention_window is .* an even number, or one for each of the 3 encoder"
    ):
        lm_research.from_pretrained(tmp_path)


def test_models_without_global_attention_refuse_its_mask(tmp_path: pathlib.Path) -> None:
    golden_models.write_checkpoint(tmp_path, golden_models.load_golden(golden_models.golden_path("t5_generation")))
    lm = lm_research.from_pretrained(tmp_path)
    inputs = {"input_ids": np.array([[5, 6, 7]]), "global_attention_mask": np.array([[1, 0, 0]])}
    with pytest.raises(UserError, match="no global attention"):
        lm(**inputs, decoder_input_ids=np.array([[0]]))
    with pytest.raises(UserError, match="no global attention"):
        lm.generate(**inputs)


def test_a_mask_of_another_shape_is_refused(tmp_path: pathlib.Path) -> None:
    golden_models.write_checkpoint(tmp_path, golden_models.load_golden(golden_models.golden_path("led_generation")))
    lm = lm_research.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="different shapes"):
        lm.generate(input_ids=np.array([[5, 6, 7]]), global_attention_mask=np.array([[1, 0]]))
