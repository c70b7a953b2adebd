"""Settings from the JSON files of a Hugging Face tokenizer: its class, roles, added tokens and options."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Required, TypedDict

from msgspec import Meta

from lm_research.common.documents import Object, check_fields, parse_json
from lm_research.errors import TokenizerError, UnsupportedTokenizerError
from lm_research.tokenizers.languages import M2M_100, MBART, MBART_50, NLLB, PLBART, PLBART_MULTI
from tokenizers import AddedToken

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
TOKENIZER_JSON = "tokenizer.json"
SENTENCEPIECE_FILES = (
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "spm.model",
    "sentencepiece.model",
)  # names of a sentencepiece model
VOCABULARIES = ("vocab.txt", "vocab.json", "merges.txt", "source.spm", "target.spm", *SENTENCEPIECE_FILES)
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
# The transformers class that uses tokenizer.json unchanged; most others take only its vocabulary.
PLAIN_CLASS = "PreTrainedTokenizerFast"
SENTENCE_BERT_CONFIG = "sentence_bert_config.json"  # sentence-transformers' settings of a model
_GENERIC = {"pretrainedtokenizerfast", "pretrainedtokenizer", "tokenizersbackend"}  # classes for any kind of tokenizer
_UNLIMITED = 10**9  # transformers writes 1e30 for a tokenizer without a maximum length

# Ids are bounded because tables are allocated for all of them; the largest vocabularies in use have about a million.
MAX_IDS = 2**22
Id = Annotated[int, Meta(ge=0, lt=MAX_IDS)]
Name = Annotated[str, Meta(max_length=256)]  # of a class, a language or an input of models
Content = Annotated[str, Meta(max_length=10_000)]  # of a token
_Switch = bool | Annotated[int, Meta(ge=0, le=1)]


class TokenFields(TypedDict, total=False):
    """A token with flags, as a JSON object."""

    content: Required[Content]
    lstrip: _Switch | None
    rstrip: _Switch | None
    single_word: _Switch | None
    normalized: _Switch | None
    special: _Switch | None


_Token = Content | TokenFields
_ADDED = dict[Annotated[str, Meta(pattern="^[0-9]{1,9}$")], TokenFields]
_SIDE = Literal["left", "right"]
_OPTIONS = """add_bos_token add_eos_token add_prefix_space do_lower_case keep_accents legacy legacy_behaviour separate_vocabs
split_by_punct strip_accents tokenize_chinese_chars trim_offsets""".split()
_NULL_IS_MISSING = ("do_lower_case", "tokenize_chinese_chars", "extra_ids")  # for other keys null means false, or none
# The types of the keys that are read from each file; null is always allowed.
_TYPES: dict[str, dict[str, Any]] = {
    "tokenizer_config.json": {
        **dict.fromkeys((f"{role}_token" for role in ROLES), _Token),
        **dict.fromkeys(_OPTIONS, _Switch),
        "added_tokens_decoder": _ADDED,
        "additional_special_tokens": list[_Token],
        "extra_special_tokens": list[_Token] | dict[str, _Token],
        "chat_template": str | list[Any] | Object,
        "extra_ids": Annotated[int, Meta(ge=0, le=10**4)],
        "offset": int,
        "model_input_names": list[Name],
        "model_max_length": Annotated[float, Meta(ge=1)],
        "padding_side": _SIDE,
        "truncation_side": _SIDE,
        **dict.fromkeys(("tokenizer_class", "src_lang", "tgt_lang", "language_codes"), Name),
    },
    "special_tokens_map.json": {
        **dict.fromkeys((f"{role}_token" for role in ROLES), _Token),
        "additional_special_tokens": list[_Token],
    },
    "config.json": {"tokenizer_class": Name, "model_type": Name},
    SENTENCE_BERT_CONFIG: {"do_lower_case": _Switch},
}
_FIX = "Fix it, or copy the file again from where the model came from."

_BERT = dict(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
_ROBERTA = dict(bos="<s>", eos="</s>", unk="<unk>", sep="</s>", pad="<pad>", cls="<s>", mask="<mask>")
_DEBERTA = _BERT | dict(bos="[CLS]", eos="[SEP]")
_END_OF_TEXT = "<|endoftext|>"
_FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")  # fairseq's first tokens, instead of sentencepiece's <unk> <s> </s>
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Classes that no file of theirs defines -> reason and fix.
_REFUSED = {
    "roformertokenizer": "it splits texts into words with the word list of the package rjieba, which the model's files do not have. Encode "
    "texts with transformers' RoFormerTokenizer, which needs that package, and give the model their input_ids",
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A tokenizer class of the transformers library.

    Attributes:
      name: name of the class.
      vocabulary: "wordpiece" (vocab.txt), "bytes" or "subwords" (vocab.json and merges.txt, of bytes or of characters), "pieces"
        (sentencepiece), or "two models" or "one model" (sentencepiece, with a vocab.json that numbers the pieces).
      roles: role -> default token.
      wrap: format of the special tokens around a text, see hf_vocabularies.set_post_processor.
      types: whether models of this class use token type ids for pairs.
      strips_mask: whether the mask absorbs the space before it, as in the models' training.
      padding_side: "right" or "left".
      merges: whether the sentencepiece model is BPE, not unigram; None if it may be either.
      plain: whether a unigram model is used as sentencepiece itself does, with its own ids and rules (DeBERTa, BigBird).
      folds: whether texts lose case and accents unless the settings keep them, and commas are split from numbers (ALBERT).
      head, skips, tail: the ids of a sentencepiece model are those of the tokens `head`, its pieces after the first `skips`, and the
        tokens `tail`.
      words: the pattern that splits texts before byte-level BPE, "" for GPT-2's.
      composes: whether byte-level BPE reads texts in Unicode's form NFC.
      spaced: whether byte-level BPE puts a space before a text unless add_prefix_space is false.
      tab_piece: whether the byte piece of a tab is named by the tab itself, so that runs of tabs are merged from it.
      languages: language codes in the order of their ids.
      language: default source language, "" for none.
      starts_decoder: see languages.Languages.
    """

    name: str
    vocabulary: str
    roles: Mapping[str, str]
    wrap: str
    types: bool = False
    strips_mask: bool = False
    padding_side: str = "right"
    merges: bool | None = False
    plain: bool = False
    folds: bool = False
    head: Sequence[str] = ()
    skips: int = 0
    tail: Sequence[str] = ()
    words: str = ""
    composes: bool = False
    spaced: bool = False
    tab_piece: bool = False
    languages: Sequence[str] = ()
    language: str = ""
    starts_decoder: bool = False


