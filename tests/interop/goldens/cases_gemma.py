"""Gemma, Gemma 2, Gemma 3, T5Gemma and T5Gemma 2: windows, soft caps, norms with an offset, two attentions of a decoder or one."""

from case import Case, merged

GEMMA = dict(
    vocab_size=43,
    hidden_size=20,
    intermediate_size=37,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=64,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=2,
)
GEMMA2 = merged(
    GEMMA,
    query_pre_attn_scalar=11,
    sliding_window=4,
    attn_logit_softcapping=0.7,
    final_logit_softcapping=0.9,
)
ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
}
GEMMA3 = merged(
    GEMMA,
    num_hidden_layers=5,
    query_pre_attn_scalar=11,
    sliding_window=4,
    sliding_window_pattern=3,
    rope_parameters=ROPE,
    num_key_value_heads=1,
)
# As the released files have them: a pattern, two bases, and a scaling of the full layers only.
OLD_GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    **{key: value for key, value in GEMMA3.items() if key != "rope_parameters"},
    "rope_theta": 500.0,
    "rope_local_base_freq": 30.0,
    "rope_scaling": {"factor": 3.0, "rope_type": "linear"},
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "torch_dtype": "float32",
}
OLD_GEMMA = {
    "architectures": ["GemmaForCausalLM"],
    "model_type": "gemma",
    **GEMMA,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "rope_theta": 30.0,
    "rope_scaling": None,
    "torch_dtype": "float32",
}
OLD_GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    **GEMMA2,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "cache_implementation": "hybrid",
    "rope_theta": 30.0,
    "torch_dtype": "float32",
}


def t5gemma(encoder: dict, decoder: dict, **more: object) -> dict:
    """Two stacks of Gemma 2."""
    return dict(encoder=encoder, decoder=decoder, vocab_size=decoder["vocab_size"], **more)


T5GEMMA = t5gemma(
    merged(GEMMA2, sliding_window=3),
    merged(GEMMA2, hidden_size=16, head_dim=8, num_hidden_layers=4, num_key_value_heads=4, vocab_size=41),
)
# Its encoder has a vision tower, here as small as possible. The token after an image has an embedding of its own.
VISION = dict(
    model_type="siglip_vision_model",
    hidden_size=4,
    intermediate_size=3,
    num_hidden_layers=1,
    num_attention_heads=1,
    image_size=4,
    patch_size=2,
    vision_use_head=False,
)
T5GEMMA2 = dict(
    encoder=dict(text_config=GEMMA3, vision_config=VISION, mm_tokens_per_image=4, eoi_token_index=7),
    decoder=merged(GEMMA3, num_hidden_layers=4, sliding_window=3),
    image_token_index=48,
)
MULTIMODAL = dict(
    text_config=merged(GEMMA3, num_hidden_layers=3, sliding_window_pattern=2),
    vision_config=VISION,
    mm_tokens_per_image=4,
    image_token_index=42,
)
SOFT = dict(query_pre_attn_scalar=400)
LONG, LONGER = dict(length=12), dict(length=13, masks="left left", new_tokens=9)

