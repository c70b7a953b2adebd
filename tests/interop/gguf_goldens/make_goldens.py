"""Make blocks.npz, small.gguf and names.json next to this file with another implementation, the package gguf 0.19 of llama.cpp.

    PYTHONPATH=.:tests python tests/interop/gguf_goldens/make_goldens.py

Each type has random blocks with scales of ordinary size, and the values that gguf makes of them. names.json has gguf's names of the
tensors of models in ../goldens, with {} in place of the numbers of blocks and experts.
"""

from __future__ import annotations

import json
import pathlib
import re

import gguf
import numpy as np

from helpers.golden_models import golden_path, load_golden

HERE = pathlib.Path(__file__).resolve().parent
# Name -> bytes of a block, and places of its numbers in half precision.
TYPES = {
    "Q4_0": (18, (0,)),
    "Q4_1": (20, (0, 2)),
    "Q5_0": (22, (0,)),
    "Q5_1": (24, (0, 2)),
    "Q8_0": (34, (0,)),
    "Q2_K": (84, (80, 82)),
    "Q3_K": (110, (108,)),
    "Q4_K": (144, (0, 2)),
    "Q5_K": (176, (0, 2)),
    "Q6_K": (210, (208,)),
    "IQ4_NL": (18, (0,)),
    "IQ4_XS": (136, (0,)),
}
# Golden model -> architecture.
MODELS = {
    "bert_model": "bert",
    "bloom_causal": "bloom",
    "falcon_causal": "falcon",
    "gemma_causal": "gemma",
    "gemma2_causal": "gemma2",
    "gemma3_causal": "gemma3",
    "gpt2_causal": "gpt2",
    "gpt_neox_causal": "gptneox",
    "granite_causal": "granite",
    "llama_causal": "llama",
    "llama_causal_tied": "llama",
    "mixtral_causal": "llama",
    "nomic_bert_model": "nomic-bert",
    "olmo2_causal": "olmo2",
    "phi3_causal": "phi3",
    "phi_causal": "phi2",
    "qwen2_causal": "qwen2",
    "qwen2_moe_causal": "qwen2moe",
    "qwen3_causal_full": "qwen3",
    "qwen3_moe_causal": "qwen3moe",
    "seed_oss_causal": "seed_oss",
    "smollm3_causal": "smollm3",
    "starcoder2_causal": "starcoder2",
    "t5_generation": "t5",
    "t5_generation_gated_gelu": "t5",
    "umt5_generation": "t5",
}


def names_of(golden: str, architecture: str) -> dict[str, str]:
    known = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(known[architecture], 6)
    found = {}
    for name in load_golden(golden_path(golden)).weights:
        name = name.rpartition(".")[0]
        one = re.sub(r"\.experts\.\d+\.", ".experts.", name)
        if "block_sparse_moe.experts" in one:  # renamed by conversion/llama.py before the look-up
            one = re.sub(r"^model\.|block_sparse_moe", lambda part: "feed_forward" if part[0][0] == "b" else "", one)
        if architecture == "bloom":  # as by conversion/bloom.py
            one = one.removeprefix("transformer.")
        pattern = re.sub(r"experts\.\d+\.", "experts.{}.", re.sub(r"\.\d+\.", ".{}.", name, count=1))
        found[pattern] = re.sub(r"\.\d+\.", ".{}.", names.get_name(one) or "")
    return found


def main() -> None:
    rng, arrays = np.random.default_rng(0), {}
    for name, (size, scales) in TYPES.items():
        blocks = rng.integers(0, 256, (3, size), dtype=np.uint8)
        for place in scales:
            blocks[:, place : place + 2] = rng.normal(0, 0.1, (3, 1)).astype("<f2").view(np.uint8)
        arrays[f"{name}/blocks"] = blocks
        arrays[f"{name}/values"] = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]).reshape(3, -1)
    np.savez_compressed(HERE / "blocks.npz", **arrays)

    named = {golden: {"architecture": one, "names": names_of(golden, one)} for golden, one in MODELS.items()}
    (HERE / "names.json").write_text(json.dumps(named, indent=0) + "\n")

    writer = gguf.GGUFWriter(HERE / "small.gguf", "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 500000.0)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "é"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_bool("yes", True)
    writer.add_tensor("plain", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("half", np.arange(8, dtype=np.float16).reshape(4, 2))
    writer.add_tensor(
        "packed",
        gguf.quants.quantize(np.arange(128, dtype=np.float32).reshape(2, 64), gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
