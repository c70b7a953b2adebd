"""Make rotary.json beside this file: frequencies of rotary positions and their factors, by transformers 5.24.

Run in an environment with torch and transformers: python tests/models/rotary_goldens/make_goldens.py

A case holds the keys of config.json that `rope_parameters` and the sizes are made of, the number of positions in use, the frequencies,
and the factor on rotated elements.
"""

import json
import pathlib

import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64)
LONG = dict(rope_type="longrope", rope_theta=500.0, original_max_position_embeddings=32)
LONG |= dict(short_factor=[1.0, 1.25, 1.5, 2.0], long_factor=[1.0, 3.0, 5.5, 9.0])
CASES = [
    dict(rope=dict(rope_type="linear", rope_theta=10000.0, factor=2.5)),
    dict(rope=dict(rope_type="linear", rope_theta=777.0, factor=3.0, partial_rotary_factor=0.5)),
    dict(
        rope=dict(
            rope_type="llama3",
            rope_theta=500.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        )
    ),
    dict(rope=YARN),
    dict(rope=YARN | dict(partial_rotary_factor=0.75), head_dim=16),
    dict(rope=YARN | dict(truncate=False)),
    dict(rope=YARN | dict(beta_fast=8, beta_slow=2, rope_theta=200.0)),
    dict(rope=YARN | dict(mscale=0.7, mscale_all_dim=1.3)),
    dict(rope=YARN | dict(mscale=0.7)),
    dict(rope=YARN | dict(attention_factor=0.9, mscale=0.7, mscale_all_dim=1.3)),
    dict(rope=YARN | dict(factor=None), max_position_embeddings=640),
    dict(rope=YARN | dict(factor=1.0)),
    dict(rope=YARN | dict(beta_fast=1e-9, beta_slow=1e-9)),
    dict(rope=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0), length=None),
    dict(rope=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0), length=100),
    dict(rope=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0), length=128),
    dict(rope=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0), length=129),
    dict(rope=dict(rope_type="dynamic", rope_theta=300.0, factor=3.0, partial_rotary_factor=0.5), length=500),
    dict(rope=LONG, length=32),
    dict(rope=LONG, length=33),
    dict(rope=LONG | dict(factor=16.0), length=33),
    dict(rope=LONG | dict(attention_factor=1.5), length=5),
    dict(rope=LONG, length=33, max_position_embeddings=16),
]


def main() -> None:
    made = []
    for case in CASES:
        sizes = dict(head_dim=8, max_position_embeddings=128) | {
            key: value for key, value in case.items() if key not in ("rope", "length")
        }
        config = LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=dict(case["rope"]), **sizes)
        length = case.get("length")
        given = None if length is None else torch.tensor(length)
        frequency, factor = ROPE_INIT_FUNCTIONS[case["rope"]["rope_type"]](config, seq_len=given)
        made.append(
            dict(
                hf=dict(rope_parameters=case["rope"], hidden_size=32, num_attention_heads=4, **sizes),
                length=length or 1,
                frequencies=[float(one) for one in frequency],
                factor=float(factor),
            )
        )
    path = pathlib.Path(__file__).with_name("rotary.json")
    path.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
