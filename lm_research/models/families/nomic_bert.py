"""Nomic BERT (Nussbaum et al. 2024, arXiv:2402.01613): BERT with rotary positions and gated layers without biases."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Size
from lm_research.models.architecture import Architecture, from_flat
from lm_research.models.families import rotary
from lm_research.models.families.base import FAMILIES, Family
from lm_research.models.families.bert import FIELDS
from lm_research.models.families.common import ParamMapping, dense, given, norm, tensor, with_defaults, write_keys
from lm_research.models.families.encoder_weights import output_table
from lm_research.models.families.modernbert_format import fused_attention

# Key of files of the model's own code -> its key in transformers.
OLD_KEYS = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "resid_pdrop": "hidden_dropout_prob",
    "attn_pdrop": "attention_probs_dropout_prob",
    "rotary_emb_base": "rope_theta",
}
# Switches of the same files that transformers does not have.
OFF = (
    "causal prenorm parallel_block use_rms_norm qkv_proj_bias mlp_fc1_bias mlp_fc2_bias rotary_emb_interleaved".split()
)


class NomicBert(Family):
    """BERT with rotary positions and gated layers without biases (Nussbaum et al. 2024)."""

    # Nussbaum et al. 2024, section 3: BERT base, 137M parameters with a vocabulary of 30,528.
    sizes: Mapping[str, Mapping[str, Any]] = {
        "base": dict(num_layers=12, hidden_size=768, num_heads=12, intermediate_size=3072)
    }
    traits: dict[str, Any] = dict(
        norm="post",
        embedding_norm=True,
        positions="rotary",
        gated=True,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
    )
    run_traits: dict[str, Any] = dict(num_types=2, norm_epsilon=1e-12, activation="silu", rotary_theta=1000.0)

    model_types = {"nomic_bert": "NomicBert"}
    classes = {
        "ForMaskedLM": "masked_lm",
        "ForPreTraining": "masked_lm",  # the name in the model's own code
        "ForSequenceClassification": "classification",
        "ForTokenClassification": "token_classification",
        "Model": "none",
    }
    config_fields = with_defaults(
        FIELDS,
        {
            "vocab_size": 30528,
            "hidden_act": "silu",
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "max_position_embeddings": 2048,
        },
    )
    other_keys = {"head_dim": Size, **rotary.KEYS}
    required: Mapping[str, Any] = dict.fromkeys(OFF, False) | {
        "activation_function": "swiglu",
        "rotary_emb_fraction": 1.0,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
    }

    base_prefix = "nomic_bert."
    other_prefixes: tuple[str, ...] = ("bert.",)  # of the model's own code
    redundant = (r"rotary_emb\.inv_freq$",)
    modules: tuple[tuple[str, tuple[str, ...]], ...] = (
        (r"^bert\.", ("nomic_bert.",)),
        (r"encoder\.layers\.", ("layers.",)),
        (r"emb_ln", ("embeddings.LayerNorm",)),
        (r"attn\.Wqkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        (r"attn\.out_proj", ("self_attn.o_proj",)),
        (r"fc11", ("up_proj",)),
        (r"fc12", ("gate_proj",)),
        (r"fc2", ("down_proj",)),
        (r"norm1", ("post_attention_layernorm",)),
        (r"norm2", ("post_mlp_layernorm",)),
    )

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        own = "n_embd" in hf  # a file of the model's own code
        fields = self.read({OLD_KEYS.get(name, name): value for name, value in hf.items()} if own else hf)
        return from_flat(**fields | self.traits)

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields, theta = super().read(hf), self.run_traits["rotary_theta"]
        rate = hf.get("classifier_dropout")
        rope = rotary.read_rotary(hf, max_length=fields["max_length"], theta=theta)
        return fields | rope | {"head_size": given(hf, "head_dim", 0), "classifier_dropout_rate": rate}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        rope = rotary.write_rotary(arch.layers[0])
        more = {
            "rope_parameters": rope,
            "head_dim": arch.head_width,
            "classifier_dropout": arch.classifier_dropout_rate,
        }
        return write_keys(arch, self.config_fields) | more

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        ours, theirs, predictions = "encoder/layers", "@encoder.layers.{}", "cls.predictions"
        return (
            *tensor("encoder/embeddings/tokens", "@embeddings.word_embeddings.weight"),
            *tensor("encoder/embeddings/types", "@embeddings.token_type_embeddings.weight"),
            *norm("encoder/embeddings/norm", "@emb_ln"),
            *fused_attention(f"{ours}/attention", f"{theirs}.attn.Wqkv"),
            *dense(f"{ours}/attention/output", f"{theirs}.attn.out_proj", inputs=2),
            *norm(f"{ours}/attention_norm", f"{theirs}.norm1"),
            *dense(f"{ours}/feed_forward/up", f"{theirs}.mlp.fc11"),
            *dense(f"{ours}/feed_forward/gate", f"{theirs}.mlp.fc12"),
            *dense(f"{ours}/feed_forward/down", f"{theirs}.mlp.fc2"),
            *norm(f"{ours}/feed_forward_norm", f"{theirs}.norm2"),
            *dense("pooler/dense", "@pooler.dense"),
            *dense("masked_lm/dense", f"{predictions}.transform.dense"),
            *norm("masked_lm/norm", f"{predictions}.transform.layer_norm"),
            *output_table(predictions, f"{predictions}.decoder", arch),
            *dense("classifier", "classifier"),
        )


FAMILIES.register("nomic_bert")(NomicBert())