KINDS = (
    Kind("BertTokenizer", "wordpiece", _BERT, wrap="cls sep", types=True),
    Kind("DistilBertTokenizer", "wordpiece", _BERT, wrap="cls sep"),
    Kind("GPT2Tokenizer", "bytes", dict.fromkeys(("bos", "eos", "unk"), _END_OF_TEXT), wrap="bos eos"),
    Kind(
        "GPTNeoXTokenizer",
        "bytes",
        dict.fromkeys(("bos", "eos", "unk"), _END_OF_TEXT) | {"pad": "<|padding|>"},
        wrap="bos eos",
        composes=True,
    ),
    Kind(
        "Qwen2Tokenizer",
        "bytes",
        dict.fromkeys(("eos", "unk", "pad"), _END_OF_TEXT),
        wrap="bos eos",
        composes=True,
        words=_QWEN_WORDS,
    ),
    Kind("BlenderbotTokenizer", "bytes", _ROBERTA, wrap="eos once", strips_mask=True, spaced=True),
    Kind(
        "BlenderbotSmallTokenizer",
        "subwords",
        dict(bos="__start__", eos="__end__", unk="__unk__", pad="__null__"),
        wrap="",
    ),
    Kind("RobertaTokenizer", "bytes", _ROBERTA, wrap="cls sep sep", strips_mask=True),
    Kind("DebertaTokenizer", "bytes", _DEBERTA, wrap="cls sep", types=True, strips_mask=True),
    Kind("DebertaV2Tokenizer", "pieces", _DEBERTA, wrap="cls sep", types=True, plain=True),
    Kind(
        "BigBirdTokenizer",
        "pieces",
        _ROBERTA | dict(sep="[SEP]", cls="[CLS]", mask="[MASK]"),
        wrap="cls sep",
        strips_mask=True,
        plain=True,
    ),
    Kind("MPNetTokenizer", "wordpiece", _ROBERTA | {"unk": "[UNK]"}, wrap="cls sep sep", strips_mask=True),
    Kind("T5Tokenizer", "pieces", dict(eos="</s>", unk="<unk>", pad="<pad>"), wrap="eos"),
    Kind(
        "AlbertTokenizer",
        "pieces",
        {**_BERT, "bos": "[CLS]", "eos": "[SEP]", "unk": "<unk>", "pad": "<pad>"},
        wrap="cls sep",
        types=True,
        strips_mask=True,
        folds=True,
    ),
    Kind("RemBertTokenizer", "pieces", _DEBERTA | dict(unk="<unk>", pad="<pad>"), wrap="cls sep"),
    Kind(
        "PegasusTokenizer",
        "pieces",
        dict(eos="</s>", unk="<unk>", pad="<pad>", mask="<mask_2>"),
        wrap="eos once",
        head=("<pad>", "</s>", "<mask_1>", "<mask_2>", *(f"<unk_{number}>" for number in range(2, 103))),
        skips=2,
    ),
    Kind(
        "XLMRobertaTokenizer",
        "pieces",
        _ROBERTA,
        wrap="cls sep sep",
        strips_mask=True,
        head=_FAIRSEQ,
        skips=3,
        tail=("<mask>",),
    ),
    Kind(
        "CamembertTokenizer",
        "pieces",
        _ROBERTA,
        wrap="cls sep sep",
        strips_mask=True,
        head=("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"),
        skips=1,
        tail=("<mask>",),
    ),
    Kind(
        "XGLMTokenizer",
        "pieces",
        {role: token for role, token in _ROBERTA.items() if role != "mask"},
        wrap="eos first",
        head=_FAIRSEQ,
        skips=3,
        tail=[f"<madeupword{number}>" for number in range(7)],
    ),
    Kind(
        "MBartTokenizer",
        "pieces",
        _ROBERTA,
        wrap="language last",
        strips_mask=True,
        head=_FAIRSEQ,
        skips=3,
        tail=(*MBART, "<mask>"),
        languages=MBART,
        language="en_XX",
        starts_decoder=True,
    ),
    Kind(
        "MBart50Tokenizer",
        "pieces",
        _ROBERTA,
        wrap="language first",
        strips_mask=True,
        head=_FAIRSEQ,
        skips=3,
        tail=(*MBART_50, "<mask>"),
        languages=MBART_50,
        language="en_XX",
    ),
    Kind(
        "NllbTokenizer",
        "pieces",
        _ROBERTA,
        wrap="language first",
        strips_mask=True,
        merges=True,
        head=_FAIRSEQ,
        skips=3,
        tail=(*NLLB, "<mask>"),
        languages=NLLB,
        language="eng_Latn",
    ),
    Kind(
        "M2M100Tokenizer",
        "one model",
        dict(bos="<s>", eos="</s>", unk="<unk>", sep="</s>", pad="<pad>"),
        wrap="language first",
        languages=M2M_100,
        language="en",
    ),
    Kind("MarianTokenizer", "two models", dict(eos="</s>", unk="<unk>", pad="<pad>"), wrap="eos"),
    Kind(
        "LlamaTokenizer",
        "pieces",
        dict(bos="<s>", eos="</s>", unk="<unk>"),
        wrap="bos eos",
        padding_side="left",
        merges=True,
    ),
    Kind(
        "GemmaTokenizer",
        "pieces",
        dict(bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>", mask="<mask>"),
        wrap="bos eos",
        padding_side="left",
        merges=True,
        tab_piece=True,
    ),
)
# Model types whose tokenizer class (with "Tokenizer" appended) behaves as another one.
_SHARED = {
    "BertTokenizer": "Electra MobileBert SqueezeBert ConvBert MegatronBert Ernie Nezha LayoutLM RetriBert VisualBert NomicBert",
    "RobertaTokenizer": "Bart Longformer LED Mvp RobertaPreLayerNorm Data2VecText",
    "GPT2Tokenizer": "GPTNeo GPTJ CodeGen OPT Phi Starcoder2",
    "GPTNeoXTokenizer": "Mpt",
    "Qwen2Tokenizer": "Qwen2Moe Qwen3 Qwen3Moe",
    "T5Tokenizer": "MT5 UMT5 LongT5 SwitchTransformers",
    "GemmaTokenizer": "Gemma2 Gemma3 Gemma3Text T5Gemma T5Gemma2",
    "XLMRobertaTokenizer": "Xmod XLMRobertaXL Gte",
}

# Model types of transformers' class for any tokenizer.json, whose tokenizer.model is Llama's.
_WITHOUT_JSON = [f"{name}Tokenizer" for name in "mistral mixtral ministral phi3".split()]


# The value of language_codes in tokenizer_config.json -> the kind that it makes of PLBART's.
_PLBART = {
    codes: Kind(
        "PLBartTokenizer",
        "pieces",
        {role: token for role, token in _ROBERTA.items() if role != "mask" or has_mask},
        wrap="language last",
        strips_mask=True,
        merges=None,
        head=_FAIRSEQ,
        skips=3,
        tail=(*(f"__{name}__" for name in names), *["<mask>"] * has_mask),
        languages=names,
        language=language,
        starts_decoder=True,
    )
    for codes, names, language, has_mask in (("base", PLBART, "", True), ("multi", PLBART_MULTI, "en_XX", False))
}


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower()).removesuffix("fast")


