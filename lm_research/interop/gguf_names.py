"""Names of modules in GGUF files -> those of transformers; the first "{}" is the index of a block, the second that of an expert.

llama.cpp's names are in gguf-py/gguf/constants.py and tensor_mapping.py.
"""

from __future__ import annotations

from collections.abc import Mapping

Names = Mapping[str, str]


def _blocks(prefix: str, names: Names, block: str = "blk.{}") -> dict[str, str]:
    return {f"{block}.{ours}": f"{prefix}.{theirs}" for ours, theirs in names.items()}


_LLAMA_BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
QWEN_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
MIXTRAL_EXPERTS = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
}
SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def llama_names(**changes: str) -> dict[str, str]:
    """Map Llama's modules, and those in `changes` of a block."""
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    return outer | _blocks("model.layers.{}", _LLAMA_BLOCK | changes)


FUSED = {  # those of BLOOM, and of Falcon
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    **_blocks(
        "transformer.h.{}",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attention.query_key_value",
            "attn_output": "self_attention.dense",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
    ),
}
GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    **_blocks(
        "transformer.h.{}",
        {
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
    ),
}
GPT_NEOX = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
    **_blocks(
        "gpt_neox.layers.{}",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
    ),
}
PHI = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.final_layernorm",
    "output": "lm_head",
    **_blocks(
        "model.layers.{}",
        {
            "attn_norm": "input_layernorm",
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.dense",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
        },
    ),
}

_BERT_OUTER = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": "embeddings.position_embeddings",
}
BERT = {
    **_BERT_OUTER,
    "token_embd_norm": "embeddings.LayerNorm",
    **_blocks(
        "encoder.layer.{}",
        {
            "attn_q": "attention.self.query",
            "attn_k": "attention.self.key",
            "attn_v": "attention.self.value",
            "attn_output": "attention.output.dense",
            "attn_output_norm": "attention.output.LayerNorm",
            "ffn_up": "intermediate.dense",
            "ffn_down": "output.dense",
            "layer_output_norm": "output.LayerNorm",
        },
    ),
}
NOMIC_BERT = {
    **_BERT_OUTER,
    "token_embd_norm": "emb_ln",
    **_blocks(
        "encoder.layers.{}",
        {
            "attn_qkv": "attn.Wqkv",
            "attn_output": "attn.out_proj",
            "attn_output_norm": "norm1",
            "ffn_up": "mlp.fc11",
            "ffn_gate": "mlp.fc12",
            "ffn_down": "mlp.fc2",
            "layer_output_norm": "norm2",
        },
    ),
}


def t5_names(gated: bool) -> dict[str, str]:
    """Map T5's modules; a gated feed-forward layer has two first matrices."""

    def stack(side: str, ours: str, feed_forward: int) -> dict[str, str]:
        attention, inner = "layer.0.SelfAttention", f"layer.{feed_forward}.DenseReluDense"
        return {
            f"{ours}.output_norm": f"{side}.final_layer_norm",
            **_blocks(
                f"{side}.block.{{}}",
                {
                    "attn_norm": "layer.0.layer_norm",
                    **{f"attn_{one}": f"{attention}.{one}" for one in "qkv"},
                    "attn_o": f"{attention}.o",
                    "attn_rel_b": f"{attention}.relative_attention_bias",
                    "cross_attn_norm": "layer.1.layer_norm",
                    **{f"cross_attn_{one}": f"layer.1.EncDecAttention.{one}" for one in "qkvo"},
                    "cross_attn_rel_b": "layer.1.EncDecAttention.relative_attention_bias",
                    "ffn_norm": f"layer.{feed_forward}.layer_norm",
                    "ffn_gate": f"{inner}.wi_0",
                    "ffn_up": f"{inner}.{'wi_1' if gated else 'wi'}",
                    "ffn_down": f"{inner}.wo",
                },
                f"{ours}.blk.{{}}",
            ),
        }

    return {"token_embd": "shared", "output": "lm_head", **stack("encoder", "enc", 1), **stack("decoder", "dec", 2)}


def falcon_names(two_norms: bool) -> Names:
    """Map Falcon's modules; its later layers have a norm for each branch."""
    norms = _blocks("transformer.h.{}", {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"})
    return FUSED | norms if two_norms else FUSED
