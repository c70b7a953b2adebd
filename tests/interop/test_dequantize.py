"""Quantized weights that are dequantized on reading: LLM.int8 of bitsandbytes, GPTQ, and AWQ in the layout "gemm".

Expected matrices come from the libraries themselves (quantized_goldens/make_goldens.py), or from the formulas below, which are
computed value by value: (q - zero) * scale of GPTQ (arXiv:2210.17323) and AWQ (arXiv:2306.00978), and q * SCB / 127 of LLM.int8
(arXiv:2208.07339, section 2).
"""

from __future__ import annotations

import functools
import json
import logging
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import lm_research
from helpers.golden_models import golden_tensor
from lm_research.errors import PretrainedError
from lm_research.interop import dequantize
from lm_research.interop.tensor_types import StoredTensor

HERE = pathlib.Path(__file__).parent
PEFT = HERE / "peft_goldens" / "gpt2"
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # AutoAWQ's order_map
Arrays = dict[str, np.ndarray]


def stored(arrays: Arrays) -> dict[str, StoredTensor]:
    return {name: StoredTensor(pathlib.Path("f"), x.shape, x.dtype, lambda x=x: x) for name, x in arrays.items()}


@pytest.mark.parametrize("name", ["gptq2", "gptq3", "gptq4", "gptq8", "awq", "int8"])
def test_matrices_are_those_of_the_libraries(name: str) -> None:
    """Every value is equal, also with groups in another order than the inputs (GPTQ)."""
    with np.load(HERE / "quantized_goldens" / "matrices.npz") as file:
        arrays = {key.split("/")[1]: file[key] for key in file if key.startswith(f"{name}/")}
    expected = arrays.pop("expected")
    if name == "int8":
        matrix = dequantize.int8("m", stored(arrays), np.dtype(np.float16))
    elif name == "awq":
        matrix = dequantize.awq("m", stored(arrays), 16)
    else:
        matrix = dequantize.gptq("m", stored(arrays), int(name[4:]), 16, stored_less_one=True, order=True)
    assert (matrix.shape, matrix.dtype) == (expected.shape, expected.dtype) == ((32, 64), np.float16)
    np.testing.assert_array_equal(matrix.load(), expected)


def words(number: int, count: int) -> list[int]:
    """The number's 32-bit digits from the lowest, as signed integers."""
    digits = [(number >> 32 * i) & 0xFFFFFFFF for i in range(count)]
    return [digit - (1 << 32) if digit >> 31 else digit for digit in digits]


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Pack [n, m] to int32 [n * bits / 32, m]: each column is one number, with the first value in its lowest bits."""
    columns = [
        words(sum(int(value) << bits * i for i, value in enumerate(column)), len(column) * bits // 32)
        for column in values.T
    ]
    return np.array(columns, np.int32).T


def interleaved(values: np.ndarray) -> np.ndarray:
    """Pack [n, m] to int32 [n, m / 8] in AWQ's order."""
    return np.array(
        [
            [words(sum(int(row[8 * b + k]) << 4 * i for i, k in enumerate(ORDER)), 1)[0] for b in range(len(row) // 8)]
            for row in values
        ],
        np.int32,
    )


@functools.cache
def quantized(kind: str, outputs: int, inputs: int, seed: int) -> tuple[Arrays, np.ndarray]:
    """Tensors of one random matrix, and its values [out, in]. Kinds are the keys of CONFIGS."""
    rng = np.random.default_rng(seed)
    if kind == "int8":
        q, scb = rng.integers(-127, 128, (outputs, inputs)), rng.uniform(0.1, 0.5, outputs).astype(np.float32)
        expected = [[float(q[o, i]) * float(scb[o]) / 127 for i in range(inputs)] for o in range(outputs)]
        tensors = {"weight": q.astype(np.int8), "SCB": scb, "weight_format": np.array(0, np.uint8)}
        return tensors, np.array(expected).astype(np.float16)
    config = CONFIGS[kind]
    bits, size = config["bits"], inputs if config["group_size"] == -1 else config["group_size"]
    groups = inputs // size
    q, zero = rng.integers(0, 2**bits, (inputs, outputs)), rng.integers(1, 2**bits, (groups, outputs))
    scale = (rng.uniform(0.2, 1.0, (groups, outputs)) / 2**bits).astype(np.float16)
    group_of = rng.permutation(inputs) // size if config.get("desc_act") else np.arange(inputs) // size
    # In double precision the product is exact, so that it is rounded once.
    expected = [
        [(int(q[i, o]) - int(zero[group_of[i], o])) * float(scale[group_of[i], o]) for i in range(inputs)]
        for o in range(outputs)
    ]
    if config["quant_method"] == "awq":
        tensors = {"qweight": interleaved(q), "qzeros": interleaved(zero), "scales": scale}
    else:
        less = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
        tensors = {"qweight": packed(q, bits), "qzeros": packed((zero - less).T, bits).T, "scales": scale}
        if config.get("desc_act") is not None:
            tensors["g_idx"] = group_of.astype(np.int32)
    return tensors, np.array(expected).astype(np.float16)


CONFIGS: dict[str, dict[str, Any]] = {
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0},
    "gptq4": {"quant_method": "gptq", "bits": 4, "group_size": 8, "desc_act": True, "sym": False},
    "gptq8": {"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq"},
    "gptq4_v2": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 8,
        "checkpoint_format": "gptq_v2",
        "desc_act": False,
    },
    "gptq2": {"quant_method": "gptq", "bits": 2, "group_size": 16, "format": "gptq"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 8, "version": "gemm", "zero_point": True},
    "awq_one_group": {"quant_method": "awq", "bits": 4, "group_size": -1, "version": "GEMM"},
}
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 41,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}


