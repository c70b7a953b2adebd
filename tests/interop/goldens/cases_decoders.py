"""Decoders of 2021 to 2023: GPT-Neo, GPT-J, GPT-NeoX, BLOOM, OPT, XGLM, Falcon, MPT.

Three layers at least; windows of 3 with 9 tokens; heads whose ALiBi slopes are not powers of two; every flag of biases, norms and ties once.
"""

from case import Case, merged

NEO = dict(
    vocab_size=61,
    hidden_size=20,
    num_layers=5,
    num_heads=5,
    intermediate_size=33,
    attention_types=[[["global", "local"], 2], [["local"], 1]],
    window_size=3,
    max_position_embeddings=24,
    bos_token_id=60,
    eos_token_id=60,
    pad_token_id=0,
)
GPTJ = dict(
    vocab_size=61,
    n_embd=30,
    n_layer=3,
    n_head=3,
    rotary_dim=6,
    n_inner=37,
    n_positions=24,
    bos_token_id=60,
    eos_token_id=60,
    pad_token_id=0,
)
NEOX = dict(
    vocab_size=61,
    hidden_size=36,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=41,
    max_position_embeddings=24,
    rope_parameters=dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=0.5),
    bos_token_id=60,
    eos_token_id=60,
    pad_token_id=0,
)
OLD_NEOX = merged(
    {name: value for name, value in NEOX.items() if name != "rope_parameters"},
    architectures=["GPTNeoXForCausalLM"],
    model_type="gpt_neox",
    rotary_pct=0.5,
    rotary_emb_base=700,
    rope_scaling={"type": "linear", "factor": 2.0},
    hidden_act="gelu_fast",
    layer_norm_eps=1e-3,
    tie_word_embeddings=False,
)
BLOOM = dict(vocab_size=61, hidden_size=24, n_layer=3, n_head=6, bos_token_id=60, eos_token_id=60, pad_token_id=3)
NORMED = merged(BLOOM, apply_residual_connection_post_layernorm=True)
OLD_BLOOM = dict(
    architectures=["BloomForCausalLM"],
    model_type="bloom",
    n_embed=24,
    n_inner=None,
    num_attention_heads=6,
    num_hidden_layers=3,
    vocab_size=61,
    offset_alibi=100,
    layer_norm_epsilon=1e-3,
    pad_token_id=3,
)
OPT = dict(
    vocab_size=61,
    hidden_size=20,
    num_hidden_layers=3,
    num_attention_heads=5,
    ffn_dim=33,
    max_position_embeddings=24,
    bos_token_id=2,
    eos_token_id=60,
    dropout=0.0,
)
PLAIN = merged(OPT, enable_bias=False, layer_norm_elementwise_affine=False)
NARROW = merged(OPT, word_embed_proj_dim=12, do_layer_norm_before=False)
XGLM = dict(
    vocab_size=61,
    d_model=21,
    num_layers=3,
    attention_heads=3,
    ffn_dim=33,
    max_position_embeddings=24,
    dropout=0.0,
    attention_dropout=0.0,
    decoder_start_token_id=2,
    eos_token_id=60,
)
FALCON = dict(
    vocab_size=61,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=6,
    ffn_hidden_size=37,
    max_position_embeddings=24,
    bos_token_id=60,
    eos_token_id=60,
    pad_token_id=0,
)
# Slopes of 12 heads are rounded to bfloat16. Eager attention of transformers 5.24 adds ALiBi twice, its default only once.
ALIBI = merged(FALCON, num_attention_heads=12, alibi=True, bias=True, multi_query=False, parallel_attn=False)
MPT = dict(
    vocab_size=61, d_model=24, n_layers=3, n_heads=6, max_seq_len=24, bos_token_id=60, eos_token_id=60, pad_token_id=3
)

