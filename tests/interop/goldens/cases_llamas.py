"""Decoders with most of Llama's layout, and every scaling of rotary positions."""

from case import Case, merged

SIZES = dict(
    vocab_size=37,
    hidden_size=30,
    intermediate_size=43,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=40,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
WIDE = dict(SIZES, head_dim=8)
THETA = {"rope_type": "default", "rope_theta": 300.0}
QWEN3 = dict(WIDE, rope_parameters=THETA, use_sliding_window=True, sliding_window=4, max_window_layers=1)
KINDS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
SMOLLM3 = dict(SIZES, num_hidden_layers=5, rope_parameters=THETA, no_rope_layer_interval=3)
SMOLLM3 |= dict(hidden_size=36, use_sliding_window=True, sliding_window=4)
OLMO2 = dict(SIZES, hidden_size=36, rope_parameters=THETA)
MINISTRAL = dict(WIDE, rope_parameters=THETA, sliding_window=4, num_hidden_layers=4, layer_types=KINDS)
OLMO3 = dict(OLMO2, sliding_window=4, num_hidden_layers=5)
OLMO3 |= dict(rope_parameters={"full_attention": YARN, "sliding_attention": THETA})
GRANITE = dict(SIZES, hidden_size=36, rope_parameters=THETA, embedding_multiplier=3.0, logits_scaling=0.7)
GRANITE |= dict(residual_multiplier=0.6, attention_multiplier=0.3)
STARCODER2 = dict(SIZES, hidden_size=36, rope_parameters=THETA, sliding_window=4, initializer_range=0.05)
LONG = {"rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 5.0, 9.0]}
PHI3 = dict(SIZES, hidden_size=36, rope_parameters=LONG, original_max_position_embeddings=12)
PHI = dict(SIZES, hidden_size=48, rope_parameters={**THETA, "partial_rotary_factor": 0.5})
OLD = dict(torch_dtype="float32", hidden_act="silu", rope_theta=100.0)

TEXTS = dict(masks="left left", new_tokens=9)
CASES = [
    Case("qwen3_causal", "Qwen3ForCausalLM", QWEN3, "causal", length=13),
    Case("qwen3_texts", "Qwen3ForCausalLM", merged(QWEN3, num_hidden_layers=4, layer_types=KINDS), **TEXTS),
    Case("qwen3_causal_biases", "Qwen3ForCausalLM", merged(QWEN3, attention_bias=True), "causal", slow=True),
    Case("qwen3_causal_tied", "Qwen3ForCausalLM", merged(QWEN3, tie_word_embeddings=True), "causal", slow=True),
    Case("qwen3_causal_full", "Qwen3ForCausalLM", merged(QWEN3, use_sliding_window=False), length=12, slow=True),
    Case(
        "qwen3_causal_yarn_old",
        "Qwen3ForCausalLM",
        merged(QWEN3, use_sliding_window=False, rope_parameters=YARN),
        length=30,
        text=merged(
            WIDE,
            **OLD,
            architectures=["Qwen3ForCausalLM"],
            model_type="qwen3",
            max_window_layers=3,
            rope_scaling={key: value for key, value in YARN.items() if key != "rope_theta"},
        ),
        slow=True,
    ),
    Case("qwen3_model", "Qwen3Model", QWEN3, slow=True),
    Case("qwen3_sequence", "Qwen3ForSequenceClassification", merged(QWEN3, num_labels=3), "sequence", slow=True),
    Case("qwen3_token", "Qwen3ForTokenClassification", merged(QWEN3, num_labels=4), "classes", slow=True),
    Case("qwen3_question", "Qwen3ForQuestionAnswering", QWEN3, "span", masks="right right", slow=True),
    Case("smollm3_causal", "SmolLM3ForCausalLM", SMOLLM3, "causal", length=13),
    Case("smollm3_texts", "SmolLM3ForCausalLM", SMOLLM3, **TEXTS),
    Case(
        "smollm3_causal_biases",
        "SmolLM3ForCausalLM",
        merged(
            SMOLLM3,
            no_rope_layers=[0, 1, 1, 0, 1, 0],
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=False,
            use_sliding_window=False,
        ),
        "causal",
        length=12,
        slow=True,
    ),
    Case(
        "smollm3_causal_kinds",
        "SmolLM3ForCausalLM",
        merged(SMOLLM3, num_hidden_layers=4, layer_types=KINDS),
        "causal",
        length=12,
        slow=True,
    ),
    Case("smollm3_model", "SmolLM3Model", SMOLLM3, slow=True),
    Case("smollm3_sequence", "SmolLM3ForSequenceClassification", merged(SMOLLM3, num_labels=3), "sequence", slow=True),
    Case("smollm3_token", "SmolLM3ForTokenClassification", merged(SMOLLM3, num_labels=3), "classes", slow=True),
    Case("smollm3_question", "SmolLM3ForQuestionAnswering", SMOLLM3, "span", masks="right right", slow=True),
    Case("olmo2_causal", "Olmo2ForCausalLM", OLMO2, "causal", length=11),
    Case("olmo2_texts", "Olmo2ForCausalLM", OLMO2, **TEXTS),
    Case("olmo2_losses", "Olmo2ForCausalLM", OLMO2, "causal", steps=0.02),
    Case(
        "olmo2_causal_biases",
        "Olmo2ForCausalLM",
        merged(OLMO2, attention_bias=True, tie_word_embeddings=True, num_key_value_heads=None),
        "causal",
        slow=True,
    ),
    Case("olmo2_model", "Olmo2Model", OLMO2, slow=True),
    Case("olmo2_sequence", "Olmo2ForSequenceClassification", merged(OLMO2, num_labels=3), "sequence", slow=True),
    Case("granite_causal", "GraniteForCausalLM", GRANITE, "causal", length=11),
    Case("granite_texts", "GraniteForCausalLM", GRANITE, **TEXTS),
    Case(
        "granite_causal_biases",
        "GraniteForCausalLM",
        merged(GRANITE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=10),
        "causal",
        slow=True,
    ),
    Case("granite_causal_plain", "GraniteForCausalLM", merged(SIZES, hidden_size=36), "causal", slow=True),
    Case("granite_model", "GraniteModel", GRANITE, slow=True),
    Case("starcoder2_causal", "Starcoder2ForCausalLM", STARCODER2, "causal", length=13),
    Case("starcoder2_texts", "Starcoder2ForCausalLM", STARCODER2, **TEXTS),
    Case(
        "starcoder2_causal_plain",
        "Starcoder2ForCausalLM",
        merged(STARCODER2, use_bias=False, sliding_window=None, tie_word_embeddings=False, hidden_act="relu"),
        "causal",
        slow=True,
    ),
    Case("starcoder2_model", "Starcoder2Model", STARCODER2, slow=True),
    Case(
        "starcoder2_sequence",
        "Starcoder2ForSequenceClassification",
        merged(STARCODER2, num_labels=3),
        "sequence",
        slow=True,
    ),
    Case(
        "starcoder2_token", "Starcoder2ForTokenClassification", merged(STARCODER2, num_labels=3), "classes", slow=True
    ),
    Case("phi3_causal", "Phi3ForCausalLM", PHI3, "causal", length=14),
    Case("phi3_texts", "Phi3ForCausalLM", PHI3, **TEXTS),
    Case("phi3_losses", "Phi3ForCausalLM", PHI3, "causal", steps=0.02, slow=True),
    Case("phi3_causal_short", "Phi3ForCausalLM", PHI3, "causal", length=12, slow=True),
    Case("phi3_texts_window", "Phi3ForCausalLM", merged(PHI3, sliding_window=5), **TEXTS, slow=True),
    Case(
        "phi3_causal_old",
        "Phi3ForCausalLM",
        merged(PHI3, sliding_window=4, tie_word_embeddings=True),
        "causal",
        length=14,
        text=merged(
            PHI3,
            **OLD,
            architectures=["Phi3ForCausalLM"],
            model_type="phi3",
            rope_parameters=None,
            rope_scaling={"type": "longrope", "short_factor": LONG["short_factor"], "long_factor": LONG["long_factor"]},
            sliding_window=4,
            tie_word_embeddings=True,
        ),
        slow=True,
    ),
    Case(
        "phi3_causal_partial",
        "Phi3ForCausalLM",
        merged(PHI3, rope_parameters={**THETA, "partial_rotary_factor": 0.7}, head_dim=12),
        "causal",
        slow=True,
    ),
    Case("phi3_model", "Phi3Model", PHI3, slow=True),
    Case("phi3_sequence", "Phi3ForSequenceClassification", merged(PHI3, num_labels=3), "sequence", slow=True),
    Case("phi3_token", "Phi3ForTokenClassification", merged(PHI3, num_labels=3), "classes", slow=True),
    Case("phi_causal", "PhiForCausalLM", PHI, "causal", length=11),
    Case("phi_texts", "PhiForCausalLM", PHI, **TEXTS),
    Case("phi_losses", "PhiForCausalLM", PHI, "causal", steps=0.02, slow=True),
    Case("phi_causal_norms", "PhiForCausalLM", merged(PHI, qk_layernorm=True), "causal", slow=True),
    Case("phi_causal_tied", "PhiForCausalLM", merged(PHI, tie_word_embeddings=True), "causal", slow=True),
    Case(
        "phi_causal_old",
        "PhiForCausalLM",
        merged(PHI, num_key_value_heads=None, rope_parameters={"rope_type": "default", "rope_theta": 100.0}),
        "causal",
        text=merged(
            {name: value for name, value in PHI.items() if name not in ("rope_parameters", "num_key_value_heads")},
            architectures=["PhiForCausalLM"],
            model_type="phi",
            rope_theta=100.0,
            partial_rotary_factor=0.5,
            rope_scaling=None,
            hidden_act="gelu_new",
        ),
        slow=True,
    ),
    Case("phi_model", "PhiModel", PHI, slow=True),
    Case("phi_sequence", "PhiForSequenceClassification", merged(PHI, num_labels=3), "sequence", slow=True),
    Case("phi_token", "PhiForTokenClassification", merged(PHI, num_labels=3), "classes", slow=True),
    Case("ministral_causal", "MinistralForCausalLM", MINISTRAL, "causal", length=13),
    Case("ministral_texts", "MinistralForCausalLM", MINISTRAL, **TEXTS),
    Case("ministral_question", "MinistralForQuestionAnswering", MINISTRAL, "span", masks="right right", slow=True),
    Case("olmo3_causal", "Olmo3ForCausalLM", OLMO3, "causal", length=13),
    Case("olmo3_texts", "Olmo3ForCausalLM", OLMO3, **TEXTS),
    Case(
        "olmo3_causal_old",
        "Olmo3ForCausalLM",
        OLMO3,
        "causal",
        length=20,
        text=merged(
            {name: value for name, value in OLMO3.items() if name not in ("rope_parameters", "layer_types")},
            **OLD | dict(rope_theta=500000),
            architectures=["Olmo3ForCausalLM"],
            model_type="olmo3",
            rope_scaling={name: value for name, value in YARN.items() if name != "rope_theta"},
        ),
        slow=True,
    ),
    Case("mistral_texts", "MistralForCausalLM", merged(WIDE, sliding_window=4), **TEXTS, slow=True),
    Case("qwen2_texts", "Qwen2ForCausalLM", merged(QWEN3, max_window_layers=2), **TEXTS, slow=True),
    Case(
        "llama_yarn_texts",
        "LlamaForCausalLM",
        merged(WIDE, rope_parameters={**YARN, "original_max_position_embeddings": 6, "beta_fast": 2.0, "mscale": 0.8}),
        **TEXTS,
        slow=True,
    ),
    Case(
        "llama_dynamic_texts",
        "LlamaForCausalLM",
        merged(WIDE, rope_parameters=DYNAMIC, max_position_embeddings=7),
        **TEXTS,
    ),
    Case(
        "llama_causal_dynamic",
        "LlamaForCausalLM",
        merged(WIDE, rope_parameters=DYNAMIC, max_position_embeddings=7),
        "causal",
        length=12,
        slow=True,
    ),
]
