"""Reading of config.json of a Hugging Face model: checks of the keys that all families share, and its labels.

Each family's keys and their types are in its file in models/families/ (KEYS, OTHERS), and ranges of sizes in models/limits.py.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from lm_research.common.documents import Object, read_json, short
from lm_research.errors import PretrainedError, not_downloaded, suggest
from lm_research.models.families.base import Family
from lm_research.models.families.common import FIX, check_others
from lm_research.models.head_kinds import HEADS
from lm_research.models.label_losses import PROBLEM_TYPES
from lm_research.models.limits import MAX_LABELS, Labels, Token

CONFIG = "config.json"
_Tokens = Token | list[Token]
# Keys of a model, and of the parts of a model that combines an encoder and a decoder.
_KINDS: dict[str, Any] = {
    "architectures": list[str],
    "num_labels": Labels,
    "id2label": dict[str, str | int | float | bool | None],
    "label2id": Object,
    "problem_type": str,
    "is_encoder_decoder": bool,
    "is_decoder": bool,
    "add_cross_attention": bool,
    "tie_word_embeddings": bool,
    "cross_attention_hidden_size": int,
    "bos_token_id": Token,
    "eos_token_id": _Tokens,
    "pad_token_id": Token,
    "decoder_start_token_id": Token,
    "forced_bos_token_id": _Tokens,
    "forced_eos_token_id": _Tokens,
    "task_specific_params": Object,
    "quantization_config": Object,
    "compression_config": Object,
    "quantization": Object,
}


def read_config(directory: pathlib.Path) -> dict[str, Any]:
    """Read config.json of a model directory and check the types of its keys.

    Raises:
      PretrainedError: the file is missing, or does not describe a model.
    """
    path = directory / CONFIG
    try:
        if not directory.is_dir():
            what = "is a file" if directory.exists() else "does not exist"
            raise PretrainedError(
                f"The model directory {directory} {what}. Give the path of a directory with a config.json.{not_downloaded(directory)}"
            )
        found = sorted(entry.name for entry in directory.iterdir())
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise PretrainedError(f"The model directory {directory} cannot be read: {error}. Give another path.") from error
    if CONFIG not in found:
        listed = ", ".join(found[:10]) or "nothing"
        raise PretrainedError(f"{directory} has no config.json, so it is not a model directory. It contains: {listed}.")
    config = read_json(path, Object, error=PretrainedError, fix="Download it again.")
    check_config(config, str(path))
    for part in ("encoder", "decoder"):
        if isinstance(config.get(part), dict):
            check_config(config[part], f"{path}: {part}")
    return config


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise a PretrainedError if a key that all families share has the wrong type."""
    check_others(config, _KINDS, where)
    if len(config.get("id2label") or ()) > MAX_LABELS:
        raise PretrainedError(
            f"{where}: id2label has {len(config['id2label'])} labels; at most {MAX_LABELS} are possible. {FIX}"
        )


def in_file(directory: pathlib.Path, error: PretrainedError) -> PretrainedError:
    """Prefix an error about config.json with the directory."""
    text = str(error)
    return PretrainedError(f"{directory / text}" if text.startswith(CONFIG) else f"{directory / CONFIG}: {text}")


def num_labels(config: Mapping[str, Any], directory: pathlib.Path, head: str) -> int:
    """Count the labels in config.json; raises a PretrainedError if a head with named labels lacks a name for some index."""
    named = config.get("id2label") or {}
    if HEADS[head].named_labels and named:
        numbers = [_number(key) for key in named]
        if sorted(numbers) != list(range(len(named))):
            raise PretrainedError(
                f"{directory / CONFIG}: the keys of id2label are {short(list(named))}, but {len(named)} labels must have the indices 0 to "
                f"{len(named) - 1}. {FIX}"
            )
    return len(named) or config.get("num_labels") or 2


def _number(key: str) -> int:
    return int(key) if key.isdecimal() and len(key) < 10 else -1


def check_one_end(config: Mapping[str, Any], directory: pathlib.Path) -> None:
    """Raise a PretrainedError if several tokens end texts, for a classifier that reads the state of the end token."""
    ends = config.get("eos_token_id")
    if isinstance(ends, list) and len(ends) > 1:
        raise PretrainedError(
            f"{directory / CONFIG}: eos_token_id is {short(ends)}, but the classifier of this family reads the state of the one token that ends "
            "a text. Set eos_token_id to that token."
        )


def check_num_labels(labels: Any) -> None:
    """Raise a PretrainedError unless `labels` is None or a valid number of labels."""
    if labels is not None and (type(labels) is not int or not 1 <= labels <= MAX_LABELS):
        raise PretrainedError(f"num_labels is {short(labels)}; it is a whole number from 1 to {MAX_LABELS}.")


def with_problem_type(config: dict[str, Any], labels: int, changed: bool, directory: pathlib.Path) -> dict[str, Any]:
    """Check problem_type against the number of outputs; it is removed if a new number of labels (`changed`) invalidates it.

    Raises:
      PretrainedError: problem_type is unknown, or single-label classification with one label.
    """
    problem = config.get("problem_type")
    if problem is not None and problem not in PROBLEM_TYPES:
        raise PretrainedError(
            f"{directory}: config.json: problem_type is {problem!r:.80}. {suggest(problem[:80], PROBLEM_TYPES)}"
        )
    if problem != "single_label_classification" or labels > 1:
        return config
    if changed:
        return {**config, "problem_type": None}
    raise PretrainedError(
        f"{directory}: config.json: problem_type is {problem} with one label, which leaves nothing to classify. Give two labels in "
        "id2label, or set problem_type to regression (a value) or multi_label_classification (yes or no)."
    )


def names_of(family: Family) -> dict[str, str]:
    """Map fields of an Architecture to keys of config.json."""
    known = {"num_kv_heads": "num_key_value_heads", "head_size": "head_dim"}
    return known | {key.field: key.name for key in family.config_fields}
