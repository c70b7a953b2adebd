"""Which tokens of a Hugging Face tokenizer play a role, and whether its models tell two texts apart by types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_research.errors import TokenizerError
from lm_research.tokenizers.base import ROLES as DEFAULT_NAMES
from lm_research.tokenizers.hf_settings import Kind, Settings
from tokenizers import Tokenizer

# Whose place each role takes when a tokenizer has none of its own, first come.
_FALLBACKS = {"cls": ("bos",), "bos": ("cls",), "sep": ("eos",), "eos": ("sep",), "pad": ("eos", "sep")}


def add_tokens(backend: Tokenizer, kind: Kind | None, settings: Settings, whole: bool) -> dict[str, str]:
    """Adds the tokens that the settings name; gives role -> token. `whole` tells that a tokenizer.json was read."""
    there = backend.get_added_tokens_decoder()
    backend.add_tokens([token for number, token in settings.added.items() if number not in there])
    for number, token in settings.added.items():
        if backend.token_to_id(token.content) != number:
            raise TokenizerError(
                f"{settings.where}: the settings give {token.content!r} the id {number}, but after the tokens of the "
                f"vocabulary it is {backend.token_to_id(token.content)}. A file is of another model, or one is missing."
            )
    vocab = backend.get_vocab()
    roles = {role: token for role, token in settings.roles.items() if token is not None}
    if whole:  # which may lack a token that its class usually has
        stated = {role for role in roles if role in settings.stated_roles}
        roles = {role: token for role, token in roles.items() if role in stated or token.content in vocab}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    fresh = [token for token in (*roles.values(), *settings.extra) if token.content not in known]
    backend.add_special_tokens(fresh)
    own = {role: token.content for role, token in roles.items()}
    if kind is None:  # roles go by the names that they usually have
        for role, names in {**DEFAULT_NAMES, "eos": ("<|endoftext|>",)}.items():
            found = [name for name in names if name in vocab]
            if role not in settings.roles and found:
                own[role] = found[0]
    return own


def uses_types(settings: Settings, kind: Kind | None, post_processor: Any) -> bool:
    names = settings.config.get("model_input_names")
    if names:
        return "token_type_ids" in names
    return kind.types if kind else _gives_types(post_processor)


def _gives_types(processor: Any) -> bool:
    """Whether a post-processor marks the second text of a pair."""
    if not processor:
        return False
    if processor["type"] == "Sequence":
        return any(map(_gives_types, processor["processors"]))
    pair = processor.get("pair") or ()
    return processor["type"] == "BertProcessing" or any(part.get("Sequence", {}).get("type_id") for part in pair)


def with_fallbacks(roles: Mapping[str, int]) -> dict[str, int]:
    """Role -> id, of roles that others stand in for too."""
    found = {role: [other for other in others if other in roles] for role, others in _FALLBACKS.items()}
    return {role: roles[others[0]] for role, others in found.items() if others} | dict(roles)
