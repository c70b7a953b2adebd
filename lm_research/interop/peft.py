"""LoRA adapters in the format of Hugging Face's peft (adapter_config.json, adapter_model.safetensors), merged into their base.

Format: https://huggingface.co/docs/peft, LoRA. The product of `base_model.model.MODULE.lora_A.weight` [R, in] and `lora_B.weight`
[out, R] is added to `MODULE.weight`; for tables these are `lora_embedding_A` [R, rows] and `lora_embedding_B` [width, R]. Other
tensors, such as a classifier's, replace the base's. As in peft, only the named tensor changes, even if the base ties it to another.
"""

from __future__ import annotations

import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import override

from lm_research.common.documents import Finite, Object, Size, check_fields, read_json, short
from lm_research.common.paths import NOTHING, kind
from lm_research.errors import PretrainedError, not_downloaded
from lm_research.interop import quantized
from lm_research.interop.tensor_files import TensorSource, open_file
from lm_research.interop.tensor_types import StoredTensor
from lm_research.models.families.base import Family

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
OLD_WEIGHTS = "adapter_model.bin"
A, B = ".lora_A.weight", ".lora_B.weight"
TABLE_A, TABLE_B = ".lora_embedding_A", ".lora_embedding_B"
# Head -> task_type.
TASKS = {
    "classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "span": "QUESTION_ANS",
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
}
# Unsupported settings that change the arithmetic, with their only supported value.
_REFUSED = {
    "use_dora": False,
    "use_qalora": False,
    "use_bdlora": False,
    "lora_bias": False,
    "layer_replication": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "alora_invocation_tokens": None,
}


_KINDS: dict[str, Any] = {
    "peft_type": str,
    "lora_alpha": Finite,
    "alpha_pattern": dict[str, Finite],
    "base_model_name_or_path": str,
    "task_type": str,
    "fan_in_fan_out": bool,
    "use_rslora": bool,
    "modules_to_save": list[str],
    "r": Size,
}
_SLOW = re.compile(r"\)[*+?{]|\\[0-9]|\(\?")  # repeated groups can take exponential time


def is_adapter(directory: pathlib.Path) -> bool:
    """Whether this is the directory of an adapter and not of a whole model."""
    return (directory / CONFIG).is_file() and not (directory / "config.json").is_file()


def read_config(directory: pathlib.Path) -> dict[str, Any]:
    """Read adapter_config.json; raises a PretrainedError if it does not describe a supported LoRA adapter."""
    path = directory / CONFIG
    fix = f"Give an adapter's directory.{'' if directory.exists() else not_downloaded(directory)}"
    if kind(path) == NOTHING:
        raise PretrainedError(f"{path} cannot be read as the config of a peft adapter: there is no such file. {fix}")
    config = read_json(path, Object, error=PretrainedError, fix=fix)
    check_fields(config, _KINDS, str(path), error=PretrainedError, fix="Download it again, or fix it.")
    if config.get("peft_type") != "LORA" or config.get("lora_alpha") is None:
        values = f"peft_type is {short(config.get('peft_type'))} and lora_alpha {short(config.get('lora_alpha'))}"
        raise PretrainedError(f"{path}: {values}; only LORA with a number is supported. {fix}")
    for pattern in config.get("alpha_pattern") or {}:
        if _SLOW.search(pattern) or len(re.findall(r"[*+?{]", pattern)) > 2 or len(pattern) > 200:
            raise PretrainedError(
                f"{path}: alpha_pattern has {short(pattern)}, which may take years to match. Give the module's plain name."
            )
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise PretrainedError(
                f"{path}: alpha_pattern has {short(pattern)}, which is not a regular expression ({error}). {fix}"
            ) from error
    for name, only in _REFUSED.items():
        if config.get(name) not in (only, None):
            raise PretrainedError(
                f"{path}: {name} is {short(config[name])}, which is not supported. Merge the adapter with peft first."
            )
    return config