CASES = [
    Case("gpt_neo_causal", "GPTNeoForCausalLM", NEO, "causal"),
    Case("gpt_neo_texts", "GPTNeoForCausalLM", NEO, masks="left left", new_tokens=9),
    Case("gptj_causal", "GPTJForCausalLM", GPTJ, "causal"),
    Case("gptj_texts", "GPTJForCausalLM", GPTJ, masks="left left", new_tokens=9),
    Case("gptj_losses", "GPTJForCausalLM", GPTJ, "causal", masks="right right", steps=1e-2),
    Case("gpt_neox_causal", "GPTNeoXForCausalLM", NEOX, "causal"),
    Case("gpt_neox_texts", "GPTNeoXForCausalLM", NEOX, masks="left left", new_tokens=9),
    Case("bloom_causal", "BloomForCausalLM", BLOOM, "causal"),
    Case("bloom_texts", "BloomForCausalLM", BLOOM, masks="left left", new_tokens=9),
    Case("bloom_losses", "BloomForCausalLM", NORMED, "causal", masks="right right", steps=1e-2),
    Case("opt_causal", "OPTForCausalLM", NARROW, "causal"),
    Case("opt_texts", "OPTForCausalLM", PLAIN, masks="left left", new_tokens=9),
    Case("opt_losses", "OPTForCausalLM", NARROW, "causal", masks="right right", steps=4e-3),
    Case("xglm_causal", "XGLMForCausalLM", XGLM, "causal"),
    Case("xglm_texts", "XGLMForCausalLM", XGLM, masks="left left", new_tokens=9),
    Case("falcon_causal", "FalconForCausalLM", merged(FALCON, num_kv_heads=2, new_decoder_architecture=True), "causal"),
    Case("falcon_texts", "FalconForCausalLM", ALIBI, masks="left left", new_tokens=9, attention="sdpa"),
    Case("falcon_losses", "FalconForCausalLM", FALCON, "causal", masks="right right", steps=1e-2),
    Case("mpt_causal", "MptForCausalLM", merged(MPT, attn_config=dict(clip_qkv=0.1)), "causal"),
    Case("mpt_texts", "MptForCausalLM", MPT, masks="left left", new_tokens=9),
    # --- on request: other classes, flags and spellings
    Case("gpt_neo_model", "GPTNeoModel", merged(NEO, attention_types=[[["local"], 5]], window_size=1), slow=True),
    Case("gpt_neo_causal_untied", "GPTNeoForCausalLM", merged(NEO, tie_word_embeddings=False), "causal", slow=True),
    Case("gpt_neo_causal_types", "GPTNeoForCausalLM", NEO, types="tokens", slow=True),
    Case("gpt_neo_sequence", "GPTNeoForSequenceClassification", merged(NEO, num_labels=3), "sequence", slow=True),
    Case("gpt_neo_token", "GPTNeoForTokenClassification", merged(NEO, num_labels=4), "classes", slow=True),
    Case("gpt_neo_question", "GPTNeoForQuestionAnswering", NEO, "span", masks="", slow=True),
    Case("gptj_model", "GPTJModel", merged(GPTJ, rotary_dim=10, n_inner=None), slow=True),
    Case("gptj_causal_tied", "GPTJForCausalLM", merged(GPTJ, tie_word_embeddings=True), "causal", slow=True),
    Case("gptj_sequence", "GPTJForSequenceClassification", merged(GPTJ, num_labels=3), "sequence", slow=True),
    Case("gptj_question", "GPTJForQuestionAnswering", GPTJ, "span", slow=True),
    Case("gpt_neox_model", "GPTNeoXModel", merged(NEOX, use_parallel_residual=False), slow=True),
    Case(
        "gpt_neox_causal_no_bias",
        "GPTNeoXForCausalLM",
        merged(NEOX, attention_bias=False),
        "causal",
        slow=True,
    ),
    Case(
        "gpt_neox_causal_tied",
        "GPTNeoXForCausalLM",
        merged(NEOX, tie_word_embeddings=True),
        "causal",
        slow=True,
    ),
    Case("gpt_neox_causal_old", "GPTNeoXForCausalLM", NEOX, "causal", text=OLD_NEOX, slow=True),
    Case("gpt_neox_sequence", "GPTNeoXForSequenceClassification", merged(NEOX, num_labels=3), "sequence", slow=True),
    Case("gpt_neox_token", "GPTNeoXForTokenClassification", merged(NEOX, num_labels=4), "classes", slow=True),
    Case("gpt_neox_question", "GPTNeoXForQuestionAnswering", NEOX, "span", slow=True),
    Case("bloom_model", "BloomModel", merged(BLOOM, apply_residual_connection_post_layernorm=True), slow=True),
    Case("bloom_causal_untied", "BloomForCausalLM", merged(BLOOM, tie_word_embeddings=False), "causal", slow=True),
    Case("bloom_causal_old", "BloomForCausalLM", BLOOM, "causal", text=OLD_BLOOM, slow=True),
    Case("bloom_sequence", "BloomForSequenceClassification", merged(BLOOM, num_labels=3), "sequence", slow=True),
    Case("bloom_token", "BloomForTokenClassification", merged(BLOOM, num_labels=4), "classes", slow=True),
    Case("bloom_question", "BloomForQuestionAnswering", BLOOM, "span", slow=True),
    Case("opt_model", "OPTModel", OPT, slow=True),
    Case("opt_model_unmasked", "OPTModel", OPT, masks="", slow=True),
    Case("opt_causal_no_bias", "OPTForCausalLM", merged(OPT, enable_bias=False), "causal", slow=True),
    Case("opt_causal_no_scale", "OPTForCausalLM", merged(OPT, layer_norm_elementwise_affine=False), slow=True),
    Case("opt_causal_no_last_norm", "OPTForCausalLM", merged(OPT, _remove_final_layer_norm=True), "causal", slow=True),
    Case("opt_causal_untied", "OPTForCausalLM", merged(NARROW, tie_word_embeddings=False), "causal", slow=True),
    Case("opt_sequence", "OPTForSequenceClassification", merged(NARROW, num_labels=3), "sequence", slow=True),
    Case("opt_question", "OPTForQuestionAnswering", NARROW, "span", slow=True),
    Case("xglm_model", "XGLMModel", merged(XGLM, pad_token_id=5, scale_embedding=False), slow=True),
    Case("xglm_causal_untied", "XGLMForCausalLM", merged(XGLM, tie_word_embeddings=False), "causal", slow=True),
    Case("falcon_model", "FalconModel", merged(FALCON, bias=True), slow=True),
    Case("falcon_causal_alibi", "FalconForCausalLM", ALIBI, "causal", length=19, attention="sdpa", slow=True),
    Case(
        "falcon_causal_one_norm",
        "FalconForCausalLM",
        merged(FALCON, num_kv_heads=3, new_decoder_architecture=True, num_ln_in_parallel_attn=1),
        "causal",
        slow=True,
    ),
    Case("falcon_causal_all_heads", "FalconForCausalLM", merged(FALCON, multi_query=False), "causal", slow=True),
    Case("falcon_causal_in_turn", "FalconForCausalLM", merged(FALCON, parallel_attn=False), "causal", slow=True),
    Case("falcon_causal_untied", "FalconForCausalLM", merged(FALCON, tie_word_embeddings=False), "causal", slow=True),
    Case("falcon_sequence", "FalconForSequenceClassification", merged(FALCON, num_labels=3), "sequence", slow=True),
    Case("falcon_token", "FalconForTokenClassification", merged(FALCON, num_labels=4), "classes", slow=True),
    Case("falcon_question", "FalconForQuestionAnswering", FALCON, "span", slow=True),
    Case("mpt_model", "MptModel", merged(MPT, attn_config=dict(softmax_scale=0.4)), slow=True),
    Case("mpt_causal_untied", "MptForCausalLM", merged(MPT, tie_word_embeddings=False), "causal", slow=True),
    Case("mpt_sequence", "MptForSequenceClassification", merged(MPT, num_labels=3), "sequence", slow=True),
    Case("mpt_token", "MptForTokenClassification", merged(MPT, num_labels=4, hidden_dropout=0.0), "classes", slow=True),
    Case("mpt_question", "MptForQuestionAnswering", MPT, "span", slow=True),
]
