"""Weight files with the names of transformers' modules where those differ from the names of its files.

`torch.save(model.state_dict())` and `save_pretrained(save_original_format=False)` write them: parts of a tensor by themselves, and the
experts of a layer in one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lm_research.interop.tensor_files import Files
from lm_research.interop.tensor_types import StoredTensor
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import Family
from lm_research.models.families.common import ParamMapping

# Name of an expert's matrix in our paths -> the tensor of all experts [E, out, in], and which of how many parts of its outputs it is.
EXPERTS = {"gate": ("gate_up_proj", 0, 2), "up": ("gate_up_proj", 1, 2), "down": ("down_proj", 0, 1)}


def with_stored_names(source: Files, family: Family, arch: Architecture, prefixes: Callable[[str], list[str]]) -> Files:
    """Rename, join and divide tensors that have names of modules, so that all have the names of files.

    Args:
      source: the weight files.
      family: of the model.
      arch: its architecture.
      prefixes: returns a family's name with each of the prefixes that files may have (tied_tables.Names.of).
    """
    tensors = dict(source.tensors)
    for weight, names in _stored(family, arch):
        if any(name in source.tensors for one in names for name in prefixes(one)):
            continue
        for name in (name for one in names for name in prefixes(one)):
            modules = family.module_names(name)
            if weight.by_expert:
                made = _expert(source, weight, modules[0])
            else:
                made = _joined(source, modules) if modules != (name,) else None
            if made is not None:
                tensors[name] = made[0]
                for used in made[1]:
                    tensors.pop(used, None)
                break
    return Files(source.format, tensors)


def _stored(family: Family, arch: Architecture) -> Iterator[tuple[ParamMapping, list[str]]]:
    """Yield each weight of a layer with its possible names in files."""
    depth = max(stack.num_blocks for stack in (arch, arch.encoder) if stack is not None)
    seen = set[tuple[str, ...]]()
    for head in dict.fromkeys(family.classes.values()):
        for weight in family.weights(arch, head):
            for layer in range(depth * (weight.group if weight.by_expert else 1) if "{}" in weight.names[0] else 1):
                names = tuple(weight.of_layer(name, layer) for name in (*weight.preferred, *weight.names))
                if names not in seen:
                    seen.add(names)
                    yield weight, list(names)


def _joined(source: Files, modules: tuple[str, ...]) -> tuple[StoredTensor, tuple[str, ...]] | None:
    """The tensor whose parts have these names, if the files have them all."""
    if not all(name in source.tensors for name in modules):
        return None
    parts = [source.tensors[name] for name in modules]
    if len(parts) == 1:
        return parts[0], modules
    first = parts[0]
    shape = (sum(part.shape[0] for part in parts if part.shape), *first.shape[1:])
    if any(part.shape[1:] != first.shape[1:] or not part.shape for part in parts):
        return None
    return StoredTensor(first.path, shape, first.dtype, lambda: np.concatenate([p.load() for p in parts])), modules


def _expert(source: Files, weight: ParamMapping, name: str) -> tuple[StoredTensor, tuple[str, ...]] | None:
    """The matrix of one expert, if the files have that of all of its layer's experts."""
    fused, part, parts = EXPERTS[weight.path.removesuffix("/kernel").rpartition("_")[2]]
    module, _, rest = name.rpartition(".experts.")
    whole, number = source.tensors.get(f"{module}.experts.{fused}"), int(rest.partition(".")[0])
    if whole is None or len(whole.shape) != 3 or number >= whole.shape[0]:
        return None
    size = whole.shape[1] // parts
    rows = slice(part * size, (part + 1) * size)
    tensor = StoredTensor(whole.path, (size, whole.shape[2]), whole.dtype, lambda: whole.load()[number, rows])
    return tensor, (f"{module}.experts.{fused}",)