def llama() -> Arrays:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (41, 32), "lm_head.weight": (41, 32)}
    shapes["model.norm.weight"] = (32,)
    for layer in ("model.layers.0", "model.layers.1"):
        for name, outputs in {"q": 32, "k": 16, "v": 16, "o": 32}.items():
            shapes |= {f"{layer}.self_attn.{name}_proj.weight": (outputs, 32)}
            shapes |= {f"{layer}.self_attn.{name}_proj.bias": (outputs,)}
        shapes |= {f"{layer}.mlp.{name}_proj.weight": (48, 32) for name in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": (32, 48)}
        shapes |= {f"{layer}.{name}_layernorm.weight": (32,) for name in ("input", "post_attention")}
    return {name: golden_tensor(name, shape).astype(np.float16) for name, shape in shapes.items()}


def write(directory: pathlib.Path, config: dict[str, Any], tensors: Arrays) -> pathlib.Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    return directory


def write_both(
    folder: pathlib.Path, kind: str, config: dict[str, Any], tensors: Arrays, input_first: bool = False
) -> tuple[pathlib.Path, pathlib.Path]:
    """A model whose matrices in blocks are quantized, and the same model with the dequantized ones."""
    plain, small = dict(tensors), dict(tensors)
    for seed, name in enumerate(name for name in tensors if "_proj.weight" in name or ".c_" in name):
        if name.endswith(".weight"):
            shape = tensors[name].shape[:: -1 if input_first else 1]
            parts, matrix = quantized(kind, *shape, seed)
            del small[name]
            small |= {f"{name.removesuffix('weight')}{suffix}": part for suffix, part in parts.items()}
            plain[name] = matrix.T if input_first else matrix
    return (
        write(folder / "quantized", config | {"quantization_config": CONFIGS[kind]}, small),
        write(folder / "plain", config, plain),
    )


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_quantized_model_is_the_model_of_its_dequantized_weights(
    kind: str, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    small, plain = write_both(tmp_path, kind, LLAMA, llama())
    with caplog.at_level(logging.INFO, "lm_research"):
        lm, other = (lm_research.from_pretrained(one) for one in (small, plain))
    assert [r.getMessage().split(": ")[1] for r in caplog.records] == [
        f"dequantized 14 matrices of {'bitsandbytes (8 bit)' if kind == 'int8' else CONFIGS[kind]['quant_method']}"
    ]
    assert lm.report.lines() == []
    ids = np.arange(22).reshape(2, 11) % 41
    np.testing.assert_array_equal(lm(input_ids=ids)["logits"], other(input_ids=ids)["logits"])
    lm.save_pretrained(tmp_path / "saved")
    other.save_pretrained(tmp_path / "other")
    for file in ("model.safetensors", "config.json"):  # without quantization_config
        assert (tmp_path / "saved" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


@pytest.mark.parametrize("kind", ["int8", "gptq4_v2", "awq"])
def test_matrices_that_gpt2_stores_transposed_and_an_adapter(kind: str, tmp_path: pathlib.Path) -> None:
    """Quantized, the matrices of transformers' Conv1D [in, out] are [out, in] like all others."""
    config = json.loads((PEFT / "base" / "config.json").read_text())
    tensors = safetensors.numpy.load_file(PEFT / "base" / "model.safetensors")
    tensors = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    small, plain = write_both(tmp_path, kind, config, tensors, input_first=True)
    ids = np.arange(12).reshape(2, 6)
    for adapter in (None, PEFT / "adapter"):
        found, expected = (
            np.asarray(lm_research.from_pretrained(one, adapter=adapter)(input_ids=ids)["logits"])
            for one in (small, plain)
        )
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("others", [np.float16, np.float32])
def test_int8_gets_the_smallest_type_of_the_other_tensors(others: type, tmp_path: pathlib.Path) -> None:
    """As transformers' dequantize(): also in a model of half precision with some tensors in float32."""
    tensors = {name: tensor.astype(others) for name, tensor in llama().items()}
    tensors["lm_head.weight"] = tensors["lm_head.weight"].astype(np.float32)
    small, _ = write_both(tmp_path, "int8", LLAMA, tensors)
    lm = lm_research.from_pretrained(small)
    assert lm.params["decoder"]["layers"]["attention"]["query"]["kernel"].dtype == others


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_zero_point_of_zero_borrows_from_the_next(bits: int) -> None:
    """GPTQModel subtracts 1 from all fields of an integer at once: 0 and 1 become all ones and, after the borrow, all ones again.

    Example of 8 bits: 0x00000100 - 0x01010101 = 0xfeff_ffff (fields ff, ff, fe, fe, as 0 - 1 and 1 - 1 - the borrow).
    """
    count = 32 // bits
    zero = [0, 1, *[2] * (count - 2)]
    number = sum(value << bits * i for i, value in enumerate(zero)) - sum(1 << bits * i for i in range(count))
    parts = {
        "qweight": np.zeros((1, count), np.int32),
        "qzeros": np.array([words(number % 2**32, 1)], np.int32),
        "scales": np.ones((1, count), np.float16),
    }
    matrix = dequantize.gptq("m", stored(parts), bits, -1, stored_less_one=True, order=False).load()
    np.testing.assert_array_equal(matrix, np.repeat(-np.array(zero)[:, None], count, axis=1))


def test_long_matrices_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dequantize, "BLOCK", 3)
    tensors, expected = zip(*(quantized(kind, 16, 32, 0) for kind in ("gptq4", "awq", "int8")), strict=True)
    found = (
        dequantize.gptq("m", stored(tensors[0]), 4, 8, stored_less_one=True, order=True),
        dequantize.awq("m", stored(tensors[1]), 8),
        dequantize.int8("m", stored(tensors[2]), np.dtype(np.float16)),
    )
    for matrix, values in zip(found, expected, strict=True):
        np.testing.assert_array_equal(matrix.load(), values)


@pytest.mark.parametrize(
    ("rows", "outputs", "message"),
    [
        (4, 32, r"shape \(4, 32\), which does not hold values of 3 bits"),
        (3, 16, r"16 zero points of 3 bits do not fill"),
    ],
)
def test_values_of_3_bits_fill_three_integers(rows: int, outputs: int, message: str) -> None:
    shapes = {"qweight": (rows, outputs), "qzeros": (1, outputs * 3 // 32)}
    parts = {name: np.zeros(shape, np.int32) for name, shape in shapes.items()}
    parts["scales"] = np.ones((1, outputs), np.float16)
    with pytest.raises(PretrainedError, match=message):
        dequantize.gptq("m", stored(parts), 3, -1, stored_less_one=True, order=False)


UP = "model.layers.1.mlp.up_proj"
DAMAGED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # message: kind, tensors that replace those of the matrix (None: removed), settings that change
    rf"its partner {UP}.scales is missing": ("gptq4", {"scales": None}, {}),
    rf"'{UP}.qweight'.* its partner {UP}.qzeros is missing": ("awq", {"qzeros": None}, {}),
    rf"partner {UP}.qweight is missing": ("awq", {"qweight": None}, {}),
    rf"partner {UP}.g_idx is missing": ("gptq4", {"g_idx": None}, {}),
    rf"partner {UP}.weight is missing": ("int8", {"weight": None}, {}),
    rf"int8 without scales, by tensor '{UP}.weight'": ("int8", {"SCB": None, "weight_format": None}, {}),
    rf"'{UP}.scales'.* has shape \(4, 47\), but .* \(4, 48\)": ("gptq4", {"scales": np.ones((4, 47), np.float16)}, {}),
    rf"'{UP}.scales'.* has type int32, but .* floating": ("awq", {"scales": np.ones((4, 48), np.int32)}, {}),
    rf"'{UP}.qzeros'.* has shape \(4, 7\), but .* \(4, 6\)": ("awq", {"qzeros": np.ones((4, 7), np.int32)}, {}),
    rf"'{UP}.qweight'.* has type int64, but .* int32": ("gptq4", {"qweight": np.ones((4, 48), np.int64)}, {}),
    rf"'{UP}.qweight'.* has shape \(4,\)": ("gptq4", {"qweight": np.ones(4, np.int32)}, {}),
    rf"'{UP}.qweight'.* has shape \(0, 6\)": ("awq", {"qweight": np.ones((0, 6), np.int32)}, {}),
    rf"'{UP}.g_idx'.* has shape \(31,\)": ("gptq4", {"g_idx": np.zeros(31, np.int32)}, {}),
    rf"'{UP}.g_idx'.* groups other than 0 to 3": ("gptq4", {"g_idx": np.full(32, 4, np.int32)}, {}),
    r"g_idx'.* has groups other": ("gptq4_v2", {"g_idx": np.full(32, -1, np.int32)}, {}),
    rf"'{UP}.SCB'.* has shape \(32,\), but .* \(48,\)": ("int8", {"SCB": np.ones(32, np.float32)}, {}),
    rf"'{UP}.weight'.* has shape \(48,\)": ("int8", {"weight": np.ones(48, np.int8)}, {}),
    rf"'{UP}.weight_format'.* row-major order": ("int8", {"weight_format": np.array(2, np.uint8)}, {}),
    rf"'{UP}.weight'.* also stored as quantized": ("gptq8", {"weight": np.ones((48, 32), np.float16)}, {}),
    r"48 inputs are not divisible by config.json's group_size of 10": ("awq", {}, {"group_size": 10}),
    r"48 inputs are not divisible by config.json's group_size of 128": ("gptq2", {}, {"group_size": None}),
    r"group_size is 0, but must be positive": ("gptq4", {}, {"group_size": 0}),
    r"quantization_config: group_size is 'a'": ("gptq4", {}, {"group_size": "a"}),
    r"down_proj.scales'.* has shape \(6, 32\), but .* \(3, 32\)": ("gptq4", {}, {"bits": 8}),
    r"gptq with bits 5\. Such files are not supported": ("gptq4", {}, {"bits": 5}),
    r"awq with bits 8\. Such": ("awq", {}, {"bits": 8}),
    r"awq in the layout 'gemv'\. Such": ("awq", {}, {"version": "gemv"}),
    r"awq in the layout 'llm-awq'\. Such": ("awq", {}, {"version": None, "backend": "llm-awq"}),
    r"gptq in the layout 'marlin'\. Such": ("gptq4", {}, {"checkpoint_format": "marlin"}),
    r"quantization_config is that of gptq, but .* NAME.qweight": ("int8", {}, {"quant_method": "gptq", "bits": 4}),
    r"bitsandbytes \(8 bit\), but .* NAME.SCB": ("awq", {}, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    r"down_proj.scales'.* has shape \(6, 32\), but .* \(48, 4\)": ("awq", {}, {"quant_method": "gptq"}),
    rf"{UP}.SCB'\. The quantization_config of config.json does not": ("awq", {"SCB": np.ones(48, np.float32)}, {}),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_damaged_files_and_other_configs_are_refused(message: str, tmp_path: pathlib.Path) -> None:
    kind, changes, settings = DAMAGED[message]
    small, _ = write_both(tmp_path, kind, LLAMA, llama())
    tensors = safetensors.numpy.load_file(small / "model.safetensors")
    tensors |= {f"{UP}.{suffix}": value for suffix, value in changes.items()}
    shutil.rmtree(small)
    config = LLAMA | {"quantization_config": CONFIGS[kind] | settings}
    write(small, config, {name: value for name, value in tensors.items() if value is not None})
    with pytest.raises(PretrainedError, match=message):
        lm_research.from_pretrained(small)
