"""Make rotary.json and keys.json beside this file: frequencies of rotary positions and their factors, by transformers 5.24.

Run in an environment with torch and transformers: python tests/models/rotary_goldens/make_goldens.py

A case holds the keys of config.json that `rope_parameters` and the sizes are made of, the number of positions in use, the frequencies,
and the factor on rotated elements. keys.json holds the
frequencies by kind of layer in small models of some families, for keys of config.json.
"""

import json
import pathlib
import tempfile

import torch
from transformers import AutoConfig, AutoModel, LlamaConfig
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
    dict(rope=dict(rope_type="proportional", rope_theta=500.0, partial_rotary_factor=0.7), head_dim=12),
    dict(rope=dict(rope_type="proportional", rope_theta=500.0, factor=2.0)),
]
KINDS = FULL, SLIDING = ("full_attention", "sliding_attention")
PLAIN = dict(rope_type="default", rope_theta=300.0)
LINEAR = dict(rope_type="linear", factor=3.0)
TWO = {FULL: dict(LINEAR, rope_theta=55.0), SLIDING: dict(rope_type="default", rope_theta=40.0)}
OLD = dict(type="linear", factor=3.0)
KEYS = [
    *(
        (kind, keys)
        for kind in ("gpt_neox", "modernbert", "modernbert-decoder", "olmo3", "gemma3_text")
        for keys in (
            dict(rope_theta=777.0),
            dict(rope_theta=777.0, rope_scaling=OLD),
            dict(rope_theta=777.0, rope_scaling=LINEAR, rope_local_base_freq=22.0),
            dict(rope_scaling=dict(LINEAR, rope_theta=55.0), global_rope_theta=44.0, local_rope_theta=33.0),
        )
    ),
    *(
        (kind, dict(rope_parameters=rope, rope_theta=777.0, rope_local_base_freq=22.0))
        for kind in ("olmo3", "gemma3_text")
        for rope in (PLAIN, LINEAR, {FULL: None, SLIDING: TWO[FULL]}, {**TWO, **PLAIN}, {FULL: LINEAR, SLIDING: OLD})
    ),
    ("modernbert", dict(rope_parameters={FULL: LINEAR, SLIDING: PLAIN}, global_rope_theta=44.0, rope_theta=777.0)),
    ("gpt_neox", dict(rotary_emb_base=99.0, rotary_pct=0.5, rope_theta=777.0, partial_rotary_factor=1.0)),
    ("gpt_neox", dict(rotary_emb_base=99.0, rotary_pct=0.5, rope_parameters=dict(PLAIN, partial_rotary_factor=0.75))),
    ("gpt_neox", dict(rotary_emb_base=99.0, rope_parameters=LINEAR)),
    ("ministral", dict(rope_parameters={**TWO, **PLAIN})),
    ("llama", dict(rope_parameters={**TWO, **PLAIN})),
    ("llama", dict(partial_rotary_factor=0.5)),
    ("llama", dict(rope_parameters=dict(PLAIN, partial_rotary_factor=0.5))),
    ("phi", dict(partial_rotary_factor=0.25)),
    ("phi", dict(rope_parameters=PLAIN)),
    ("phi3", dict(partial_rotary_factor=0.5)),
    ("nomic_bert", dict(rotary_emb_base=99.0)),
    ("gte", dict(rope_theta=777.0, partial_rotary_factor=0.5)),
]
SIZES = dict(vocab_size=9, hidden_size=32, intermediate_size=4, num_hidden_layers=6, num_attention_heads=2)
SIZES |= dict(num_key_value_heads=2, head_dim=16, pad_token_id=0)


def rotations(kind: str, keys: dict) -> dict[str, list[float]]:
    """Frequencies by kind of layer ("" for all), as transformers reads config.json."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(json.dumps({"model_type": kind, **SIZES, **keys}))
        config = AutoConfig.from_pretrained(folder)
    model = AutoModel.from_config(config)
    model(input_ids=torch.tensor([[1, 2, 3]]))  # which fails where the keys do not fit the family
    rotary = model.rotary_emb
    names = {one: f"{one}_inv_freq" for one in KINDS if hasattr(rotary, f"{one}_inv_freq")} or {"": "inv_freq"}
    return {one: getattr(rotary, name).tolist() for one, name in names.items()}


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
    here = pathlib.Path(__file__)
    here.with_name("rotary.json").write_text(json.dumps(made, indent=1) + "\n")
    read = [json.dumps([kind, keys, rotations(kind, keys)]) for kind, keys in KEYS]
    cases = ",\n".join(read)
    here.with_name("keys.json").write_text(f'{{"sizes": {json.dumps(SIZES)}, "cases": [\n{cases}\n]}}\n')


if __name__ == "__main__":
    main()
