"""Writing of a run's adapters in the format of Hugging Face's peft (see peft.py).

If the format stores several of our matrices as one (GPT-2's c_attn: query, key and value), their adapters are combined into one
of a higher rank: the A matrices are stacked, the B matrices form a block-diagonal matrix. This computes the same function.

Legend: R rank.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import re
from typing import Any

import numpy as np

from lm_research.common.disk import write_atomically
from lm_research.errors import PretrainedError
from lm_research.interop.peft import CONFIG, PREFIX, TASKS, WEIGHTS, A, B
from lm_research.interop.tensor_writer import write_tensors
from lm_research.interop.weight_reader import to_stored, weights_of
from lm_research.models import adapters
from lm_research.models.adapters import AdaptedDefinition
from lm_research.models.definition import Params
from lm_research.models.families import stored_as
from lm_research.models.families.common import ParamMapping
from lm_research.trees import flatten


def write_adapter(
    directory: pathlib.Path, definition: AdaptedDefinition, family: str, params: Params, base: str, kind: str
) -> None:
    """Write adapter_config.json and adapter_model.safetensors.

    Args:
      directory: created if it does not exist.
      definition: the model with its adapters; parameters in `lora.modules_to_save` are written whole.
      family: a key of FAMILIES.
      params: its parameters.
      base: the directory or name of the base model.
      kind: the base's `model_type`; "" if unknown.

    Raises:
      PretrainedError: the format cannot store a parameter of this model.
    """
    module, rank = stored_as(family, definition.arch, {"model_type": kind}), definition.lora.rank
    assert rank, "an adapted model has a rank"
    weights = weights_of(module, definition.base)
    prefix = module.prefix(definition.arch, definition.head.name, kind)
    leaves = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(params).items()}
    tensors: dict[str, np.ndarray] = {}
    joined: dict[str, int] = {}
    parts: dict[str, list[tuple[ParamMapping, np.ndarray, np.ndarray]]] = {}
    for layer, stacked in definition.stacked.items():
        weight = weights[f"{layer}/kernel"]
        pairs = [leaves[f"{layer}/{name}"] for name in (adapters.A, adapters.B)]
        for number, (a, b) in enumerate(zip(*pairs, strict=True) if stacked else [pairs]):
            names, own = module.module_names(_stored_name(weight, number, prefix)), weight
            if len(names) > 1:  # a module for each part
                names, own = names[weight.part :], dataclasses.replace(weight, part=0, parts=(1,))
            parts.setdefault(_module(names[0]), []).append((own, a.reshape(-1, rank), b.reshape(rank, -1)))
    for name, pieces in parts.items():
        tensors[PREFIX + name + A], tensors[PREFIX + name + B] = _join(pieces, rank)
        joined[name] = len(pieces)
    whole = {module.module_names(name)[0]: value for name, value in _whole(definition, weights, leaves, prefix).items()}
    tensors |= {PREFIX + name: value for name, value in whole.items()}

    listed = [(name, value.shape, value.dtype, lambda value=value: value) for name, value in tensors.items()]
    (path,) = write_tensors(directory, listed, max_shard_bytes=2**62)
    path.replace(directory / WEIGHTS)
    transposed = any(not pieces[0][0].transpose for pieces in parts.values())
    config = _config(definition, rank, base, joined, sorted({_module(name) for name in whole}), transposed)
    write_atomically(directory / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _config(
    definition: AdaptedDefinition, rank: int, base: str, joined: dict[str, int], saved: list[str], transposed: bool
) -> dict[str, Any]:
    lora, several = definition.lora, {name: count for name, count in joined.items() if count > 1}
    # alpha grows with the rank, or its square root, so that the scale of the product is unchanged.
    alphas = {name: lora.alpha * (math.sqrt(count) if lora.rslora else count) for name, count in several.items()}
    return {
        "peft_type": "LORA",
        "task_type": TASKS.get(definition.head.name),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "bias": "none",
        "rank_pattern": {re.escape(name): rank * count for name, count in several.items()},
        "alpha_pattern": {re.escape(name): alpha for name, alpha in alphas.items()},
        "target_modules": sorted(joined),
        "modules_to_save": saved or None,
        "fan_in_fan_out": transposed,
    }


def _stored_name(weight: ParamMapping, layer: int, prefix: str) -> str:
    name = weight.of_layer(weight.names[0], layer)
    return prefix + name[1:] if name.startswith("@") else name


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _join(pieces: list[tuple[ParamMapping, np.ndarray, np.ndarray]], rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Combine the adapters of the matrices in a stored matrix to its lora_A [R, in] and lora_B [out, R]."""
    a = np.concatenate([a.T for _, a, _ in pieces])
    rows = pieces[0][0].stored_size(pieces[0][2].shape[1])
    b = np.zeros((rows, rank * len(pieces)), np.float32)
    for number, (weight, _, part) in enumerate(pieces):
        b[weight.columns(part.shape[1]), number * rank : (number + 1) * rank] = part.T
    return np.ascontiguousarray(a), b


def _whole(
    definition: AdaptedDefinition, weights: dict[str, ParamMapping], leaves: dict[str, np.ndarray], prefix: str
) -> dict[str, np.ndarray]:
    """Tensors of the parameters that were trained in full (lora.modules_to_save)."""
    found = {}
    for path in flatten(definition.base.shapes):
        if not any(re.search(pattern, path) for pattern in definition.lora.modules_to_save):
            continue
        if "/layers/" in path:
            raise PretrainedError(
                f"lora.modules_to_save={','.join(definition.lora.modules_to_save)} trained {path} of all layers, which peft's format cannot store. Write the whole "
                "model: --to hf."
            )
        found[_stored_name(weights[path], 0, prefix)] = to_stored([weights[path]], [leaves[path]])
    return found
