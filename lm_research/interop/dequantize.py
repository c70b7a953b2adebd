"""Matrices of the integers and scales that GPTQ, AWQ and LLM.int8 store, each computed when it is read.

A matrix called NAME.weight is stored as several tensors NAME.qweight, NAME.scales, ... Their layouts are those of the
libraries that write them: AutoGPTQ and GPTQModel (`QuantLinear`), AutoAWQ (`WQLinear_GEMM`) and bitsandbytes
(`Linear8bitLt`). Methods: Frantar et al. 2022 (arXiv:2210.17323), Lin et al. 2023 (arXiv:2306.00978), Dettmers et al. 2022
(arXiv:2208.07339).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from lm_research.interop.tensor_types import StoredTensor, damaged

# Of AWQ: the k-th field of an integer, counted from the lowest bits, belongs to this one of its 8 columns.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
BLOCK = 128  # rows that are computed at a time, so that their float32 values fit in the cache

Parts = Mapping[str, StoredTensor]  # the tensors of one matrix by the last part of their names


def int8(name: str, parts: Parts, dtype: np.dtype) -> StoredTensor:
    """Describe a matrix of LLM.int8: weight [out, in] * SCB [out] / 127, as `dtype`.

    Raises:
      PretrainedError: a tensor is missing or has the wrong shape or type, or the integers are not row-major.
    """
    weight, scale = _part(name, parts, "weight", "int8"), _part(name, parts, "SCB", "float32")
    if len(weight.shape) != 2:
        raise damaged(weight.path, f"it has shape {weight.shape}, but quantized weights are matrices", f"{name}.weight")
    _check_shape(name, "SCB", scale, weight.shape[:1])
    layout = parts.get("weight_format")

    def load() -> np.ndarray:
        if layout is not None and np.any(layout.load() != 0):
            found = f"{name}.weight_format"
            raise damaged(layout.path, "the integers are not in row-major order (0), the only supported one", found)
        values, factors, matrix = weight.load(), scale.load()[:, None], np.empty(weight.shape, dtype)
        for start in range(0, len(values), BLOCK):
            rows = slice(start, start + BLOCK)
            matrix[rows] = (values[rows] * factors[rows] * np.float32(1 / 127)).astype(dtype)
        return matrix

    return StoredTensor(weight.path, weight.shape, dtype, load)


def gptq(name: str, parts: Parts, bits: int, group_size: int, stored_less_one: bool, order: bool) -> StoredTensor:
    """Describe a matrix of GPTQ: (qweight - zero) * scale for the zero point and scale of the input's group.

    Args:
      name: of the matrix, without ".weight".
      parts: qweight [in * bits / 32, out], qzeros [groups, out * bits / 32], scales [groups, out] and, unless groups are
        consecutive inputs, g_idx [in].
      bits: 2, 3, 4 or 8.
      group_size: inputs in a group; -1 for all.
      stored_less_one: whether zero points are stored less one (version 1 of the format).
      order: whether the groups follow another order of the inputs than theirs, so that g_idx is needed.

    Raises:
      PretrainedError: a tensor is missing or has the wrong shape or type.
    """
    packed, scales = _part(name, parts, "qweight", "int32"), _part(name, parts, "scales", "float")
    zeros = _part(name, parts, "qzeros", "int32")
    count = len(packed.shape) == 2 and packed.shape[0] * 32 // bits
    if not count or packed.shape[0] * 32 % bits:
        raise damaged(
            packed.path, f"it has shape {packed.shape}, which does not hold values of {bits} bits", f"{name}.qweight"
        )
    inputs, outputs = int(count), packed.shape[1]
    groups = _groups(name, packed, inputs, group_size)
    _check_shape(name, "scales", scales, (groups, outputs))
    _check_shape(name, "qzeros", zeros, (groups, outputs * bits // 32))
    if outputs * bits % 32:
        raise damaged(zeros.path, f"{outputs} zero points of {bits} bits do not fill integers", f"{name}.qzeros")
    index = _part(name, parts, "g_idx", "int32") if order or "g_idx" in parts else None
    if index is not None:
        _check_shape(name, "g_idx", index, (inputs,))

    def load() -> np.ndarray:
        group_of = np.arange(inputs) * groups // inputs if index is None else index.load()
        if index is not None and (group_of.min() < 0 or group_of.max() >= groups):
            raise damaged(index.path, f"it has groups other than 0 to {groups - 1}", f"{name}.g_idx")
        points = _zero_points(zeros.load(), bits, stored_less_one)
        return _scaled(unpack(packed.load(), bits), points, scales.load(), group_of)

    return StoredTensor(packed.path, (outputs, inputs), scales.dtype, load)


def awq(name: str, parts: Parts, group_size: int) -> StoredTensor:
    """Describe a matrix of AWQ in 4 bits and the layout "gemm", which differs from GPTQ's in the packed axis and its order.

    Args:
      name: of the matrix, without ".weight".
      parts: qweight [in, out / 8], qzeros [groups, out / 8] and scales [groups, out].
      group_size: inputs in a group; -1 for all.

    Raises:
      PretrainedError: a tensor is missing or has the wrong shape or type.
    """
    packed, scales = _part(name, parts, "qweight", "int32"), _part(name, parts, "scales", "float")
    zeros = _part(name, parts, "qzeros", "int32")
    if len(packed.shape) != 2 or not packed.shape[0]:
        raise damaged(
            packed.path, f"it has shape {packed.shape}, but quantized weights are matrices", f"{name}.qweight"
        )
    inputs, outputs = packed.shape[0], packed.shape[1] * 8
    groups = _groups(name, packed, inputs, group_size)
    _check_shape(name, "scales", scales, (groups, outputs))
    _check_shape(name, "qzeros", zeros, (groups, outputs // 8))

    def load() -> np.ndarray:
        values, points = (unpack(one.load().T, 4, AWQ_ORDER).T for one in (packed, zeros))
        return _scaled(values, points, scales.load(), np.arange(inputs) * groups // inputs)

    return StoredTensor(packed.path, (outputs, inputs), scales.dtype, load)


def unpack(words: np.ndarray, bits: int, order: Sequence[int] | None = None) -> np.ndarray:
    """Unpack int32 [n * bits / 32, m], whose columns are streams of bits from the lowest, to uint8 [n, m].

    Args:
      words: the integers.
      bits: 2, 3, 4 or 8. Values of 3 bits cross the borders of integers: 32 of them fill 3.
      order: places of the values of one integer (three of 3 bits); None if they are in order.
    """
    words = np.asarray(words).astype(np.uint32)
    span = 3 if bits == 3 else 1
    count = 32 * span // bits
    values = np.empty((len(words) * 32 // bits, words.shape[1]), np.uint8)
    for k, place in enumerate(order or range(count)):
        word, shift = divmod(k * bits, 32)
        field = words[word::span] >> shift
        if shift + bits > 32:
            field |= words[word + 1 :: span] << (32 - shift)
        values[place::count] = field & (2**bits - 1)
    return values


def _zero_points(words: np.ndarray, bits: int, stored_less_one: bool) -> np.ndarray:
    """Unpack GPTQ's zero points [groups, out].

    In version 1 they are stored less one. Zero becomes -1 there, which writers subtract from the whole integer: it borrows
    from the fields above, so 1 is added to all fields of the integer at once. Fields of 3 bits are changed one by one.
    """
    if not stored_less_one:
        return unpack(words.T, bits).T
    if bits == 3:
        return ((unpack(words.T, bits) + 1) & 7).T
    ones = np.uint32(sum(1 << shift for shift in range(0, 32, bits)))
    return unpack((words.astype(np.uint32) + ones).T, bits).T


def _scaled(values: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group_of: np.ndarray) -> np.ndarray:
    """Compute (values - zeros) * scales as [out, in], of the type of `scales`; each product is rounded once."""
    matrix = np.empty(values.shape[::-1], scales.dtype)
    zeros, factors = zeros.astype(np.float32), scales.astype(np.float32)
    for start in range(0, len(values), BLOCK):
        rows = slice(start, start + BLOCK)
        groups = group_of[rows]
        matrix[:, rows] = ((values[rows] - zeros[groups]) * factors[groups]).astype(scales.dtype).T
    return matrix


def _part(name: str, parts: Parts, suffix: str, kind: str) -> StoredTensor:
    """Return a tensor of a matrix, whose type is `kind`, or any floating-point type for "float"."""
    tensor = parts.get(suffix)
    if tensor is None:
        other = next(iter(parts))
        raise damaged(parts[other].path, f"its partner {name}.{suffix} is missing", f"{name}.{other}")
    large = jnp.issubdtype(tensor.dtype, jnp.floating) and tensor.dtype.itemsize > 1
    if not (large if kind == "float" else tensor.dtype == kind):
        needed = "a floating-point type" if kind == "float" else kind
        raise damaged(tensor.path, f"it has type {tensor.dtype}, but must have {needed}", f"{name}.{suffix}")
    return tensor


def _check_shape(name: str, suffix: str, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        what = f"it has shape {tensor.shape}, but the other tensors of this matrix and config.json make it {shape}"
        raise damaged(tensor.path, what, f"{name}.{suffix}")


def _groups(name: str, packed: StoredTensor, inputs: int, group_size: int) -> int:
    size = inputs if group_size == -1 else group_size
    if inputs % size:
        what = f"its {inputs} inputs are not divisible by config.json's group_size of {size}"
        raise damaged(packed.path, what, f"{name}.qweight")
    return inputs // size
