"""Tokenizers of GGUF files: the metadata under tokenizer.ggml as the files of a Hugging Face directory.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file names how a text is split before byte-level BPE
(`tokenizer.ggml.pre`) without its rule; the rules here are those of the models' own tokenizer.json files, and of llama.cpp
(src/llama-vocab.cpp). Files do not record the Unicode normalization of a text; as there, none is applied before byte-level BPE.
"""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm_research.common.documents import check_fields, short
from lm_research.common.gguf_header import read_header
from lm_research.errors import TokenizerError, UnsupportedTokenizerError
from lm_research.tokenizers import sentencepiece_model as spm
from lm_research.tokenizers.base import SPACE
from lm_research.tokenizers.chat_template import TEMPLATE
from lm_research.tokenizers.hf_settings import PLAIN_CLASS, TOKENIZER_JSON, kind_of

LOG = logging.getLogger("lm_research")
SUFFIX = ".gguf"
Files = dict[str, bytes]
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's
_ENDINGS, _REST = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}"
_QWEN_2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}"
_QWEN_35 = (
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SEED = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _by_case(digits: str, ending: str) -> str:
    """The rule of GPT-4o and its kin, which splits a word where its case changes."""
    start, rest = r"[^\r\n\p{L}\p{N}]?", r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return f"{start}{_UPPER}*{_LOWER}+{ending}|{start}{_UPPER}+{_LOWER}*{ending}|{digits}{rest}"


class Rule(NamedTuple):
    """Patterns that split a text in turn, before its bytes become characters, and after that."""

    before: tuple[str, ...]
    after: tuple[str, ...] = ()


# Values of tokenizer.ggml.pre, a line for each of the rules below.
_NAMES = """
default gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat mellum exaone4 a.x-4.0
starcoder refact command-r smollm codeshell exaone minerva-7b
llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe
qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2
qwen35
seed-coder
tekken
gpt-4o llama4 kanana2 talkie minimax-m2
falcon
bloom poro-chat gpt3-finnish
viking
deepseek-coder
"""
_RULES = (
    Rule((_WORDS,)),
    Rule((r"\p{N}", _WORDS)),
    Rule((_LLAMA_3,)),
    Rule((_QWEN_2,)),
    Rule((_QWEN_35,)),
    Rule((_SEED,)),
    Rule((_by_case(r"\p{N}", ""),)),
    Rule((_by_case(r"\p{N}{1,3}", f"{_ENDINGS}?"),)),
    Rule((r"[\p{P}\$\+<=>\^~\|`]+", _WORDS), after=(r"\p{N}+", "[0-9][0-9][0-9]")),  # some bytes become numbers
    Rule((r" ?[^(\s|.,!?…。，、।۔،)]+",)),
    Rule((r" ?[^(\s|.,!?…。，、।۔،)]+", r"\p{N}")),
    Rule(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")),
)
PATTERNS = {name: rule for names, rule in zip(_NAMES.split("\n")[1:-1], _RULES, strict=True) for name in names.split()}
# Tokenizers that take a word that is a token as it is, before any merge; they also begin a text with bos unless files deny it.
_WHOLE_WORDS = frozenset(
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken".split()
)
_LEGACY = ("phi3Tokenizer",)  # those that put a space before every stretch of a text, as sentencepiece does
_MODELS = "gpt2 llama t5 bert"  # values of tokenizer.ggml.model
_ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "sep": "seperator",  # the format's spelling
    "cls": "cls",
    "mask": "mask",
}
_TYPES: dict[str, Any] = {
    "tokenizer.ggml.tokens": list[str],
    "tokenizer.ggml.merges": list[str],
    "tokenizer.ggml.scores": list[float],
    "tokenizer.ggml.token_type": list[int],
    "tokenizer.ggml.precompiled_charsmap": list[int],
    "tokenizer.ggml.model": str,
    "tokenizer.ggml.pre": str,
    "tokenizer.chat_template": str,
    **dict.fromkeys(
        (
            f"tokenizer.ggml.{name}"
            for name in ("add_bos_token", "add_eos_token", "add_space_prefix", "remove_extra_whitespaces")
        ),
        bool,
    ),
    **{f"tokenizer.ggml.{name}_token_id": int for name in _ROLES.values()},
}
_FIX = "Download the file again, or put the tokenizer's files of the original model next to it."


def has_tokenizer(path: pathlib.Path) -> bool:
    """Whether a GGUF file has a tokenizer; raises a TokenizerError if its header is damaged."""
    return _metadata(path).get("tokenizer.ggml.model") not in (None, "none", "no_vocab")


def tokenizer_files(path: pathlib.Path) -> Files:
    """Make the files of a Hugging Face directory from a GGUF file.

    Raises:
      TokenizerError: the file has no tokenizer, or it is damaged.
      UnsupportedTokenizerError: its kind, or its rule for splitting texts, is not supported.
    """
    metadata = _metadata(path)
    check_fields(metadata, _TYPES, str(path), error=TokenizerError, fix=_FIX)
    data = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    readers: tuple[Callable[..., Files], ...] = (_bytes, _pieces, _unigram, _wordpiece)
    kinds = dict(zip(_MODELS.split(), readers, strict=True))
    kind = data.get("model")
    if kind not in kinds:
        raise UnsupportedTokenizerError(
            f"{path}: tokenizer.ggml.model is {short(kind)}, which is not supported (supported: {', '.join(kinds)}). {_FIX}"
        )
    data["tokens"] = [text or f"[EMPTY_{number}]" for number, text in enumerate(data.get("tokens") or ())]
    tokens = data["tokens"]
    if not tokens or len(set(tokens)) < len(tokens):
        raise TokenizerError(f"{path}: tokenizer.ggml.tokens is empty, or has a token twice. {_FIX}")
    defaults = {"token_type": [spm.NORMAL] * len(tokens), "scores": [-float(number) for number in range(len(tokens))]}
    for key, default in defaults.items():
        if len(data.setdefault(key, default)) != len(tokens):
            raise TokenizerError(
                f"{path}: tokenizer.ggml.{key} has {len(data[key])} entries for {len(tokens)} tokens. {_FIX}"
            )
    config: dict[str, Any] = {"clean_up_tokenization_spaces": False}
    for role, name in _ROLES.items():
        if (number := data.get(f"{name}_token_id")) is not None and 0 <= number < len(tokens):
            config[f"{role}_token"] = tokens[number]
    files = kinds[kind](path, data, config)
    if (template := metadata.get("tokenizer.chat_template")) is not None:
        files[TEMPLATE] = template.encode()
    return files


def _metadata(path: pathlib.Path) -> dict[str, Any]:
    try:
        return read_header(np.memmap(path, np.uint8, "r").data).metadata
    except (OSError, ValueError) as error:
        raise TokenizerError(f"The GGUF file {path} cannot be read: {error}. Download it again.") from error


def _with_config(files: Files, config: Mapping[str, Any]) -> Files:
    return files | {"tokenizer_config.json": json.dumps(config).encode()}


def _bytes(path: pathlib.Path, data: Mapping[str, Any], config: dict[str, Any]) -> Files:
    """Byte-level BPE."""
    if not (pre := data.get("pre")):
        pre = "default"
        LOG.warning(
            "%s has no tokenizer.ggml.pre, the rule for splitting texts; GPT-2's is used, which may not be the model's.",
            path,
        )
    if pre not in PATTERNS:
        raise UnsupportedTokenizerError(
            f"{path}: tokenizer.ggml.pre is {short(pre)}, whose rule for splitting texts is not known here (known: "
            f"{', '.join(PATTERNS)}). Put the tokenizer.json of the original model next to the file."
        )
    tokens, kinds = data["tokens"], data["token_type"]
    adds = {"bos": data.get("add_bos_token", pre in _WHOLE_WORDS), "eos": data.get("add_eos_token", False)}
    frame = {role: config.get(f"{role}_token", "") if adds[role] else "" for role in adds}
    splits, later = ([_split(pattern) for pattern in patterns] for patterns in PATTERNS[pre])
    spec = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(number, text, kinds[number] == spm.CONTROL)
            for number, text in enumerate(tokens)
            if kinds[number] in (spm.CONTROL, spm.USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                *splits,
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                *later,
            ],
        },
        "post_processor": _template(tokens, frame["bos"], frame["eos"]),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in _WHOLE_WORDS,
            "vocab": {text: number for number, text in enumerate(tokens)},
            "merges": [[*merge.partition(" ")[::2]] for merge in data.get("merges") or ()],
        },
    }
    flags = {f"add_{role}_token": bool(frame[role]) for role in adds}
    return _with_config(
        {TOKENIZER_JSON: json.dumps(spec).encode()}, {"tokenizer_class": PLAIN_CLASS, **config, **flags}
    )


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _added(number: int, text: str, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **flags, "special": special}


