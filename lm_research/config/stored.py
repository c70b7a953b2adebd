"""The config.json of runs, including those that earlier versions wrote.

At first each section held the keys of all of its variants; the keys of variants that the run did not choose were never read, and are
dropped. Later many keys were renamed (RENAMED).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_research.config import schema
from lm_research.config.keys import Key, keys_of
from lm_research.config.registries import VARIANTS
from lm_research.config.resolving import Tree, build, objective_of_task, to_dict
from lm_research.config.run import Config
from lm_research.config.variants import import_plugins

# Sections that every stored config has.
_STORED = ("model", "objective", "data", "optimizer", "schedule", "train")

# Section -> a key's earlier name -> its name.
RENAMED: dict[str, dict[str, str]] = {
    "model": {"norm": "norm_position", "attention": "attention_backend"},
    "objective": {
        "static": "dupe_factor",
        "short_rate": "short_seq_prob",
        "mean_span": "mean_span_length",
        "max_span": "max_span_length",
        "infill_rate": "text_infilling_prob",
        "permute_rate": "permute_sentence_prob",
        "delete_rate": "token_deletion_prob",
        "rotate_rate": "document_rotation_prob",
        "pairs": "sentence_pair",
        "next_sentence": "sentence_pair",
    },
    "task": {
        "target": "problem_type",
        "together_key": "group_key",
        "credit_key": "relevance_key",
        "stride": "doc_stride",
        "generate": "predict_with_generate",
        "decoding": "generation",
        "null_threshold": "null_score_diff_threshold",
    },
    "data": {"documents": "document_separator"},
    "clean": {"scrub": "redact_pii"},
    "tokenizer": {"kind": "type"},
    "train": {"batch_per_device": "per_device_batch_size", "nonfinite": "on_nonfinite"},
    "lora": {"targets": "target_modules", "full": "modules_to_save"},
}


def renamed(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored config with today's names of keys, and of the values that were renamed with them."""
    found = {section: _renamed(section, content) for section, content in values.items()}
    model, task, objective = (values.get(name) or {} for name in ("model", "task", "objective"))
    if model.get("attention") == "plain":
        found["model"]["attention_backend"] = "xla"
    if "target" in task:
        single = "contrastive" if task.get("name") == "embedding" else "single_label"
        names = {"label": single, "labels": "multi_label", "value": "regression"}
        found["task"]["problem_type"] = names.get(task["target"], task["target"])
    if "next_sentence" in objective or "pairs" in objective:
        pairs, next_sentence = objective.get("pairs", "auto"), objective.get("next_sentence", True)
        either = "next_sentence" if next_sentence else "none"
        found["objective"]["sentence_pair"] = either if pairs == "auto" else pairs
    return found


def _renamed(section: str, content: Any) -> Any:
    names = RENAMED.get(section)
    if names is None or not isinstance(content, Mapping):
        return content
    return {names.get(leaf, leaf): value for leaf, value in content.items()}


def is_old(values: Mapping[str, Any]) -> bool:
    """Whether values are a stored config of before sections had variants."""
    return "plugins" not in values and all(isinstance(values.get(name), Mapping) for name in _STORED)


def migrated(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A stored config in today's form; what was not stored by an earlier version stays as it is.

    Raises:
      ConfigError: a section chooses what there is not.
    """
    values = renamed(values)
    if not is_old(values):
        return values
    found: Tree = dict(values)
    for section, registry in VARIANTS.items():
        content = values.get(section) or {}
        name = (objective_of_task(values) if section == "objective" else None) or registry.chosen(content)
        if name is None:
            found[section] = None
            continue
        others = {leaf for variant in registry for leaf in registry.keys(variant)} - registry.keys(name).keys()
        kept = {leaf: value for leaf, value in content.items() if leaf not in others}
        found[section] = kept | {registry.chooser: name}
    return found


def complete(values: Mapping[str, Any]) -> tuple[Tree, dict[str, Any]]:
    """A stored config in today's form, with today's defaults for keys that it does not have; and apart, by key, what is no longer known.

    Raises:
      ConfigError: a key has a value that it cannot have.
    """
    known: Tree = {}
    unknown: dict[str, Any] = {}
    if "plugins" in values:  # which say what others there are
        import_plugins(keys_of(Config, "")["plugins"].check(values["plugins"]))
    for section, content in migrated(values).items():
        if section in schema.sections() and isinstance(content, Mapping):
            keys = _keys(section, content)
            known[section] = {leaf: value for leaf, value in content.items() if leaf in keys}
            unknown |= {f"{section}.{leaf}": value for leaf, value in content.items() if leaf not in keys}
        else:
            is_key = section in keys_of(Config, "") or section in schema.sections()
            (known if is_key else unknown)[section] = content
    return to_dict(build(known)), unknown


def _keys(section: str, content: Mapping[str, Any]) -> dict[str, Key]:
    if section not in VARIANTS:
        return keys_of(schema.sections()[section], section)
    name = VARIANTS[section].chosen(content)
    return VARIANTS[section].keys(name) if name else {}