KIND = {kind.name: kind for kind in (*KINDS, _PLBART["base"])}
_BY_NAME = {_plain(name): kind for name, kind in KIND.items()}
_BY_NAME |= {
    _plain(f"{name}Tokenizer"): _BY_NAME[_plain(owner)] for owner, names in _SHARED.items() for name in names.split()
}


def kind_of(class_name: str, vocabulary: str, default: str) -> Kind:
    """The kind of a class if it has this type of vocabulary, else the one called `default`."""
    found = _BY_NAME.get(_plain(class_name))
    return found if found and found.vocabulary == vocabulary else KIND[default]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of one tokenizer.

    Attributes:
      where: the folder or file, for messages.
      class_name: the class or model type in the files, None if they name none.
      kind: the kind of that class, None if it is unknown or not named.
      config: content of tokenizer_config.json.
      roles: role -> token, or None if the files set the role to null; roles that the files do not mention have the kind's default.
      stated_roles: the roles that the files mention.
      added: id -> token, for tokens whose id is in the files.
      extra: special tokens without an id in the files.
      lowercases: whether sentence_bert_config.json requires lowercasing before everything else.
    """

    where: str
    class_name: str | None
    kind: Kind | None
    config: dict[str, Any]
    roles: dict[str, AddedToken | None]
    stated_roles: frozenset[str]
    added: dict[int, AddedToken]
    extra: list[AddedToken]
    lowercases: bool = False

    @property
    def max_length(self) -> int | None:
        """Maximum number of tokens that the model accepts, special tokens included; None when unlimited."""
        length = self.config.get("model_max_length")
        return int(length) if length is not None and length < _UNLIMITED else None

    def side(self, key: str) -> str:
        """Return "left" or "right" for a key, padding_side or truncation_side."""
        default = self.kind.padding_side if self.kind and key == "padding_side" else "right"
        return self.config.get(key) or default


def read_settings(files: Mapping[str, bytes], where: str, guess: Kind | None = None) -> Settings:
    """Read those of tokenizer_config.json, special_tokens_map.json, added_tokens.json, config.json, sentence_bert_config.json that exist.

    Args:
      files: name -> content; other files are ignored.
      where: their folder, for messages.
      guess: the kind to use if the files name no class.

    Raises:
      TokenizerError: a file is not a JSON object, or a value has the wrong type.
    """
    config, special, added, model = (_load(files, name, where) for name in SETTINGS)
    config = {key: value for key, value in config.items() if value is not None or key not in _NULL_IS_MISSING}
    config |= {key: bool(config[key]) for key in _OPTIONS if config.get(key) is not None}
    class_name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if class_name and _plain(class_name) in _GENERIC:
        class_name, kind = None, guess
    else:
        model_type = model.get("model_type")
        class_name = class_name or model_type and f"{model_type}Tokenizer"
        if class_name and _plain(class_name) in _REFUSED:
            raise UnsupportedTokenizerError(
                f"{where}: the tokenizer class {class_name} is not supported: {_REFUSED[_plain(class_name)]}."
            )
        kind = _BY_NAME.get(_plain(class_name)) if class_name else guess
        if TOKENIZER_JSON not in files and class_name in _WITHOUT_JSON:
            kind = KIND["LlamaTokenizer"]
    if kind is _PLBART["base"]:
        codes = config.get("language_codes") or "base"
        if codes not in _PLBART:
            raise TokenizerError(
                f"{where}/tokenizer_config.json: language_codes is {codes!r}, but PLBART's are {' or '.join(_PLBART)}. {_FIX}"
            )
        kind = _PLBART[codes]
    strips_mask = bool(kind and kind.strips_mask)
    roles: dict[str, AddedToken | None] = {}
    for role in ROLES:
        for source in (config, special):
            if f"{role}_token" in source and roles.get(role) is None:
                roles[role] = _token(source[f"{role}_token"], lstrip=strips_mask and role == "mask")
    stated = frozenset(roles)
    for role, name in (kind.roles if kind else {}).items():
        if role not in roles:
            roles[role] = _token(name, lstrip=strips_mask and role == "mask")
    by_id = {number: name for name, number in added.items()} | {
        int(number): token for number, token in (config.get("added_tokens_decoder") or {}).items()
    }
    _check_ids(by_id, where)
    extra = [*(config.get("additional_special_tokens") or []), *(special.get("additional_special_tokens") or [])]
    by_name = config.get("extra_special_tokens") or []  # a list in some files, a dict by name in others
    extra += by_name.values() if isinstance(by_name, dict) else by_name
    role_tokens = {str(token) for token in roles.values()}
    return Settings(
        where=where,
        class_name=class_name,
        kind=kind,
        config=config,
        roles=roles,
        stated_roles=stated,
        # added_tokens.json does not mark special tokens; those with a role are special.
        added={
            number: token
            for number, value in sorted(by_id.items())
            if (token := _token(value, special=isinstance(value, str) and value in role_tokens))
        },
        extra=[token for name in extra if (token := _token(name))],
        lowercases=bool(_load(files, SENTENCE_BERT_CONFIG, where).get("do_lower_case")),
    )


def _load(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    if name not in files:
        return {}
    kind = dict[Content, Id] if name == "added_tokens.json" else Object
    content: dict[str, Any] = parse_json(files[name], f"{where}/{name}", kind, error=TokenizerError, fix=_FIX)
    if name == "config.json" and isinstance(content.get("encoder"), dict):
        # A model composed of two models: its tokenizer is the encoder's.
        content = {**content["encoder"], **{key: value for key, value in content.items() if key != "model_type"}}
    check_fields(content, _TYPES.get(name, {}), f"{where}/{name}", error=TokenizerError, fix=_FIX)
    return content


def _check_ids(by_id: Mapping[int, Any], where: str) -> None:
    highest = max(by_id, default=0)
    if highest >= MAX_IDS:
        raise TokenizerError(
            f"{where}/tokenizer_config.json: added_tokens_decoder has the id {highest}, but the maximum is {MAX_IDS - 1}. {_FIX}"
        )


def _token(value: str | dict[str, Any] | None, special: bool = True, lstrip: bool = False) -> AddedToken | None:
    """Build the token; None for null and for an empty text, as in transformers."""
    if isinstance(value, str) and value:
        return AddedToken(value, special=special, lstrip=lstrip, normalized=not special)
    text = value.get("content") if isinstance(value, dict) else None
    if not text or not isinstance(value, dict):
        return None
    flags = {key: bool(value.get(key)) for key in ("lstrip", "rstrip", "single_word")}
    special = bool(value.get("special", special))
    return AddedToken(text, special=special, normalized=bool(value.get("normalized", not special)), **flags)
