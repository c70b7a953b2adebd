"""Exporting a run's tokenizer so that calling it, here or in other libraries, gives what the model was trained on.

During training the objective or task adds special tokens around the ids of texts. Here they become part of the tokenizer's files, so that
`AutoTokenizer` of the transformers library reads the same inputs from them.
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
# Templates for one text and for a pair, in the order of $A, $B and the special tokens' roles; ":1" is the token type.
_FORMS = {
    AROUND: ("cls $A sep", "cls $A sep $B:1 sep:1"),
    BEFORE: ("sep $A", "sep $A $B"),
    BEHIND: ("$A sep", "$A sep $B sep"),
}


def format_for(kind: str, head: str, objective: str = "") -> str:
    """Return the format of special tokens that a model was trained with, for `with_format`.

    Args:
      kind: "encoder", "decoder" or "encoder-decoder".
      head: name of the head in models.head_kinds.HEADS.
      objective: the pre-training objective; "" for a task, or if it is unknown.
    """
    if head == "seq2seq_lm":
        return {"": "", "denoising": AROUND}.get(objective, BEHIND)
    return BEFORE if head == "causal_lm" and kind == "decoder" else AROUND


def roles_for(tokenizer: Tokenizer, form: str) -> dict[str, int]:
    """Return role -> id of the tokenizer that `with_format` builds for this form."""
    separates = form == BEFORE and (not tokenizer.adds_special_tokens or _changes(tokenizer, form))
    return {**tokenizer.roles, **(dict.fromkeys(("bos", "eos"), tokenizer.roles["sep"]) if separates else {})}


def with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer if it recognizes special tokens in texts, or else an equivalent one in BERT's format that does."""
    return tokenizer if tokenizer.adds_special_tokens else with_format(tokenizer, AROUND, types=True)


def with_format(tokenizer: Tokenizer, form: str = "", types: bool = False, max_length: int | None = None) -> Tokenizer:
    """Return the same tokenizer with special tokens around texts, defined in its files.

    Args:
      tokenizer: any tokenizer.
      form: AROUND (BERT's: cls, text, sep), BEFORE (document separator, text) or BEHIND (text, end token). "" keeps the format of a
        tokenizer that already adds special tokens, and is BEHIND otherwise. AROUND applies only to SentencePieceTokenizer, and
        BEFORE only to a tokenizer that ends texts with a token.
      types: whether the model uses token type ids for the two texts of a pair.
      max_length: maximum number of tokens that the model accepts.

    Raises:
      TokenizerError: tokenizer.json cannot express this tokenizer.
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
    """Whether this form differs from the special tokens that the tokenizer adds already, and applies to it."""
    sep = tokenizer.roles.get("sep")
    if sep is None:
        return False
    frame = tokenizer.frame
    return frame.tail == (sep,) if form == BEFORE else frame != Frame((), (sep,))


def _build(
    tokenizer: Tokenizer,
    spec: dict[str, Any],
    names: dict[str, Any],
    config: Mapping[str, Any],
    form: str,
    types: bool,
    max_length: int | None,
) -> HFTokenizer:
    # The tokenizers library reads floats in JSON with an error in the last place, so the existing spec is not serialized by it again.
    if form:
        names.setdefault("eos", names["sep"])
        used = [role for role in ("cls", "sep") if role in _FORMS[form][0]]
        ids = [(_text(names[role]), tokenizer.roles[role]) for role in used]
        single, pair = (" ".join(_named(part, names) for part in text.split()) for text in _FORMS[form])
        processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
        spec["post_processor"] = json.loads(processor.__getstate__())
    if form == BEFORE:  # sep separates documents, so it both begins and ends them
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
