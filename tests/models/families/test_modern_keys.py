"""Keys of config.json of encoders of today: earlier spellings, what follows from the weights, and what is refused."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lm_research
from helpers.golden_models import golden_path, load_golden, write_checkpoint
from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture
from lm_research.models.families import FAMILIES, model_types
from lm_research.models.limits import invalid_reason


def read(kind: str, names: tuple[str, ...] = (), **keys: Any) -> Architecture:
    return FAMILIES[model_types()[kind]].from_hf({"model_type": kind, **keys}, set(names))


def test_nomic_berts_own_keys_are_those_of_transformers() -> None:
    """The keys of nomic-ai/nomic-bert-2048's config.json, whose code came before the class in transformers."""
    switches = dict.fromkeys(("causal", "prenorm", "qkv_proj_bias", "mlp_fc1_bias", "rotary_emb_interleaved"), False)
    old = read(
        "nomic_bert",
        **dict(n_embd=24, n_layer=3, n_head=2, n_inner=40, n_positions=99, layer_norm_epsilon=1e-3, resid_pdrop=0.2),
        **dict(
            attn_pdrop=0.1, rotary_emb_base=50, rotary_emb_fraction=1.0, activation_function="swiglu", vocab_size=61
        ),
        **dict(rotary_emb_scale_base=None, rotary_scaling_factor=None, type_vocab_size=2, **switches),
    )
    assert old == read(
        "nomic_bert",
        **dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=40, layer_norm_eps=1e-3),
        **dict(max_position_embeddings=99, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1, vocab_size=61),
        rope_parameters={"rope_type": "default", "rope_theta": 50},
    )


def test_nomic_berts_own_prefix_is_read(tmp_path: pathlib.Path) -> None:
    """nomic-ai/nomic-bert-2048's class for pre-training calls its stack bert."""
    golden = load_golden(golden_path("nomic_bert_masked"))
    write_checkpoint(tmp_path / "theirs", golden)
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    expected = np.asarray(lm_research.from_pretrained(tmp_path / "theirs")(**golden.inputs)["logits"])
    save_file(
        {name.replace("nomic_bert.", "bert."): x for name, x in tensors.items()}, tmp_path / "theirs/model.safetensors"
    )
    lm = lm_research.from_pretrained(tmp_path / "theirs")
    assert lm.report.lines() == []
    np.testing.assert_array_equal(np.asarray(lm(**golden.inputs)["logits"]), expected)


def test_modernberts_layers_without_keys() -> None:
    """Warner et al. 2024, section 2.1.2: every third layer is global, from the first on; 128 positions; bases of 160,000 and 10,000."""
    kinds = [(spec.window, spec.rotary_theta) for spec in read("modernbert").layer_specs]
    assert kinds == [(128, 1e4) if number % 3 else (0, 1.6e5) for number in range(22)]
    assert [spec.attention_norm for spec in read("modernbert").layer_specs] == [False] + 21 * [True]
    # Half of local_attention on each side; a decoder's window is that half, the position itself included.
    assert {spec.window for spec in read("modernbert-decoder", local_attention=7).layer_specs} == {0, 3}


@pytest.mark.parametrize(("gate", "average"), [(False, False), (True, True)])
def test_gpt_berts_parts_follow_from_the_names_of_its_weights(gate: bool, average: bool) -> None:
    """The authors' config.json is the same for model.py and model_extra.py."""
    names = ["transformer.attention_layers.0.in_proj_vg.weight"] * gate + ["transformer.dwa_modules.alphas.0"] * average
    arch = read("gpt_bert", tuple(names), num_hidden_layers=2)
    assert (arch.layers[0].attention_gate, arch.depth_weights) == ("gelu" if gate else "", average)


def test_gpt_bert_is_read_as_either_model(tmp_path: pathlib.Path) -> None:
    for name in ("gpt_bert_masked", "gpt_bert_texts"):
        write_checkpoint(tmp_path / name, load_golden(golden_path(name)))
        for head, causal in (("masked_lm", False), ("causal_lm", True)):
            lm = lm_research.from_pretrained(tmp_path / name, head=head)
            assert lm.definition.arch.causal == causal and lm.report.lines() == []


@pytest.mark.parametrize(
    ("kind", "keys", "words"),
    [
        ("modernbert", dict(sparse_pred_ignore_index=0), "sparse_pred_ignore_index is 0"),
        (
            "modernbert",
            dict(layer_types=["full_attention"] * 3),
            "layer_types has 3 entries, but num_hidden_layers is 22",
        ),
        ("modernbert", dict(layer_types=["chunked_attention"] * 22), "layer_types"),
        ("modernbert", dict(local_attention=0), "local_attention is 0"),
        ("modernbert", dict(classifier_pooling="max"), "classifier_pooling"),
        ("modernbert", dict(hidden_activation="mish"), "hidden_activation is 'mish'"),
        (
            "modernbert",
            dict(rope_parameters={"full_attention": {"rope_type": "odd"}}),
            "rope_parameters: full_attention",
        ),
        ("modernbert", dict(rope_parameters={"rope_type": "default"}), "rope_parameters"),
        ("modernbert-decoder", dict(local_attention=1), "a layer has attention=window, but window=0"),
        ("nomic_bert", dict(activation_function="gelu"), "activation_function is 'gelu'"),
        ("nomic_bert", dict(rotary_scaling_factor=2.0), "rotary_scaling_factor is 2.0"),
        ("nomic_bert", dict(prenorm=True), "prenorm is True"),
        ("eurobert", dict(classifier_pooling="cls"), "classifier_pooling"),
        ("neobert", dict(ngpt=True), "ngpt is True"),
        ("neobert", dict(hidden_act="gelu"), "hidden_act is 'gelu'"),
        ("neobert", dict(rope=False), "rope is False"),
        ("gpt_bert", dict(position_bucket_size=1024), "a quarter of the rows are single distances"),
    ],
)
def test_what_is_not_supported_is_refused_by_key(kind: str, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(PretrainedError, match=words):
        if reason := invalid_reason(read(kind, **keys)):
            raise PretrainedError(reason)
