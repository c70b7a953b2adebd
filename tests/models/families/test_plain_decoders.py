"""Decoders of 2021 to 2023: what their config.json files may say, and models that runs define.

Expected values are those of configuration_*.py and modeling_*.py of transformers 5.24.
"""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
import pytest

from helpers import tiny
from lm_research.errors import PretrainedError
from lm_research.interop.huggingface import hf_config, with_tokens
from lm_research.models.families import FAMILIES, define_model
from lm_research.models.limits import invalid_reason, num_parameters
from lm_research.pretrained import LanguageModel, from_pretrained
from lm_research.trees import flatten

SHAPE = dict(hidden_size=16, num_layers=3, num_heads=2, intermediate_size=64, max_length=32, dropout_rate=0.0)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gpt_neo", dict(attention_types=[[["global"], 23]]), "attention_types describes 23 layers, but num_layers is 24"),
        ("gpt_neo", dict(attention_types=[[["near"], 24]]), "attention_types"),
        ("gptj", dict(rotary_dim=258), "rotary_dim is 258, but heads are 256 wide"),
        ("gptj", dict(rotary_dim=63), "rotary_dim is 63"),
        ("bloom", dict(n_inner=100), "n_inner is 100, which is not supported"),
        ("xglm", dict(add_cross_attention=True), "add_cross_attention is True, which is not supported"),
        ("falcon", dict(new_decoder_architecture=True, parallel_attn=False), "parallel_attn is False"),
        ("falcon", dict(num_ln_in_parallel_attn=2), "num_ln_in_parallel_attn is 2"),
        ("falcon", dict(multi_query=False, num_kv_heads=1), "num_kv_heads is 1, which is not possible"),
        ("falcon", dict(apply_residual_connection_post_layernorm=True), "apply_residual_connection_post_layernorm is True"),
        ("mpt", dict(attn_config=dict(alibi=False)), "attn_config: alibi is False, which is not supported"),
        ("mpt", dict(attn_config=dict(alibi_bias_max=4)), "attn_config: alibi_bias_max is 4"),
        ("mpt", dict(attn_config=dict(qk_ln=True)), "attn_config: qk_ln is True"),
        ("mpt", dict(attn_config=dict(attn_type="multiquery_attention")), "attn_config: attn_type is 'multiquery_attention'"),
        ("mpt", dict(no_bias=False), "no_bias is False"),
        ("mpt", dict(logit_scale=0.5), "logit_scale is 0.5"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_key(family: str, changes: dict[str, Any], words: str) -> None:
    FAMILIES[family].from_hf({}, set())
    with pytest.raises(PretrainedError, match=f"config.json: .*{words}"):
        FAMILIES[family].from_hf(changes, set())


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("gpt_neo", dict(num_layers="num_hidden_layers", num_heads="num_attention_heads")),
        ("gptj", dict(n_embd="hidden_size", n_head="num_attention_heads", n_positions="max_position_embeddings")),
        ("bloom", dict(n_layer="num_hidden_layers", n_head="num_attention_heads")),
        ("xglm", dict(d_model="hidden_size", attention_heads="num_attention_heads", num_layers="num_hidden_layers")),
        ("mpt", dict(d_model="hidden_size", n_heads="num_attention_heads", n_layers="num_hidden_layers")),
    ],
)
def test_keys_have_the_names_of_attribute_map_too(family: str, names: dict[str, str]) -> None:
    written = FAMILIES[family].to_hf(define_model(FAMILIES.make(family, **SHAPE), 64).arch)
    renamed = {names.get(name, name): value for name, value in written.items()}
    assert renamed.keys() != written.keys()
    assert FAMILIES[family].from_hf(renamed, set()) == FAMILIES[family].from_hf(written, set())


def test_any_even_number_of_elements_of_a_head_may_be_rotated() -> None:
    for width in range(2, 130):
        for rotated in range(2, width + 1, 2):
            arch = FAMILIES["gptj"].from_hf(dict(n_embd=2 * width, n_head=2, rotary_dim=rotated), set())
            assert arch.layer_specs[0].rotary_width == rotated