def base_of(directory: pathlib.Path) -> pathlib.Path:
    """Find the directory of an adapter's base model; raises a PretrainedError if it is not on this machine."""
    name = read_config(directory).get("base_model_name_or_path")
    try:
        if name and pathlib.Path(name).is_dir():
            return pathlib.Path(name)
    except (OSError, ValueError):  # not a valid path
        pass
    raise PretrainedError(
        f"{directory / CONFIG}: the adapter belongs to {short(name)}, which is not a directory here. Give the base's directory as the "
        f"model and this one as the adapter: from_pretrained(BASE, adapter={str(directory)!r}) or convert --source BASE --adapter "
        f"{directory}.{not_downloaded(name) if name else ''}"
    )


class Product(NamedTuple):
    """An adapter of a matrix, or of one of the parts of equal size that a stored matrix [out, in] is divided into."""

    module: str
    a: StoredTensor
    b: StoredTensor
    part: int = 0
    parts: int = 1


class AdaptedSource(TensorSource):
    """The weights of a base model with an adapter merged into them."""

    def __init__(
        self, base: TensorSource, directory: pathlib.Path, family: Family, tied: Mapping[str, str] | None = None
    ) -> None:
        """Read the adapter's headers.

        Args:
          base: weights of the base model.
          directory: the adapter.
          family: the base's family.
          tied: tables that the base ties: name -> the base's tensor that it stands for.

        Raises:
          PretrainedError: the adapter is damaged or does not fit the base.
        """
        self.base, self.format, self._config, self._directory = base, base.format, read_config(directory), directory
        self._tied = tied or {}
        path = directory / WEIGHTS
        tensors = open_file(
            path if path.is_file() or not (directory / OLD_WEIGHTS).is_file() else directory / OLD_WEIGHTS
        )
        quantized.check_tensors(path, {name: tensor.dtype for name, tensor in tensors.items()})
        pairs = {A: B, TABLE_A: TABLE_B}
        ends = (*pairs, *pairs.values())
        strange = [n for n in tensors if not n.startswith(PREFIX) or (".lora_" in n and not n.endswith(ends))]
        if strange:
            raise PretrainedError(f"{path}: tensor {strange[0]!r} does not belong to an adapter of matrices.")
        # peft calls an adapted layer's own tensors base_layer.
        inner = {name.removeprefix(PREFIX).replace(".base_layer.", "."): tensor for name, tensor in tensors.items()}
        self._modules: dict[
            str, tuple[str, int, int]
        ] = {}  # name of a module's tensor -> the base's tensor, and which part it is
        for stored in dict.fromkeys((*base.names, *self._tied)):
            names = family.module_names(stored)
            self._modules |= {name: (stored, part, len(names)) for part, name in enumerate(names)}
        self._products: dict[str, list[Product]] = {}
        self._tables: set[str] = set()
        self._whole: dict[str, StoredTensor] = {}
        touched = False
        for name, tensor in inner.items():
            end = next((end for end in ends if name.endswith(end)), "")
            module = name.removesuffix(end)
            base_name = self._name_in_base(f"{module}.weight" if end else name, must=bool(end))
            base_name, part, parts = self._modules.get(base_name, (base_name, 0, 1))
            touched |= base_name in self._tied and (bool(end) or self._is_saved(name))
            if not end and parts > 1:
                raise PretrainedError(
                    f"{path}: {name!r} replaces a part of the base's tensor {base_name!r}, which is not supported. Merge the adapter with "
                    "peft first."
                )
            if not end:
                self._whole[base_name] = tensor
                continue
            a, b = next(pair for pair in pairs.items() if end in pair)
            if not {module + a, module + b} <= set(inner):
                raise PretrainedError(f"{path} has {PREFIX}{name}, but not its counterpart. Download it again.")
            if end != a:
                continue
            product = Product(module, inner[module + a], inner[module + b], part, parts)
            self._products.setdefault(base_name, []).append(product)
            if a == TABLE_A:
                self._tables.add(base_name)
        # Tied tables are separate tensors once one of them has changed.
        self.names = list(dict.fromkeys([*base.names, *self._whole, *(self._tied if touched else ())]))
        for name, products in self._products.items():
            for product in products:
                self._transposed(name, product)

    @property
    def head(self) -> str | None:
        """The head that the adapter was trained with, a key of head_kinds.HEADS; None if its config does not specify one."""
        return next((head for head, task in TASKS.items() if task == self._config.get("task_type")), None)

    def _name_in_base(self, name: str, must: bool = True) -> str:
        """Find the base's name of a tensor; one of the names may have a prefix such as "bert." that the other lacks."""
        candidates = dict.fromkeys((*self.base.names, *self._tied, *self._modules))
        fits = [one for one in candidates if f".{one}".endswith(f".{name}") or f".{name}".endswith(f".{one}")]
        if must and not fits:
            raise PretrainedError(
                f"{self._directory}: the adapter changes {name!r}, which the base does not have. They belong to different models."
            )
        return max(fits, key=lambda one: (one == name, len(one)), default=name)

    def _is_saved(self, name: str) -> bool:
        """Whether a whole tensor belongs to modules_to_save: a trained copy, while the base's own tensor is unchanged elsewhere."""
        return any(f".{module}." in f".{name}" for module in self._config.get("modules_to_save") or ())

    def _transposed(self, name: str, product: Product) -> bool:
        """Whether the base's matrix is [in, out]; raises a PretrainedError if its shape fits neither this nor [out, in]."""
        _, a, b, _, parts = product
        if not (len(a.shape) == len(b.shape) == 2 and a.shape[0] and all(x.dtype.kind in "fV" for x in (a, b))):
            raise PretrainedError(
                f"{self._directory}: the adapter of {name!r} has {a.dtype} of shape {a.shape} and {b.dtype} of {b.shape}, which are not "
                "matrices of numbers. Download it again."
            )
        change, shape = (b.shape[0] * parts, a.shape[1]), self.shape(name)
        if name in self._tables and change == shape[::-1]:
            return True
        if b.shape[1] == a.shape[0] and change == shape[:: -1 if self._config.get("fan_in_fan_out") else 1]:
            return bool(self._config.get("fan_in_fan_out"))
        if b.shape[1] == a.shape[0] and change in (shape, shape[::-1]):
            return change != shape
        raise PretrainedError(
            f"{self._directory}: the adapter of {name!r} has shapes {a.shape} and {b.shape}, but the base's matrix is {shape}. They "
            "belong to different models."
        )

    def _scale(self, module: str, rank: int) -> float:
        patterns = self._config.get("alpha_pattern") or {}
        fits = [alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
        alpha = fits[0] if fits else self._config["lora_alpha"]
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        return self._whole[name].shape if name in self._whole else self.base.shape(self._tied.get(name, name))

    @override
    def dtype(self, name: str) -> np.dtype:
        return self._whole[name].dtype if name in self._whole else self.base.dtype(self._tied.get(name, name))

    @override
    def file(self, name: str) -> pathlib.Path:
        return self._whole[name].path if name in self._whole else self.base.file(self._tied.get(name, name))

    @override
    def read(self, name: str) -> np.ndarray:
        tensor = self._whole[name].load() if name in self._whole else self.base.read(self._tied.get(name, name))
        if name not in self._products:
            return tensor
        adapted = tensor.astype(np.float32)
        for product in self._products[name]:
            a, b = (one.load().astype(np.float32) for one in (product.a, product.b))
            change = self._scale(product.module, len(a)) * (b @ a)
            rows = (
                slice(len(change) * product.part, len(change) * (product.part + 1))
                if product.parts > 1
                else slice(None)
            )
            adapted[rows] += change.T if self._transposed(name, product) else change
        return adapted.astype(tensor.dtype)