def _template(tokens: Sequence[str], first: str, last: str) -> dict[str, Any]:
    """The post_processor that puts these tokens around each text; "" is none."""

    def around(sequence: str, kind: int) -> list[dict[str, Any]]:
        parts = [("SpecialToken", first), ("Sequence", sequence), ("SpecialToken", last)]
        return [{name: {"id": text, "type_id": kind}} for name, text in parts if text]

    special = {text: {"id": text, "ids": [tokens.index(text)], "tokens": [text]} for text in (first, last) if text}
    pair = around("A", 0) + around("B", 1)
    return {"type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": special}


def _pieces(path: pathlib.Path, data: Mapping[str, Any], config: dict[str, Any]) -> Files:
    """BPE of sentencepiece, whose merges are in the order of the scores."""
    class_name = f"{data.get('general.architecture', '')}Tokenizer"
    kind = kind_of(class_name, "pieces", "LlamaTokenizer")
    tokens = data["tokens"]
    if kind.tab_piece:
        # Files have runs of spaces as they are, and scores of added tokens that are not in the order of the merges.
        runs = {number for number, text in enumerate(tokens) if not text.strip(" ")}
        sorts = [spm.NORMAL if number in runs else sort for number, sort in enumerate(data["token_type"])]
        data = {**data, "token_type": sorts, "scores": [-float(number) for number in range(len(tokens))]}
        tokens = [SPACE * len(text) if number in runs else text for number, text in enumerate(tokens)]
    model = _model(data, tokens, spm.BPE, adds_prefix=data.get("add_space_prefix", not kind.tab_piece))
    options = {
        "tokenizer_class": kind.name,
        "legacy": kind.tab_piece or class_name in _LEGACY,
        "add_prefix_space": model.adds_prefix,
        "add_bos_token": data.get("add_bos_token", True),
        "add_eos_token": data.get("add_eos_token", False),
    }
    return _with_config({"tokenizer.model": spm.write_model(model)}, {**config, **options})


