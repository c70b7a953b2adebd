"""Texts of the oldest decoder and encoder-decoder."""

from case import Case
from make_goldens import T5

CASES = [
    Case(
        "gpt2_texts",
        "GPT2LMHeadModel",
        dict(vocab_size=61, n_embd=20, n_layer=3, n_head=5, n_positions=40, eos_token_id=60, bos_token_id=60),
        masks="left left",
        new_tokens=9,
    ),
    Case(
        "t5_texts",
        "T5ForConditionalGeneration",
        dict(T5, num_decoder_layers=2, num_layers=2),
        masks="right right",
        new_tokens=9,
    ),
]
