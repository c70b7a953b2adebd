"""A run's tokenizer as one that is called with texts and that other programs read from its files.

A run learns from ids, and its objective or task says what stands around them. Here that becomes part of the tokenizer: calling
it gives what the model has learned to read, and so does `AutoTokenizer` of the transformers library with the same files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lm_research.tokenizers.base import Frame, Tokenizer
from lm_research.tokenizers.hf_settings import PLAIN_CLASS, ROLES, TOKENIZER_JSON, read_settings
from lm_research.tokenizers.hf_tokenizer import HFTokenizer
from tokenizers import processors

AROUND, BEFORE, BEHIND = "around", "before", "behind"
# What stands around one text, and around two: the token that begins a text, and the one that ends it.
_FORMS = {
    AROUND: ("cls $A sep", "cls $A sep $B:1 sep:1"),
    BEFORE: ("sep $A", "sep $A $B"),
    BEHIND: ("$A sep", "$A sep $B sep"),
}


def format_for(kind: str, head: str, objective: str = "") -> str:
    """What a model has learned to see around texts, as `as_read` takes it.

    Args:
      kind: "encoder", "decoder" or "encoder-decoder".
      head: what it predicts, a name of models.head_kinds.HEADS.
      objective: that it was pre-trained with; "" for a task, or when that is not known.
    """
    if head == "seq2seq_lm":
        return {"": "", "denoising": AROUND}.get(objective, BEHIND)
    return BEFORE if head == "causal_lm" and kind == "decoder" else AROUND


def roles_for(tokenizer: Tokenizer, form: str) -> dict[str, int]:
    """Role -> id, as `as_read` with this form has them."""
    parts = form == BEFORE and (not tokenizer.adds_special_tokens or _changes(tokenizer, form))
    return {**tokenizer.roles, **(dict.fromkeys(("bos", "eos"), tokenizer.roles["sep"]) if parts else {})}


def with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, if texts can name its special tokens, or else one in BERT's form where they can."""
    return tokenizer if tokenizer.adds_special_tokens else with_format(tokenizer, AROUND, types=True)


def with_format(tokenizer: Tokenizer, form: str = "", types: bool = False, max_length: int | None = None) -> Tokenizer:
    """The same tokenizer with special tokens around texts, and files that say so.

    Args:
      tokenizer: any.
      form: AROUND (BERT's: the cls token, a text, the sep token), BEFORE (the separator of documents, a text) or BEHIND (a text,
        the end token); "" is BEHIND, but of a tokenizer that puts tokens around texts already these. Only that of our own
        sentencepiece models becomes AROUND, and only one that ends texts with a token becomes BEFORE.
      types: whether the model tells the two texts of a pair apart by types.
      max_length: tokens of the longest text that the model takes.

    Raises:
      TokenizerError: the files' format has no place for it.
    """
    if not tokenizer.adds_special_tokens:
        names = {role: tokenizer.token_name(token) for role, token in tokenizer.roles.items()}
        return _build(tokenizer, tokenizer.library_spec(), names, {}, form or BEHIND, types, max_length)
    config = json.loads(tokenizer.files["tokenizer_config.json"])
    changed = form in (BEFORE, BEHIND) and _changes(tokenizer, form)
    if not changed and config.get("tokenizer_class") != PLAIN_CLASS:
        return tokenizer
    names = {role: config[f"{role}_token"] for role in ROLES if config.get(f"{role}_token")}
    return _build(tokenizer, tokenizer.library_spec(), names, config, form if changed else "", types, max_length)


def _changes(tokenizer: Tokenizer, form: str) -> bool:
    last = tokenizer.roles.get("sep")
    if last is None:
        return False
    now = tokenizer.frame
    return now.tail == (last,) if form == BEFORE else now != Frame((), (last,))


def _build(
    tokenizer: Tokenizer,
    spec: dict[str, Any],
    names: dict[str, Any],
    config: Mapping[str, Any],
    form: str,
    types: bool,
    max_length: int | None,
) -> HFTokenizer:
    # The library reads numbers in JSON with an error in the last place: what is there already is not written by it again.
    if form:
        names.setdefault("eos", names["sep"])
        used = [role for role in ("cls", "sep") if role in _FORMS[form][0]]
        ids = [(_text(names[role]), tokenizer.roles[role]) for role in used]
        single, pair = (" ".join(_named(part, names) for part in text.split()) for text in _FORMS[form])
        processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
        spec["post_processor"] = json.loads(processor.__getstate__())
    if form == BEFORE:  # documents are parted by it, and so it begins them, too
        names["bos"] = names["eos"] = names["sep"]
    inputs = ["input_ids", *["token_type_ids"] * types, "attention_mask"]
    config = {
        "clean_up_tokenization_spaces": False,
        **({"model_max_length": max_length} if max_length else {}),
        **config,
        "tokenizer_class": PLAIN_CLASS,
        "model_input_names": inputs,
        **{f"{role}_token": name for role, name in names.items()},
    }
    special = {f"{role}_token": name for role, name in names.items()}
    files = {
        **tokenizer.files,
        TOKENIZER_JSON: json.dumps(spec, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "special_tokens_map.json": json.dumps(special).encode(),
    }
    return HFTokenizer(files, read_settings(files, tokenizer.name))


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _named(part: str, names: Mapping[str, Any]) -> str:
    role, _, kind = part.partition(":")
    return f"{_text(names[role]) if role in names else role}:{kind or 0}"
