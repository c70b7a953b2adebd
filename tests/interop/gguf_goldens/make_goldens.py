"""Make blocks.npz and small.gguf next to this file with another implementation, the package gguf 0.19 of llama.cpp.

    python tests/interop/gguf_goldens/make_goldens.py

Each type has random blocks with scales of ordinary size, and the values that gguf makes of them.
"""

from __future__ import annotations

import pathlib

import gguf
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
TYPES = {"Q4_0": (18, (0,)), "Q8_0": (34, (0,)), "Q4_K": (144, (0, 2)), "Q6_K": (210, (208,))}


def main() -> None:
    rng, arrays = np.random.default_rng(0), {}
    for name, (size, scales) in TYPES.items():
        blocks = rng.integers(0, 256, (3, size), dtype=np.uint8)
        for place in scales:
            blocks[:, place : place + 2] = rng.normal(0, 0.1, (3, 1)).astype("<f2").view(np.uint8)
        arrays[f"{name}/blocks"] = blocks
        arrays[f"{name}/values"] = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]).reshape(3, -1)
    np.savez_compressed(HERE / "blocks.npz", **arrays)

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
