"""Sparse attention in blocks: LongT5."""

from case import Case, merged
from make_goldens import T5

# Blocks of 4 positions: sources of 14 span four, of which the last is not full.
LONGT5 = merged(T5, num_layers=3, num_decoder_layers=2, local_radius=3, feed_forward_proj="gated-gelu")
LONG = {"length": 14}
# Blocks of 3 positions, so that three sources have different numbers of full ones.
SUMS = merged(LONGT5, encoder_attention_type="transient-global", global_block_size=3)

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
]
