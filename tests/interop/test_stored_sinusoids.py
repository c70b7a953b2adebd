"""Tables of sinusoidal positions in files: written back as they are, and refused if they are others."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lm_research
from helpers import golden_models
from lm_research.errors import PretrainedError
from lm_research.interop.huggingface import hf_config, with_tokens
from lm_research.models.families import FAMILIES, define_model, family_of


def table(rows: int, width: int) -> np.ndarray:
    """Vaswani et al. 2017, section 3.5, sines first: element j of position n is that of the angle n / 10000^(2 (j // 2) / D)."""
    angles = [[n / 10000 ** (2 * (j // 2) / width) for j in range(width)] for n in range(rows)]
    sines, cosines = (
        [list(map(wave, row[first::2])) for row in angles] for first, wave in enumerate((math.sin, math.cos))
    )
    return np.concatenate([sines, cosines], axis=1).astype(np.float32)


@pytest.mark.parametrize("name", ["pegasus_generation", "marian_translation"])
def test_stored_tables_are_written_back_and_others_are_refused(name: str, tmp_path: pathlib.Path) -> None:
    golden_models.write_checkpoint(tmp_path / "in", golden_models.load_golden(golden_models.golden_path(name)))
    file = tmp_path / "in" / "model.safetensors"
    tensors = load_file(file)
    stored = {f"model.{stack}.embed_positions.weight": table(13, 24) for stack in ("encoder", "decoder")}
    save_file(tensors | stored, file)
    lm = lm_research.from_pretrained(tmp_path / "in")
    assert lm.report.lines() == []
    lm.save_pretrained(tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == tensors.keys() | stored.keys()
    assert all(written[one].tobytes() == value.tobytes() for one, value in stored.items())

    stored["model.decoder.embed_positions.weight"][7, 3] += 0.01
    save_file(tensors | stored, file)
    with pytest.raises(
        PretrainedError, match="'model.decoder.embed_positions.weight' does not have the values of sinus"
    ):
        lm_research.from_pretrained(tmp_path / "in")


def test_numbers_of_sinusoidal_positions_follow_the_padding_token_of_the_files() -> None:
    """Positions of the trained model start at 2: a tokenizer's padding token 0 would move them to 1 in other readers."""
    definition = define_model(FAMILIES.make("m2m_100", hidden_size=16, num_heads=2, num_layers=1), 64)
    config = hf_config(definition, "m2m_100")
    assert with_tokens(config, "m2m_100", definition.arch, {"pad_token_id": 0, "eos_token_id": 5}) == config | {
        "eos_token_id": 5
    }


def test_the_table_of_a_pair_has_the_name_that_transformers_writes() -> None:
    """Of EncoderDecoderModel with a MarianForCausalLM, transformers 5.24."""
    assert family_of("bert2transformer").sinusoids == {"decoder": "decoder.model.decoder.embed_positions.weight"}