@pytest.mark.parametrize(
    ("family", "changes", "paths"),
    [
        (
            "opt",
            dict(embedding_size=12, norm_position="post"),
            {"decoder/embeddings/projection/kernel": (12, 16), "decoder/output_projection/kernel": (16, 12)},
        ),
        ("falcon", dict(variant="two_norms"), {"decoder/layers/feed_forward_norm/scale": (3, 16)}),
        ("falcon", dict(variant="alibi", num_kv_heads=1), {"decoder/layers/attention/key/bias": (3, 1, 8)}),
        ("falcon", dict(num_heads=4, num_kv_heads=2), {"decoder/layers/attention/key/kernel": (3, 16, 2, 4)}),
        ("gpt_neox", dict(norm_position="pre"), {"decoder/layers/feed_forward_norm/scale": (3, 16)}),
    ],
)
def test_variants_of_a_run_are_stored(
    family: str, changes: dict[str, Any], paths: dict[str, tuple[int, ...]], tmp_path: pathlib.Path
) -> None:
    definition = define_model(FAMILIES.make(family, **SHAPE | changes), 64)
    shapes = flatten(definition.shapes)
    assert {path: shapes[path].shape for path in paths} == paths
    lm = LanguageModel(definition, tiny.random_params(definition, scale=0.1), family, {})
    lm.save_pretrained(tmp_path)
    inputs = {"input_ids": np.arange(12).reshape(2, 6) + 5}
    expected, found = (np.asarray(one(**inputs)["logits"]) for one in (lm, from_pretrained(tmp_path)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("mpt", dict(intermediate_size=63), "intermediate_size=64 for hidden_size=16 and num_heads=2, but this model has 63"),
        ("gpt_neo", dict(num_kv_heads=1), "num_kv_heads=2 .* has 1"),
        ("gpt2", dict(num_kv_heads=1), "num_kv_heads=2 .* has 1"),
        ("opt", dict(head_size=4), "num_heads x head_size=16 .* has 8"),
        ("falcon", dict(num_heads=4, num_kv_heads=2, variant="alibi"), "num_kv_heads of 1 or num_heads=4"),
    ],
)  # fmt: skip
def test_what_the_format_cannot_represent_is_refused(family: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PretrainedError, match=f"{words}.*[Ss]ave it as native"):
        hf_config(define_model(FAMILIES.make(family, **SHAPE | changes), 64), family)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("opt", dict(embedding_size=12)), ("opt", {}), ("gptj", {}), ("falcon", dict(num_kv_heads=1)), ("bloom", {}), ("xglm", {})],
)  # fmt: skip
def test_the_estimate_of_parameters_counts_all_matrices_and_tables(family: str, changes: dict[str, Any]) -> None:
    definition = define_model(FAMILIES.make(family, **SHAPE | changes), 64)
    counted = ("kernel", "tokens", "positions", "table")
    shapes = {path: leaf.shape for path, leaf in flatten(definition.shapes).items() if path.endswith(counted)}
    assert num_parameters(definition.arch) == sum(map(math.prod, shapes.values()))


@pytest.mark.parametrize(
    "changes",
    [
        dict(project_tokens=True),
        dict(project_tokens=True, embedding_projection=True, num_types=2),
        dict(project_tokens=True, embedding_projection=True, embedding_norm=True),
    ],
)
def test_projected_tokens_require_a_projection_and_nothing_else(changes: dict[str, Any]) -> None:
    arch = define_model(FAMILIES.make("gpt2", **SHAPE), 64).arch
    assert invalid_reason(arch.replace(project_tokens=True, embedding_projection=True)) == ""
    assert invalid_reason(arch.replace(**changes)).startswith("project_tokens=True requires embedding_projection=True")


def test_given_positions_count_from_0_where_the_mask_counts_them() -> None:
    """OPTLearnedPositionalEmbedding adds its offset to `position_ids` as to positions that it counts."""
    definition = define_model(FAMILIES.make("opt", **SHAPE), 64)
    lm = LanguageModel(definition, tiny.random_params(definition, scale=0.3), "opt", {})
    tokens = np.arange(10).reshape(2, 5) + 5
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    counted = lm(input_ids=tokens, attention_mask=mask)["logits"]
    given = lm(input_ids=tokens, attention_mask=mask, position_ids=np.array([[0, 1, 2, 3, 4], [-1, -1, 0, 1, 2]]))
    np.testing.assert_array_equal(counted, given["logits"])
    shifted = lm(input_ids=tokens, attention_mask=mask, position_ids=np.arange(10).reshape(2, 5))["logits"]
    assert np.abs(np.asarray(counted - shifted)[1, 2:]).max() > 1e-3


@pytest.mark.parametrize(("pad", "kept"), [(0, 0), (1, 1), (3, 1)])
def test_a_padding_id_that_would_erase_a_position_is_not_stored(pad: int, kept: int) -> None:
    """Row `pad_token_id` of XGLM's sinusoids is 0, and row 2 is position 0."""
    definition = define_model(FAMILIES.make("xglm", **SHAPE), 64)
    stored = with_tokens(hf_config(definition, "xglm"), "xglm", definition.arch, {"pad_token_id": pad})
    assert stored["pad_token_id"] == kept


@pytest.mark.parametrize(
    ("family", "changes"), [("opt", dict(embedding_size=12)), ("falcon", dict(variant="alibi", num_heads=16))]
)
def test_packed_documents_have_the_states_that_each_has_alone(family: str, changes: dict[str, Any]) -> None:
    definition = define_model(FAMILIES.make(family, **SHAPE | changes), 64)
    tokens_L = np.arange(12) + 5
    segments_L, positions_L = np.repeat([1, 2], [7, 5]), np.r_[:7, :5]
    padded_BL = np.array([tokens_L[:7], [*tokens_L[7:], 0, 0]])

    def run(params: Any) -> Any:
        decoder = definition.bind(params).decoder
        return decoder(tokens_L[None], segments_L[None], positions_L[None]), decoder(padded_BL, padded_BL > 0)

    packed_BLD, alone_BLD = tiny.jit(run)(tiny.random_params(definition, scale=0.3))
    np.testing.assert_allclose(packed_BLD[0, :7], alone_BLD[0], atol=2e-6)
    np.testing.assert_allclose(packed_BLD[0, 7:], alone_BLD[1, :5], atol=2e-6)
