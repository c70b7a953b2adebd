"""ERNIE (Sun et al. 2019, arXiv:1907.12412): BERT trained on several tasks, whose numbers are embedded with the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.bert import Bert
from lm_research.models.families.common import ConfigField, ParamMapping, tensor, without
from lm_research.models.families.encoder_weights import with_paths

TASK_TYPES = 3


class Ernie(Bert):
    """BERT with embeddings of the task (Sun et al. 2019)."""

    # Sun et al. 2019, section 4.2: the shapes of BERT.
    sizes = {name: Bert.sizes[name] for name in ("base", "large")}

    model_types = {"ernie": "Ernie"}
    classes = without(Bert.classes, "LMHeadModel") | {"ForCausalLM": "causal_lm"}
    config_fields = (*Bert.config_fields, ConfigField("num_task_types", "task_type_vocab_size", TASK_TYPES))
    other_keys = {"use_task_id": bool}
    base_prefix = "ernie."

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        return fields if hf.get("use_task_id") else fields | {"num_task_types": 0}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        types = arch.num_task_types or TASK_TYPES
        return super().to_hf(arch) | {"use_task_id": arch.num_task_types > 0, "task_type_vocab_size": types}

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        task_types = tensor("encoder/embeddings/task_types", "@embeddings.task_type_embeddings.weight")
        return (*super().weights(arch, head), *with_paths(task_types, arch, head))


FAMILIES.register("ernie")(Ernie())
