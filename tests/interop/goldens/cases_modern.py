"""Encoders of today, and decoders with their blocks."""

from case import Case, merged

MODERN = dict(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=5,
    num_attention_heads=3,
    max_position_embeddings=40,
    local_attention=5,
    pad_token_id=0,
    bos_token_id=1,
    cls_token_id=1,
    eos_token_id=2,
    sep_token_id=2,
)
ALL_BIASES = dict(norm_bias=True, attention_bias=True, mlp_bias=True, classifier_bias=True, decoder_bias=False)
# As files of transformers 4 had it; both bases differ from their defaults.
OLD_MODERN = dict(
    {name: value for name, value in MODERN.items() if name != "num_hidden_layers"},
    architectures=["ModernBertForMaskedLM"],
    model_type="modernbert",
    num_hidden_layers=6,
    global_attn_every_n_layers=2,
    global_rope_theta=80.0,
    local_rope_theta=20.0,
    position_embedding_type="absolute",
    reference_compile=True,
    repad_logits_with_grad=False,
    torch_dtype="float32",
    transformers_version="4.48.0",
)
BASES = {"full_attention": dict(rope_type="default", rope_theta=70.0)}
OTHER_KINDS = dict(
    layer_types=["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    rope_parameters=BASES | {"sliding_attention": dict(rope_type="linear", rope_theta=30.0, factor=3.0)},
)
MODERN_CASES = [
    Case("modernbert_masked", "ModernBertForMaskedLM", MODERN, "tokens", length=14),
    Case("modernbert_deep", "ModernBertModel", merged(MODERN, num_hidden_layers=3), length=8, deep=True, slow=True),
    Case(
        "modernbert_old",
        "ModernBertForMaskedLM",
        merged(MODERN, num_hidden_layers=6),
        "tokens",
        length=11,
        text=OLD_MODERN,
    ),
    Case(
        "modernbert_biases",
        "ModernBertForMaskedLM",
        merged(MODERN, **ALL_BIASES, local_attention=4, tie_word_embeddings=False),
        "tokens",
        slow=True,
    ),
    Case(
        "modernbert_kinds",
        "ModernBertForMaskedLM",
        merged(MODERN, **OTHER_KINDS, classifier_activation="relu"),
        "tokens",
        slow=True,
    ),
    Case(
        "modernbert_sparse",
        "ModernBertForMaskedLM",
        merged(MODERN, sparse_prediction=True, local_attention=1),
        slow=True,
    ),
    Case(
        "modernbert_sequence",
        "ModernBertForSequenceClassification",
        merged(MODERN, num_labels=3),
        "sequence",
        slow=True,
    ),
    Case(
        "modernbert_sequence_mean",
        "ModernBertForSequenceClassification",
        merged(MODERN, num_labels=3, classifier_pooling="mean", **ALL_BIASES),
        "sequence",
        slow=True,
    ),
    Case("modernbert_token", "ModernBertForTokenClassification", merged(MODERN, num_labels=4), "classes", slow=True),
    Case("modernbert_question", "ModernBertForQuestionAnswering", MODERN, "span", slow=True),
    Case("modernbert_choice", "ModernBertForMultipleChoice", MODERN, "choice", slow=True),
    Case(
        "modernbert_choice_mean",
        "ModernBertForMultipleChoice",
        merged(MODERN, classifier_pooling="mean"),
        "choice",
        slow=True,
    ),
    Case(
        "modernbert_model", "ModernBertModel", merged(MODERN, num_hidden_layers=1, hidden_activation="silu"), slow=True
    ),
    Case("modernbert_losses", "ModernBertForMaskedLM", MODERN, "tokens", masks="right right", steps=4e-3),
]

DECODER = merged(MODERN, local_attention=7)
DECODER_CASES = [
    Case("modernbert_decoder_causal", "ModernBertDecoderForCausalLM", DECODER, "causal", length=11),
    Case(
        "modernbert_decoder_texts",
        "ModernBertDecoderForCausalLM",
        merged(DECODER, eos_token_id=60),
        masks="left left",
        new_tokens=9,
    ),
    Case(
        "modernbert_decoder_biases",
        "ModernBertDecoderForCausalLM",
        merged(DECODER, **ALL_BIASES, **OTHER_KINDS, tie_word_embeddings=False),
        "causal",
        slow=True,
    ),
    Case(
        "modernbert_decoder_sequence",
        "ModernBertDecoderForSequenceClassification",
        merged(DECODER, num_labels=3),
        "sequence",
        slow=True,
    ),
    Case(
        "modernbert_decoder_sequence_biases",
        "ModernBertDecoderForSequenceClassification",
        merged(DECODER, num_labels=3, **ALL_BIASES),
        "sequence",
        slow=True,
    ),
    Case("modernbert_decoder_model", "ModernBertDecoderModel", DECODER, slow=True),
]

NOMIC = dict(
    vocab_size=61,
    hidden_size=20,
    intermediate_size=28,
    num_hidden_layers=3,
    num_attention_heads=3,
    head_dim=6,
    max_position_embeddings=40,
    hidden_dropout_prob=0.0,
    pad_token_id=0,
)
GTE = merged(NOMIC, num_attention_heads=5)
del GTE["head_dim"]
POST_NORM_CASES = [
    Case("nomic_bert_masked", "NomicBertForMaskedLM", NOMIC, "tokens", length=12),
    Case(
        "nomic_bert_sequence",
        "NomicBertForSequenceClassification",
        merged(NOMIC, num_labels=3, rope_theta=50.0),
        "sequence",
        slow=True,
    ),
    Case(
        "nomic_bert_token",
        "NomicBertForTokenClassification",
        merged(NOMIC, num_labels=4, type_vocab_size=3),
        "classes",
        slow=True,
    ),
    Case("nomic_bert_model", "NomicBertModel", NOMIC, slow=True, deep=True, length=6),
    Case("gte_masked", "GteForMaskedLM", GTE, "tokens", length=12),
    Case(
        "gte_untied",
        "GteForMaskedLM",
        merged(GTE, tie_word_embeddings=False, hidden_act="silu", type_vocab_size=0),
        "tokens",
        slow=True,
    ),
    Case("gte_sequence", "GteForSequenceClassification", merged(GTE, num_labels=3), "sequence", slow=True),
    Case("gte_token", "GteForTokenClassification", merged(GTE, num_labels=4), "classes", slow=True),
    Case("gte_model", "GteModel", GTE, slow=True),
]

EURO = dict(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=28,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=40,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    mask_token_id=3,
)
EURO_CASES = [
    Case("eurobert_masked", "EuroBertForMaskedLM", EURO, "tokens", length=11),
    Case(
        "eurobert_biases",
        "EuroBertForMaskedLM",
        merged(EURO, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        "tokens",
        slow=True,
    ),
    Case("eurobert_sequence", "EuroBertForSequenceClassification", merged(EURO, num_labels=3), "sequence", slow=True),
    Case(
        "eurobert_sequence_mean",
        "EuroBertForSequenceClassification",
        merged(EURO, num_labels=3, classifier_pooling="mean"),
        "sequence",
        slow=True,
    ),
    Case(
        "eurobert_sequence_bos",
        "EuroBertForSequenceClassification",
        merged(EURO, num_labels=3, classifier_pooling="bos"),
        "sequence",
        slow=True,
    ),
    Case("eurobert_token", "EuroBertForTokenClassification", merged(EURO, num_labels=4), "classes", slow=True),
    Case("eurobert_model", "EuroBertModel", EURO, deep=True, length=7, slow=True),
]

NEO = dict(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=31,
    num_hidden_layers=3,
    num_attention_heads=2,
    max_length=40,
    norm_eps=1e-4,
    pad_token_id=0,
    hidden_act="SwiGLU",
)
NEO_CASES = [
    Case("neobert_masked", "NeoBERTLMHead", NEO, "tokens", length=11),
    Case("neobert_model", "NeoBERT", NEO, slow=True),
    Case("neobert_sequence", "NeoBERTForSequenceClassification", merged(NEO, num_labels=3), "sequence", slow=True),
]

GPT_BERT = dict(
    vocab_size=61,
    hidden_size=20,
    intermediate_size=14,
    num_hidden_layers=3,
    num_attention_heads=2,
    max_position_embeddings=30,
    position_bucket_size=4,
    attention_gate=True,
    depth_weights=True,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    use_cache=False,
)
PLAIN = merged(GPT_BERT, attention_gate=False, depth_weights=False)
GPT_BERT_CASES = [
    Case("gpt_bert_masked", "GPTBERTForMaskedLM", GPT_BERT, "tokens", length=11),
    Case("gpt_bert_masked_plain", "GPTBERTForMaskedLM", PLAIN, "tokens", length=11, slow=True),
    Case("gpt_bert_causal", "GPTBERTForCausalLM", GPT_BERT, "causal", slow=True),
    Case("gpt_bert_texts", "GPTBERTForCausalLM", GPT_BERT, masks="left left", new_tokens=9),
    Case("gpt_bert_texts_plain", "GPTBERTForCausalLM", PLAIN, masks="left left", new_tokens=9, slow=True),
    Case(
        "gpt_bert_sequence", "GPTBERTForSequenceClassification", merged(GPT_BERT, num_labels=3), "sequence", slow=True
    ),
    Case("gpt_bert_losses", "GPTBERTForMaskedLM", GPT_BERT, "tokens", masks="right right", steps=4e-3, slow=True),
]

CASES = [*GPT_BERT_CASES, *NEO_CASES, *EURO_CASES, *POST_NORM_CASES, *MODERN_CASES, *DECODER_CASES]
