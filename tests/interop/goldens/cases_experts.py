"""Mixtures of experts."""

from case import Case, merged

MIXTRAL = {
    "vocab_size": 59,
    "hidden_size": 20,
    "intermediate_size": 15,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_COUNT = {name: value for name, value in MIXTRAL.items() if name not in ("num_local_experts", "head_dim")}
QWEN2 = merged(_COUNT, hidden_size=24, num_experts=5, moe_intermediate_size=9, shared_expert_intermediate_size=11)
QWEN2 |= {"decoder_sparse_step": 2, "num_hidden_layers": 5, "mlp_only_layers": [3]}
QWEN3 = merged(MIXTRAL, num_experts=5, moe_intermediate_size=9, mlp_only_layers=[1], num_hidden_layers=4)
QWEN3 = {name: value for name, value in QWEN3.items() if name != "num_local_experts"} | {"norm_topk_prob": True}
WINDOW = {"sliding_window": 4}
ROUTER = MIXTRAL | {"output_router_logits": True, "router_aux_loss_coef": 0.3}

CASES = [
    Case("mixtral_causal", "MixtralForCausalLM", MIXTRAL, labels="causal", deep=True),
    Case("mixtral_texts", "MixtralForCausalLM", MIXTRAL | WINDOW, length=11, masks="left left", new_tokens=9),
    Case("mixtral_window", "MixtralForCausalLM", MIXTRAL | WINDOW, length=11, labels="causal", slow=True),
    Case("mixtral_losses", "MixtralForCausalLM", MIXTRAL, labels="causal", steps=0.003),
    Case("mixtral_router", "MixtralForCausalLM", ROUTER, labels="causal", slow=True),
    Case("mixtral_model", "MixtralModel", MIXTRAL, slow=True),
    Case(
        "mixtral_sequence",
        "MixtralForSequenceClassification",
        MIXTRAL | {"num_labels": 3},
        labels="sequence",
        slow=True,
    ),
    Case("mixtral_question", "MixtralForQuestionAnswering", MIXTRAL, labels="span", slow=True),
    Case("mixtral_token", "MixtralForTokenClassification", MIXTRAL | {"num_labels": 3}, slow=True),
    Case("qwen2_moe_causal", "Qwen2MoeForCausalLM", QWEN2, labels="causal"),
    Case("qwen2_moe_all", "Qwen2MoeForCausalLM", QWEN2 | {"decoder_sparse_step": 1, "mlp_only_layers": []}, slow=True),
    Case("qwen2_moe_unbiased", "Qwen2MoeForCausalLM", QWEN2 | {"qkv_bias": False}, labels="causal", slow=True),
    Case("qwen2_moe_texts", "Qwen2MoeForCausalLM", QWEN2, masks="left left", new_tokens=9),
    Case(
        "qwen2_moe_window", "Qwen2MoeForCausalLM", QWEN2 | WINDOW | {"use_sliding_window": True}, length=11, slow=True
    ),
    Case("qwen2_moe_sequence", "Qwen2MoeForSequenceClassification", QWEN2 | {"num_labels": 3}, slow=True),
    Case("qwen2_moe_question", "Qwen2MoeForQuestionAnswering", QWEN2, labels="span", slow=True),
    Case("qwen3_moe_question", "Qwen3MoeForQuestionAnswering", QWEN3, labels="span", slow=True),
    Case("qwen3_moe_causal", "Qwen3MoeForCausalLM", QWEN3, labels="causal"),
    Case("qwen3_moe_texts", "Qwen3MoeForCausalLM", QWEN3, masks="left left", new_tokens=9),
    Case(
        "qwen3_moe_biases", "Qwen3MoeForCausalLM", QWEN3 | {"attention_bias": True, "norm_topk_prob": False}, slow=True
    ),
    Case(
        "qwen3_moe_window", "Qwen3MoeForCausalLM", QWEN3 | WINDOW | {"use_sliding_window": True}, length=11, slow=True
    ),
    Case("qwen3_moe_token", "Qwen3MoeForTokenClassification", QWEN3 | {"num_labels": 3}, slow=True),
]
for case in CASES:
    case.fused = True
