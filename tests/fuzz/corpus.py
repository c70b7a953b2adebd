"""Inputs that once failed: each is tried in every run."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
from collections.abc import Callable
from typing import Any

import parsers


@dataclasses.dataclass(frozen=True)
class Case:
    """A corrupted file.

    Attributes:
      name: what was wrong.
      parser: a name in parsers.PARSERS; victim: the file of it.
      data: makes the file's content.
    """

    name: str
    parser: str
    victim: str
    data: Callable[[], bytes]


def _aliases() -> bytes:
    levels = ["k0: &k0 [x]"] + [f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 10)}]" for n in range(1, 10)]
    return "\n".join(levels).encode()


def _changed(parser: str, victim: str, **values: Any) -> Case:
    """A case in which some keys of a JSON file have other values."""

    def data() -> bytes:
        files = next(one for one in parsers.PARSERS if one.name == parser).files()
        return json.dumps(json.loads(files[victim]) | values).encode()

    named = ", ".join(f"{key}={str(value)[:20]}" for key, value in values.items())
    return Case(f"{parser} {named}", parser, victim, data)


def _nested_tuples() -> bytes:
    """A legacy pickle whose one value is a pair of the same pair of the same pair, 70 times: 2^70 values when traversed."""
    pairs = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) + b"0" for n in range(70))
    return parsers.LEGACY_START + b"\x80\x02)q\x00" + b"0" + pairs + b"}h\x46h\x46s."


_config = functools.partial(_changed, victim="config.json")
_bert, _llama = (functools.partial(_config, f"config.json of {name}") for name in ("bert", "llama"))
CASES = (
    Case("100,000 brackets", "JSON", "a.json", lambda: b"[" * 100_000),
    Case("an integer of 5,000 digits", "JSON", "a.json", lambda: b"1" * 5000),
    Case("aliases of aliases", "YAML", "a.yaml", _aliases),
    Case("an alias of itself", "YAML", "a.yaml", lambda: b"&a [*a]"),
    Case("aliases of aliases in a suite", "suite", "suite.yaml", _aliases),
    Case("pairs of pairs in a pickle", "torch legacy", "pytorch_model.bin", _nested_tuples),
    Case(
        "100,000 tuples in each other in a pickle",
        "torch legacy",
        "pytorch_model.bin",
        lambda: parsers.LEGACY_START + b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b".",
    ),
    Case("256 MiB of one line in a gzip", "labeled records", "f.jsonl.gz", lambda: gzip.compress(b"x" * 2**28, 9)),
    Case(
        "a template without end",
        "chat template",
        "chat_template.jinja",
        lambda: b"{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    ),
    Case("a template of gigabytes", "chat template", "chat_template.jinja", lambda: b"{{ '%9999999999d' % 1 }}"),
    Case(
        "a template of a gigabyte, doubled",
        "chat template",
        "chat_template.jinja",
        lambda: b"{% set ns = namespace(x='x') %}{% for a in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ),
    _bert(architectures=True),
    _bert(hidden_size=2**40),
    _bert(num_hidden_layers=2**31),
    _bert(hidden_act=[]),
    _bert(id2label=0.5),
    _bert(num_attention_heads=0),
    _bert(layer_norm_eps=float("nan")),
    _llama(rope_scaling=[1]),
    _llama(num_key_value_heads=-1),
    _changed("tokenizer of Nllb", "tokenizer.json", added_tokens=[{"id": 2**31, "content": "<x>", "special": True}]),
    _changed("tokenizer of Nllb", "tokenizer.json", model=None),
    _changed("tokenizer of Nllb", "tokenizer_config.json", added_tokens_decoder={"0": True}),
    _changed("tokenizer of M2M100", "vocab.json", x=2**31),
    _changed("generation_config.json", "generation_config.json", eos_token_id=10**400),
    _changed("adapter_config.json", "adapter_config.json", r=2**62, lora_alpha="inf"),
)
