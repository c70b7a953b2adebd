"""Encoder-decoders with BART's names, and T5's youngest sibling."""

from case import Case, merged
from make_goldens import BART, MARIAN, T5

OTHERS = merged(BART, encoder_layers=3, max_position_embeddings=19)
PEGASUS = merged(OTHERS, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, forced_eos_token_id=1)
BLENDERBOT = merged(PEGASUS, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, forced_eos_token_id=2)
M2M = merged(OTHERS, d_model=21, decoder_attention_heads=7, activation_function="relu", dropout=0.0)
PLBART = merged(OTHERS, scale_embedding=True)
UMT5 = merged(T5, num_layers=3, feed_forward_proj="gated-gelu")
LED = {name: value for name, value in OTHERS.items() if name != "max_position_embeddings"} | {
    "max_encoder_position_embeddings": 24,
    "max_decoder_position_embeddings": 13,
    "attention_window": [4, 8, 4],
}
# config.json of Helsinki-NLP's directories: keys of transformers 3 that no later version reads, and settings of generate.
OPUS = merged(
    {name: value for name, value in MARIAN.items() if name != "tie_word_embeddings"},
    architectures=["MarianMTModel"],
    model_type="marian",
    transformers_version="4.22.0.dev0",
    encoder_layers=3,
    num_hidden_layers=3,
    is_encoder_decoder=True,
    bos_token_id=0,
    decoder_vocab_size=61,
    bad_words_ids=[[60]],
    max_length=512,
    num_beams=6,
    static_position_embeddings=True,
    extra_pos_embeddings=61,
    _num_labels=3,
    id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
    label2id={"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
    **dict.fromkeys(("add_bias_logits", "add_final_layer_norm", "normalize_before", "normalize_embedding"), False),
    **dict.fromkeys(("attention_dropout", "activation_dropout", "classif_dropout", "classifier_dropout"), 0.0),
    **dict.fromkeys(("encoder_layerdrop", "decoder_layerdrop"), 0.0),
)
LONG = {"length": 19, "chosen": True}  # longer than two windows; padded to a multiple of the largest by transformers
POSITIONS = r"embed_positions\.weight$"  # sinusoidal ones


def both(
    name: str, kind: str, config: dict, writer: dict | None = None, slow_texts: bool = False, **more
) -> list[Case]:
    """Outputs with a loss, and texts, of one class that writes, with sources padded on both sides.

    Texts of models that differ from BART only where outputs show it are slow (`slow_texts`); `writer` is what their config changes.
    """
    return [
        Case(f"{name}_generation", kind, config, "target", **more),
        Case(f"{name}_texts", kind, merged(config, **(writer or {})), new_tokens=9, slow=slow_texts, **more),
    ]


CASES = [
    *both("pegasus", "PegasusForConditionalGeneration", merged(PEGASUS, scale_embedding=True), computed=POSITIONS),
    *both(
        "blenderbot", "BlenderbotForConditionalGeneration", merged(BLENDERBOT, scale_embedding=True), slow_texts=True
    ),
    *both("blenderbot_small", "BlenderbotSmallForConditionalGeneration", BLENDERBOT),
    *both("m2m_100", "M2M100ForConditionalGeneration", M2M, {"tie_word_embeddings": False, "d_model": 42}),
    *both("plbart", "PLBartForConditionalGeneration", PLBART, slow_texts=True),
    *both("umt5", "UMT5ForConditionalGeneration", UMT5, length=14, target=10),
    *both("led", "LEDForConditionalGeneration", LED, {"tie_word_embeddings": False}, **LONG),
    Case("led_attentions", "LEDModel", LED, decoder="given", deep=True, length=14, target=3, chosen=True),
    Case(
        "marian_texts", "MarianMTModel", merged(MARIAN, encoder_layers=3), text=OPUS, new_tokens=9, masks="right left"
    ),
    *both("mvp", "MvpForConditionalGeneration", OTHERS, {"tie_word_embeddings": False}, slow_texts=True),
]

SLOW = [
    Case("led_one_window", "LEDForConditionalGeneration", merged(LED, attention_window=4), decoder="masked", length=19),
    Case(
        "led_untied",
        "LEDForConditionalGeneration",
        merged(LED, tie_word_embeddings=False, activation_function="relu"),
        decoder="masked",
        **LONG,
    ),
    Case(
        "led_model", "LEDModel", merged(LED, encoder_layers=4, attention_window=[8, 4, 8, 4]), decoder="given", **LONG
    ),
    Case("led_question", "LEDForQuestionAnswering", merged(LED, max_decoder_position_embeddings=19), "span", **LONG),
    Case("led_losses", "LEDForConditionalGeneration", merged(LED, dropout=0.0), "target", steps=4e-3, **LONG),
    Case("umt5_unscaled", "UMT5ForConditionalGeneration", merged(UMT5, tie_word_embeddings=False), decoder="masked"),
    Case(
        "umt5_relu",
        "UMT5ForConditionalGeneration",
        merged(UMT5, feed_forward_proj="relu", num_decoder_layers=5),
        "target",
        deep=True,
        length=5,
        target=4,
    ),
    Case("umt5_encoder", "UMT5EncoderModel", UMT5, length=14),
    Case("umt5_model", "UMT5Model", UMT5, decoder="masked"),
    Case("umt5_sequence", "UMT5ForSequenceClassification", merged(UMT5, num_labels=3), "sequence"),
    Case("umt5_token", "UMT5ForTokenClassification", merged(UMT5, num_labels=4), "classes"),
    Case("umt5_question", "UMT5ForQuestionAnswering", UMT5, "span"),
    Case("umt5_losses", "UMT5ForConditionalGeneration", merged(UMT5, dropout_rate=0.0), "target", steps=1e-2),
    Case(
        "pegasus_untied",
        "PegasusForConditionalGeneration",
        merged(PEGASUS, tie_word_embeddings=False),
        decoder="masked",
        computed=POSITIONS,
    ),
    Case("pegasus_decoder", "PegasusForCausalLM", PEGASUS, "causal", masks="right right", computed=POSITIONS),
    Case("pegasus_decoder_texts", "PegasusForCausalLM", PEGASUS, masks="left left", new_tokens=9, computed=POSITIONS),
    Case(
        "pegasus_model",
        "PegasusModel",
        merged(PEGASUS, d_model=21, decoder_attention_heads=7),
        decoder="masked",
        computed=POSITIONS,
    ),
    Case(
        "blenderbot_untied",
        "BlenderbotForConditionalGeneration",
        merged(BLENDERBOT, tie_word_embeddings=False),
        decoder="masked",
    ),
    Case("blenderbot_decoder", "BlenderbotForCausalLM", BLENDERBOT, "causal", masks="right right"),
    Case("blenderbot_decoder_texts", "BlenderbotForCausalLM", BLENDERBOT, masks="left left", new_tokens=9),
    Case("blenderbot_model", "BlenderbotModel", BLENDERBOT, decoder="masked"),
    Case(
        "blenderbot_small_untied",
        "BlenderbotSmallForConditionalGeneration",
        merged(BLENDERBOT, tie_word_embeddings=False, scale_embedding=True),
        decoder="masked",
    ),
    Case("blenderbot_small_decoder", "BlenderbotSmallForCausalLM", BLENDERBOT, "causal", masks="right right"),
    Case("blenderbot_small_decoder_texts", "BlenderbotSmallForCausalLM", BLENDERBOT, masks="left left", new_tokens=9),
    Case("blenderbot_small_model", "BlenderbotSmallModel", BLENDERBOT, decoder="masked"),
    Case(
        "blenderbot_small_losses",
        "BlenderbotSmallForConditionalGeneration",
        merged(BLENDERBOT, dropout=0.0),
        "target",
        steps=4e-3,
    ),
    Case(
        "m2m_100_forced",
        "M2M100ForConditionalGeneration",
        merged(M2M, tie_word_embeddings=False, forced_bos_token_id=7, forced_eos_token_id=2),
        new_tokens=9,
    ),
    Case(
        "m2m_100_unscaled",
        "M2M100ForConditionalGeneration",
        merged(M2M, scale_embedding=False, pad_token_id=3, d_model=42),
        decoder="masked",
    ),
    Case("m2m_100_untied", "M2M100ForConditionalGeneration", merged(M2M, tie_word_embeddings=False), decoder="masked"),
    Case("m2m_100_model", "M2M100Model", M2M, decoder="masked"),
    Case("m2m_100_losses", "M2M100ForConditionalGeneration", M2M, "target", steps=4e-3),
    Case("plbart_sequence", "PLBartForSequenceClassification", merged(PLBART, num_labels=3), "sequence"),
    Case("plbart_decoder", "PLBartForCausalLM", PLBART, "causal", masks="right right"),
    Case("plbart_model", "PLBartModel", merged(PLBART, scale_embedding=False)),
    Case(
        "plbart_untied",
        "PLBartForConditionalGeneration",
        merged(PLBART, tie_word_embeddings=False, scale_embedding=False),
        "target",
    ),
    Case("mvp_sequence", "MvpForSequenceClassification", merged(OTHERS, num_labels=3), "sequence"),
    Case("mvp_question", "MvpForQuestionAnswering", OTHERS, "span"),
    Case("mvp_decoder", "MvpForCausalLM", OTHERS, "causal", masks="right right"),
    Case("mvp_model", "MvpModel", merged(OTHERS, scale_embedding=True)),
    Case("mvp_untied", "MvpForConditionalGeneration", merged(OTHERS, tie_word_embeddings=False), decoder="masked"),
]
for case in SLOW:
    case.slow = True
CASES += SLOW
