"""Sparse attention in blocks: LongT5."""

from case import Case, merged
from make_goldens import T5

# Blocks of 4 positions: sources of 14 span four, of which the last is not full.
LONGT5 = merged(T5, num_layers=3, num_decoder_layers=2, local_radius=3, feed_forward_proj="gated-gelu")
LONG = {"length": 14}

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
]
