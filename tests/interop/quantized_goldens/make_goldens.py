"""Make matrices.npz next to this file with AutoGPTQ 0.7.1, AutoAWQ 0.2.9 and bitsandbytes 0.50.2, which write such files.

    pip download --no-deps -d /tmp/packages auto-gptq==0.7.1 autoawq==0.2.9 bitsandbytes==0.50.2   # and unpack them there
    python tests/interop/quantized_goldens/make_goldens.py /tmp/packages

Single modules of the first two are loaded, which need torch and transformers alone. GPTQ: a matrix is packed by
`QuantLinear`, whose product with the identity is the dequantized matrix. AWQ: random integers. LLM.int8: quantized by
bitsandbytes. All dequantized matrices are [out, in] here.
"""

from __future__ import annotations

import importlib.util
import pathlib
import site
import sys
import types

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
INPUTS, OUTPUTS, GROUP = 64, 32, 16


def module(path: pathlib.Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def main() -> None:
    packages, rng, arrays = pathlib.Path(sys.argv[1]), np.random.default_rng(0), {}
    quant_linear = module(packages / "auto_gptq/nn_modules/qlinear/qlinear_cuda.py").QuantLinear
    for bits in (2, 3, 4, 8):
        linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False).half()
        # Zero points from 1: AutoGPTQ does not write 0 correctly.
        zeros = torch.from_numpy(rng.integers(1, 2**bits, (OUTPUTS, INPUTS // GROUP))).float()
        scales = torch.from_numpy(rng.uniform(0.01, 0.1, zeros.shape)).half()
        g_idx = torch.from_numpy(rng.permutation(INPUTS) // GROUP).int()
        values = torch.from_numpy(rng.integers(0, 2**bits, (OUTPUTS, INPUTS)))
        linear.weight.data = (values - zeros[:, g_idx]).half() * scales[:, g_idx]
        packed = quant_linear(bits, GROUP, INPUTS, OUTPUTS, bias=False)
        packed.pack(linear, scales, zeros, g_idx)
        for name in ("qweight", "qzeros", "scales", "g_idx"):
            arrays[f"gptq{bits}/{name}"] = getattr(packed, name).numpy()
        arrays[f"gptq{bits}/expected"] = packed(torch.eye(INPUTS).half()).T.numpy()

    words = [rng.integers(-(2**31), 2**31, (n, OUTPUTS // 8), dtype=np.int32) for n in (INPUTS, INPUTS // GROUP)]
    scales = rng.uniform(0.01, 0.1, (INPUTS // GROUP, OUTPUTS)).astype(np.float16)
    dequantize = module(packages / "awq/utils/packing_utils.py").dequantize_gemm
    expected = dequantize(*map(torch.from_numpy, (*words, scales)), 4, GROUP)
    arrays |= {
        "awq/qweight": words[0],
        "awq/qzeros": words[1],
        "awq/scales": scales,
        "awq/expected": expected.T.numpy(),
    }

    site.addsitedir(str(packages))
    from bitsandbytes import functional

    matrix = torch.from_numpy(rng.normal(0, 0.1, (OUTPUTS, INPUTS))).half()
    weight, scb, _ = functional.int8_vectorwise_quant(matrix)
    expected = functional.int8_vectorwise_dequant(weight, scb).half()
    arrays |= {"int8/weight": weight.numpy(), "int8/SCB": scb.numpy(), "int8/expected": expected.numpy()}
    np.savez_compressed(HERE / "matrices.npz", **arrays)


if __name__ == "__main__":
    main()
