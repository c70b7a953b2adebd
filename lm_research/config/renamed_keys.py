"""Earlier names of config keys, for migrating stored configs and for messages that name the current key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Section -> earlier name of a key -> current name.
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
    """Rename the keys of a stored config, and values that were renamed with them, to the current names."""
    contents = (values.get(name) for name in ("train", "model", "task", "objective"))
    train, model, task, objective = (content if isinstance(content, Mapping) else {} for content in contents)
    # A config with both was stored with the current names; keys of its plug-ins may resemble earlier ones.
    if "plugins" in values and "on_nonfinite" in train:
        return values
    found = {section: _renamed(section, content) for section, content in values.items()}
    if model.get("attention") == "plain":
        found["model"]["attention_backend"] = "xla"
    if isinstance(task.get("target"), str):
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