def _unigram(path: pathlib.Path, data: Mapping[str, Any], config: dict[str, Any]) -> Files:
    """T5's unigram model; its sentinels are the first of the tokens that pad the vocabulary."""
    tokens, kinds = data["tokens"], data["token_type"]
    count = len(tokens)
    while count > 1 and kinds[count - 1] == spm.UNUSED:
        count -= 1
    has_them = {"<extra_id_0>", f"{SPACE}<extra_id_0>"} & set(tokens)
    spare = 0 if has_them else min(100, len(tokens) - count)
    prefix, folds = data.get("add_space_prefix", True), data.get("remove_extra_whitespaces", True)
    model = _model(data, tokens[:count], spm.UNIGRAM, adds_prefix=prefix, removes_spaces=folds)
    options = {"tokenizer_class": "T5Tokenizer", "extra_ids": spare}
    return _with_config({"spiece.model": spm.write_model(model)}, {**config, **options})


def _model(
    data: Mapping[str, Any], tokens: Sequence[str], kind: int, adds_prefix: bool, removes_spaces: bool = True
) -> spm.SentencePieceModel:
    kinds = [sort if spm.NORMAL <= sort <= spm.BYTE else spm.NORMAL for sort in data["token_type"]]
    unknown = data.get("unknown_token_id")
    if unknown is None or not 0 <= unknown < len(tokens):
        unknown = next((number for number, sort in enumerate(kinds[: len(tokens)]) if sort == spm.UNKNOWN), 0)
    return spm.SentencePieceModel(
        pieces=list(zip(tokens, data["scores"], kinds, strict=False)),
        kind=kind,
        unk_id=unknown,
        byte_fallback=spm.BYTE in kinds,
        charsmap=bytes(number & 255 for number in data.get("precompiled_charsmap") or ()),
        adds_prefix=adds_prefix,
        removes_spaces=removes_spaces,
    )


def _wordpiece(path: pathlib.Path, data: Mapping[str, Any], config: dict[str, Any]) -> Files:
    """WordPiece: in these files, tokens that begin a word start with a space, and the others continue one."""
    lines = [
        text if sort == spm.CONTROL or text.startswith("[") and text.endswith("]") else _written(text)
        for text, sort in zip(data["tokens"], data["token_type"], strict=True)
    ]
    lowers = data.get("normalizer.lowercase", True)
    options = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowers}
    return _with_config({"vocab.txt": "".join(f"{line}\n" for line in lines).encode()}, {**config, **options})


def _written(text: str) -> str:
    return text.removeprefix(SPACE) if text.startswith(SPACE) else f"##{text}"
