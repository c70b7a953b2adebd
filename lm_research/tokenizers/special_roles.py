"""Special token roles of Hugging Face tokenizers, and whether their models use token type ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_research.errors import TokenizerError
from lm_research.tokenizers.base import ROLES as DEFAULT_NAMES
from lm_research.tokenizers.hf_settings import PLAIN_CLASS, Kind, Settings
from tokenizers import Tokenizer

# Role -> the roles whose token it takes if the tokenizer has none for it, in order of preference.
_FALLBACKS = {"cls": ("bos",), "bos": ("cls",), "sep": ("eos",), "eos": ("sep",), "pad": ("eos", "sep")}


def add_tokens(backend: Tokenizer, kind: Kind | None, settings: Settings, whole: bool) -> dict[str, str]:
    """Add the tokens of the settings, in place, and return role -> token.

    Args:
      backend: the tokenizer.
      kind: its kind, None if unknown.
      settings: its settings.
      whole: whether it was read from a tokenizer.json.

    Raises:
      TokenizerError: an added token gets another id than the settings give it.
    """
    existing = backend.get_added_tokens_decoder()
    backend.add_tokens([token for number, token in settings.added.items() if number not in existing])
    for number, token in settings.added.items():
        if backend.token_to_id(token.content) != number:
            raise TokenizerError(
                f"{settings.where}: the settings give {token.content!r} the id {number}, but with this vocabulary its id is "
                f"{backend.token_to_id(token.content)}. A file belongs to another model or is missing: copy all of them again."
            )
    vocab = backend.get_vocab()
    roles = {role: token for role, token in settings.roles.items() if token is not None}
    if whole:  # a tokenizer.json may lack a default token of its class
        roles = {role: one for role, one in roles.items() if role in settings.stated_roles or one.content in vocab}
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_special_tokens([one for one in (*roles.values(), *settings.extra) if one.content not in added])
    role_tokens = {role: token.content for role, token in roles.items()}
    if kind is None:  # infer roles from common names
        for role, names in {**DEFAULT_NAMES, "eos": ("<|endoftext|>",)}.items():
            found = [name for name in names if name in vocab]
            if role not in settings.roles and found:
                role_tokens[role] = found[0]
    return role_tokens


def uses_types(settings: Settings, kind: Kind | None, post_processor: Any) -> bool:
    """Whether models use token type ids, by model_input_names, else by the kind, else by the post-processor.

    As in transformers, a class that is not known uses none, but for PLAIN_CLASS, which older versions saved for any tokenizer.
    """
    names = settings.config.get("model_input_names")
    if names:
        return "token_type_ids" in names
    if kind:
        return kind.types
    unknown = settings.class_name or settings.config.get("tokenizer_class", PLAIN_CLASS) != PLAIN_CLASS
    return not unknown and _gives_types(post_processor)


def _gives_types(processor: Any) -> bool:
    """Whether a post-processor marks the second text of a pair."""
    if not processor:
        return False
    if processor["type"] == "Sequence":
        return any(map(_gives_types, processor["processors"]))
    pair = processor.get("pair") or ()
    return processor["type"] == "BertProcessing" or any(part.get("Sequence", {}).get("type_id") for part in pair)


def with_fallbacks(roles: Mapping[str, int]) -> dict[str, int]:
    """Return role -> id with the missing roles that have a fallback added."""
    found = {role: [other for other in others if other in roles] for role, others in _FALLBACKS.items()}
    return {role: roles[others[0]] for role, others in found.items() if others} | dict(roles)