CASES = [
    Case("gemma_causal", "GemmaForCausalLM", GEMMA, "causal"),
    Case("gemma_texts", "GemmaForCausalLM", GEMMA, **LONGER),
    Case("gemma_causal_old", "GemmaForCausalLM", GEMMA, "causal", text=OLD_GEMMA, slow=True),
    Case(
        "gemma_causal_untied",
        "GemmaForCausalLM",
        merged(GEMMA, tie_word_embeddings=False, attention_bias=True, num_key_value_heads=1, hidden_act="silu"),
        "causal",
        slow=True,
    ),
    Case("gemma_model", "GemmaModel", GEMMA, deep=True, length=6, slow=True),
    Case("gemma_sequence", "GemmaForSequenceClassification", merged(GEMMA, num_labels=3), "sequence", slow=True),
    Case("gemma_token", "GemmaForTokenClassification", merged(GEMMA, num_labels=4), "classes", slow=True),
    Case("gemma2_causal", "Gemma2ForCausalLM", GEMMA2, "causal", **LONG),
    Case("gemma2_texts", "Gemma2ForCausalLM", GEMMA2, **LONGER),
    Case("gemma2_causal_old", "Gemma2ForCausalLM", GEMMA2, "causal", text=OLD_GEMMA2, slow=True, **LONG),
    Case(
        "gemma2_causal_kinds",
        "Gemma2ForCausalLM",
        merged(
            GEMMA2,
            num_hidden_layers=4,
            layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            attention_bias=True,
            tie_word_embeddings=False,
            sliding_window=3,
        ),
        "causal",
        slow=True,
        **LONG,
    ),
    Case("gemma2_model", "Gemma2Model", GEMMA2, slow=True, **LONG),
    Case("gemma2_sequence", "Gemma2ForSequenceClassification", merged(GEMMA2, num_labels=3), "sequence", slow=True),
    Case("gemma2_token", "Gemma2ForTokenClassification", merged(GEMMA2, num_labels=4), "classes", slow=True),
    Case("gemma2_losses", "Gemma2ForCausalLM", GEMMA2, "causal", masks="right right", steps=2e-2, **LONG),
    Case("gemma3_causal", "Gemma3ForCausalLM", GEMMA3, "causal", **LONG),
    Case("gemma3_texts", "Gemma3ForCausalLM", GEMMA3, **LONGER),
    Case("gemma3_causal_old", "Gemma3ForCausalLM", GEMMA3, "causal", text=OLD_GEMMA3, slow=True, **LONG),
    Case(
        "gemma3_causal_capped",
        "Gemma3ForCausalLM",
        merged(
            GEMMA3,
            final_logit_softcapping=1.5,
            tie_word_embeddings=False,
            attention_bias=True,
            rope_parameters=None,
            layer_types=["full_attention", "sliding_attention"] * 2 + ["sliding_attention"],
            sliding_window=5,
        ),
        "causal",
        slow=True,
        **LONG,
    ),
    Case("gemma3_model", "Gemma3TextModel", GEMMA3, slow=True, **LONG),
    Case(
        "gemma3_sequence",
        "Gemma3TextForSequenceClassification",
        merged(GEMMA3, num_labels=3),
        "sequence",
        slow=True,
    ),
    Case(  # its class does not cap its logits
        "gemma3_multimodal_causal",
        "Gemma3ForConditionalGeneration",
        merged(MULTIMODAL, text_config=merged(MULTIMODAL["text_config"], final_logit_softcapping=0.5)),
        "causal",
        **LONG,
    ),
    Case(
        "gemma3_multimodal_packed",
        "Gemma3ForConditionalGeneration",
        MULTIMODAL,
        packed=True,
        masks="",
    ),
    Case(
        "gemma3_multimodal_untied",
        "Gemma3ForConditionalGeneration",
        merged(
            MULTIMODAL,
            text_config=merged(MULTIMODAL["text_config"], tie_word_embeddings=False),
            tie_word_embeddings=False,
        ),
        "causal",
        slow=True,
    ),
    Case("gemma3_multimodal_texts", "Gemma3ForConditionalGeneration", MULTIMODAL, slow=True, **LONGER),
    Case(
        "gemma3_multimodal_sequence",
        "Gemma3ForSequenceClassification",
        merged(MULTIMODAL, num_labels=3),
        "sequence",
        slow=True,
    ),
    Case("t5gemma_generation", "T5GemmaForConditionalGeneration", T5GEMMA, "target", length=9, target=10),
    Case("t5gemma_texts", "T5GemmaForConditionalGeneration", T5GEMMA, length=9, new_tokens=9, masks="right left"),
    Case(
        "t5gemma_generation_given",
        "T5GemmaForConditionalGeneration",
        merged(T5GEMMA, tie_word_embeddings=False),
        decoder="masked",
        slow=True,
    ),
    Case("t5gemma_model", "T5GemmaModel", T5GEMMA, decoder="given", slow=True),
    Case("t5gemma_encoder", "T5GemmaEncoderModel", merged(T5GEMMA, is_encoder_decoder=False), slow=True, **LONG),
    Case("t5gemma_sequence", "T5GemmaForSequenceClassification", merged(T5GEMMA, num_labels=3), "sequence", slow=True),
    Case("t5gemma_token", "T5GemmaForTokenClassification", merged(T5GEMMA, num_labels=4), "classes", slow=True),
    Case(
        "t5gemma_unmasked", "T5GemmaForConditionalGeneration", T5GEMMA, "target", length=9, target=6, given_mask=False
    ),
    Case(
        "t5gemma_sequence_unmasked",
        "T5GemmaForSequenceClassification",
        merged(T5GEMMA, num_labels=3),
        "sequence",
        target=6,
        decoder="given",
        given_mask=False,
        slow=True,
    ),
    Case("t5gemma_losses", "T5GemmaForConditionalGeneration", T5GEMMA, "target", steps=2e-2),
    Case("t5gemma2_generation", "T5Gemma2ForConditionalGeneration", T5GEMMA2, "target", length=10, target=8),
    Case("t5gemma2_texts", "T5Gemma2ForConditionalGeneration", T5GEMMA2, length=10, new_tokens=9, masks="right left"),
    Case(
        "t5gemma2_generation_given",
        "T5Gemma2ForConditionalGeneration",
        merged(T5GEMMA2, tie_word_embeddings=False),
        decoder="masked",
        slow=True,
    ),
    Case(
        "t5gemma2_model",
        "T5Gemma2Model",
        dict(
            encoder=merged(T5GEMMA2["encoder"], text_config=merged(GEMMA3, num_hidden_layers=2, hidden_size=12)),
            decoder=merged(GEMMA3, num_hidden_layers=3, hidden_size=12, sliding_window=3),
        ),
        decoder="given",
        deep=True,
        length=5,
        target=5,
        slow=True,
    ),
    Case(
        "t5gemma2_sequence", "T5Gemma2ForSequenceClassification", merged(T5GEMMA2, num_labels=3), "sequence", slow=True
    ),
    Case("t5gemma2_token", "T5Gemma2ForTokenClassification", merged(T5GEMMA2, num_labels=4), "classes", slow=True),
    Case(  # scores are small, since with norms of queries and keys around 2 rounding errors grow too fast
        "t5gemma2_losses",
        "T5Gemma2ForConditionalGeneration",
        dict(
            encoder=merged(T5GEMMA2["encoder"], text_config=merged(GEMMA3, num_hidden_layers=2, **SOFT)),
            decoder=merged(GEMMA3, num_hidden_layers=3, sliding_window=3, **SOFT),
        ),
        "target",
        steps=8e-3,
    ),
]
