"""Sparse attention in blocks: LongT5 and BigBird."""

from case import Case, merged
from make_goldens import T5

# Blocks of 4 positions: sources of 14 span four, of which the last is not full.
LONGT5 = merged(T5, num_layers=3, num_decoder_layers=2, local_radius=3, feed_forward_proj="gated-gelu")
LONG = {"length": 14}
# Blocks of 3 positions, so that three sources have different numbers of full ones.
SUMS = merged(LONGT5, encoder_attention_type="transient-global", global_block_size=3)
# Blocks of 2 positions: a length of 17 is padded to nine, and full attention ends at 14.
BIG_BIRD = dict(
    vocab_size=53,
    hidden_size=20,
    num_hidden_layers=3,
    num_attention_heads=5,
    intermediate_size=21,
    max_position_embeddings=27,
    type_vocab_size=3,
    block_size=2,
    num_random_blocks=1,
)
BLOCKS = {"length": 17}

CASES = [
    Case("longt5_generation", "LongT5ForConditionalGeneration", LONGT5, "target", **LONG),
    Case("longt5_texts", "LongT5ForConditionalGeneration", LONGT5, new_tokens=9, **LONG),
    Case(
        "longt5_unscaled",
        "LongT5ForConditionalGeneration",
        merged(LONGT5, tie_word_embeddings=False, feed_forward_proj="relu"),
        decoder="masked",
        slow=True,
        **LONG,
    ),
    Case("longt5_model", "LongT5Model", LONGT5, decoder="given", slow=True, **LONG),
    Case("longt5_encoder", "LongT5EncoderModel", merged(LONGT5, local_radius=1), slow=True, length=9),
    Case("longt5_sums_generation", "LongT5ForConditionalGeneration", SUMS, "target", **LONG),
    Case("longt5_attentions", "LongT5Model", LONGT5, decoder="given", deep=True, slow=True, target=3, **LONG),
    Case("longt5_sums_attentions", "LongT5Model", SUMS, decoder="given", deep=True, target=3, **LONG),
    Case("longt5_sums_texts", "LongT5ForConditionalGeneration", merged(SUMS, d_ff=40), new_tokens=9, **LONG),
    Case("longt5_sums_model", "LongT5Model", merged(SUMS, global_block_size=2), decoder="given", slow=True, length=22),
    Case("longt5_sums_short", "LongT5EncoderModel", merged(SUMS, global_block_size=12), slow=True, length=11),
    Case("longt5_sums_one", "LongT5EncoderModel", merged(SUMS, global_block_size=9), slow=True, length=11),
    Case("longt5_sums_wide", "LongT5EncoderModel", merged(SUMS, global_block_size=7), slow=True, length=61),
    Case(
        "longt5_losses",
        "LongT5ForConditionalGeneration",
        merged(SUMS, dropout_rate=0.0, d_ff=21),
        "target",
        steps=1e-2,
        slow=True,
        **LONG,
    ),
    Case("big_bird_pretraining", "BigBirdForPreTraining", BIG_BIRD, "pretraining", **BLOCKS),
    Case("big_bird_short", "BigBirdForMaskedLM", BIG_BIRD, "tokens", slow=True, length=14),
    Case(
        "big_bird_masked",
        "BigBirdForMaskedLM",
        merged(
            BIG_BIRD,
            use_bias=False,
            rescale_embeddings=True,
            num_random_blocks=3,
            vocab_size=31,
            tie_word_embeddings=False,
        ),
        "tokens",
        slow=True,
        length=24,
    ),
    Case("big_bird_full", "BigBirdModel", merged(BIG_BIRD, attention_type="original_full"), slow=True, **BLOCKS),
    Case("big_bird_model", "BigBirdModel", merged(BIG_BIRD, num_random_blocks=2, block_size=1), slow=True, **BLOCKS),
    Case("big_bird_sequence", "BigBirdForSequenceClassification", merged(BIG_BIRD, num_labels=4), "sequence", **BLOCKS),
    Case(
        "big_bird_token",
        "BigBirdForTokenClassification",
        merged(BIG_BIRD, num_labels=4),
        "classes",
        slow=True,
        **BLOCKS,
    ),
    Case("big_bird_question", "BigBirdForQuestionAnswering", merged(BIG_BIRD, sep_token_id=9), "span", **BLOCKS),
    Case(
        "big_bird_question_losses",
        "BigBirdForQuestionAnswering",
        merged(BIG_BIRD, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, hidden_act="relu"),
        "span",
        types=False,
        steps=4e-3,
        slow=True,
        **BLOCKS,
    ),
    Case("big_bird_choice", "BigBirdForMultipleChoice", BIG_BIRD, "choice", slow=True, **BLOCKS),
    Case(
        "big_bird_texts",
        "BigBirdForCausalLM",
        merged(BIG_BIRD, is_decoder=True, attention_type="original_full"),
        masks="left left",
        new_tokens=9,
        types=False,
        **BLOCKS,
    ),
    Case(
        "big_bird_losses",
        "BigBirdForMaskedLM",
        merged(BIG_BIRD, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        "tokens",
        steps=4e-3,
        slow=True,
        **BLOCKS,
    ),
]
