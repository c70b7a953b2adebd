"""Building tokenizers of the `tokenizers` library from the vocabulary files that preceded tokenizer.json.

Each tokenizer follows the published model's training code, as the tokenizer.json files published with the models do. transformers 5.24
departs from that for some of these older files; this module does not: RoBERTa's mask absorbs the space before it; mBART normalizes
with its sentencepiece model's rules, and mBART-50 and NLLB produce no lone space; NLLB has its languages; ALBERT splits commas from
numbers; mT5 falls back to bytes; Llama begins a text with bos; Blenderbot ends one with eos; XGLM has its pieces; RemBERT's unknown token is its
model's. White space is folded as sentencepiece folds it, at the ends of a text and before special tokens too.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence

from tokenizers.models import BPE, Unigram, WordPiece

from lm_research.common.documents import parse_json, short
from lm_research.common.lines import split_lines
from lm_research.errors import TokenizerError, UnsupportedTokenizerError
from lm_research.tokenizers import sentencepiece_model as spm
from lm_research.tokenizers.hf_settings import KIND, SENTENCEPIECE_FILES, Id, Kind, Settings
from lm_research.tokenizers.languages import Languages
from lm_research.tokenizers.spec import guarded
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors

SPACE = "\u2581"
_OFFSET = 103  # of the ids of Pegasus's pieces
# The files of each type of vocabulary, in order of precedence; SENTENCEPIECE_FILES come last.
FILES = {
    "two models": ("source.spm", "target.spm", "vocab.json"),
    "one model": ("sentencepiece.bpe.model", "vocab.json"),
    "wordpiece": ("vocab.txt",),
    "bytes": ("vocab.json", "merges.txt"),
    "subwords": ("vocab.json", "merges.txt"),
}
# White space (Unicode's property White_Space), which the tokenizers library cuts off the ends of a vocab.txt's lines.
_TRIMMED = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"


def find_vocabulary(files: Mapping[str, bytes], settings: Settings) -> tuple[str, ...]:
    """Return the names of the vocabulary files, () if there are none.

    Raises:
      TokenizerError: the settings name an unsupported class, or a class whose files are missing.
    """
    found: list[tuple[str, ...]] = [
        names
        for names in (*dict.fromkeys(FILES.values()), *((name,) for name in SENTENCEPIECE_FILES))
        if all(name in files for name in names)
    ]
    if not found:
        return ()
    if settings.class_name and not settings.kind:
        raise UnsupportedTokenizerError(
            f"{settings.where} contains {found[0][0]}, but its files require {settings.class_name}, which is not supported without a "
            f"tokenizer.json (supported: {', '.join(KIND)} and classes like them). Save a tokenizer.json with the library that made it "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...) in transformers), or, if it is one of the supported classes, set "
            "tokenizer_class in tokenizer_config.json."
        )
    if settings.kind is None:
        return found[0]
    fitting: list[tuple[str, ...]]
    if settings.kind.vocabulary == "pieces":
        fitting = [names for names in found if names[0] in SENTENCEPIECE_FILES and len(names) == 1]
    else:
        fitting = [names for names in found if names == FILES[settings.kind.vocabulary]]
    if not fitting:
        needed = FILES.get(settings.kind.vocabulary, (" or ".join(SENTENCEPIECE_FILES),))
        raise TokenizerError(
            f"{settings.where} requires a {settings.kind.name}, which needs {' and '.join(needed)}, but has only "
            f"{', '.join(found[0])}. Copy the missing file, or a tokenizer.json."
        )
    return fitting[0]


def build(files: Mapping[str, bytes], names: tuple[str, ...], settings: Settings) -> tuple[Tokenizer, Kind]:
    """Build a tokenizer that adds no special tokens around texts, and return it with its kind.

    Args:
      files: name -> content.
      names: names of the vocabulary files, from find_vocabulary.
      settings: settings of the same folder; a kind that they do not name is inferred from the vocabulary.

    Raises:
      TokenizerError: a file is damaged, or its content does not match its name.
    """
    builders: dict[str, Callable[..., tuple[Tokenizer, Kind]]] = {"vocab.txt": _wordpiece, "vocab.json": _bytes}
    with guarded(f"{settings.where}: {' and '.join(names)} cannot be read", "Copy it again."):
        return builders.get(names[0], _pieces)(*(files[name] for name in names), settings)


def _wordpiece(vocabulary: bytes, settings: Settings) -> tuple[Tokenizer, Kind]:
    kind, config = settings.kind or KIND["BertTokenizer"], settings.config
    lines = split_lines(vocabulary.decode("utf-8-sig"))
    vocab = {line.rstrip(_TRIMMED): number for number, line in enumerate(lines)}
    unknown = str(settings.roles.get("unk") or kind.roles["unk"])
    if unknown not in vocab:
        raise TokenizerError(
            f"{settings.where}: vocab.txt lacks the unknown token {unknown}, so it is not a WordPiece vocabulary. Copy it again."
        )
    tokenizer = Tokenizer(WordPiece(vocab, unk_token=unknown, max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer, kind


def _bytes(vocabulary: bytes, merges: bytes, settings: Settings) -> tuple[Tokenizer, Kind]:
    where = f"{settings.where}/vocab.json"
    vocab = parse_json(vocabulary, where, dict[str, Id], error=TokenizerError, fix="Copy it again.")
    kind = settings.kind or KIND["RobertaTokenizer" if {"<s>", "</s>"} <= vocab.keys() else "GPT2Tokenizer"]
    tokenizer = Tokenizer(
        BPE(
            vocab,
            read_merges(merges, settings.where),
            continuing_subword_prefix="",
            end_of_word_suffix="",
            fuse_unk=False,
        )
    )
    prefix = bool(settings.config.get("add_prefix_space", kind.spaced))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not kind.words)
    if kind.words:
        words = pre_tokenizers.Split(Regex(kind.words), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, tokenizer.pre_tokenizer])
    if kind.composes:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, kind


def read_merges(content: bytes, where: str) -> list[tuple[str, str]]:
    """Parse merges.txt: pairs of tokens in the order of their merges; raise a TokenizerError for a line that is no pair."""
    lines = split_lines(content.decode("utf-8-sig"))
    pairs: list[tuple[str, str]] = []
    for line in lines:
        if line.strip(" ") and not line.startswith("#version"):
            parts = [part for part in line.split(" ") if part]
            if len(parts) != 2:
                raise TokenizerError(
                    f"{where}: merges.txt has the line {short(' '.join(parts))}, which is not two tokens separated by a space. Copy the "
                    "file again."
                )
            pairs.append((parts[0], parts[1]))
    return pairs


def _pieces(proto: bytes, settings: Settings) -> tuple[Tokenizer, Kind]:
    model = spm.read_model(proto)
    kind = settings.kind or _guess_kind(model)
    expected = spm.BPE if kind.merges else spm.UNIGRAM
    if model.kind != expected and not (kind.merges is None and model.kind == spm.BPE):
        names = {spm.BPE: "BPE", spm.UNIGRAM: "unigram"}
        raise TokenizerError(
            f"{settings.where}: a {kind.name} needs a sentencepiece model of type {names[expected]}, but this one has type "
            f"{names.get(model.kind, model.kind)}: the file belongs to another model, or it is truncated. Copy it again."
        )
    tokenizer = (_bpe if model.kind == spm.BPE else _unigram)(model, kind, settings)
    # Control pieces never result from text; user-defined pieces do, always as one token.
    tokenizer.add_tokens(
        [
            AddedToken(text, special=sort == spm.CONTROL, normalized=False)
            for text, _, sort in model.pieces
            if sort in (spm.CONTROL, spm.USER_DEFINED)
        ]
    )
    others = [name for name in (*kind.head, *kind.tail) if name not in kind.roles.values()]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in others])
    if kind.wrap == "eos":
        sentinels = (f"<extra_id_{number}>" for number in itertools.count())
        existing = itertools.takewhile(lambda name: tokenizer.token_to_id(name) is not None, sentinels)
        tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in existing])
    return tokenizer, kind


def _guess_kind(model: spm.SentencePieceModel) -> Kind:
    names = [text for text, _, _ in model.pieces]
    if model.kind == spm.BPE:
        return KIND["LlamaTokenizer"]
    if "[CLS]" in names:
        return KIND["DebertaV2Tokenizer" if names[0] == "[PAD]" else "AlbertTokenizer"]
    return KIND["T5Tokenizer" if names[:2] == ["<pad>", "</s>"] else "XLMRobertaTokenizer"]


def _numbered(model: spm.SentencePieceModel, kind: Kind) -> list[tuple[str, float]]:
    """Return the tokens of a model with their scores, in the order of the kind's ids."""
    head, tail = ([(name, 0.0) for name in names] for names in (kind.head, kind.tail))
    return head + [(text, score) for text, score, _ in model.pieces[kind.skips :]] + tail


def _unigram(model: spm.SentencePieceModel, kind: Kind, settings: Settings) -> Tokenizer:
    config = settings.config
    if config.get("offset", _OFFSET) != _OFFSET and kind.wrap == "eos once":
        raise TokenizerError(
            f"{settings.where}: offset in tokenizer_config.json is {config['offset']}, but only {_OFFSET} is supported without a "
            "tokenizer.json. Save one with the library that made the model."
        )
    vocab, unknown = _numbered(model, kind), model.unk_id
    steps: list[normalizers.Normalizer] = []
    if kind.wrap == "eos":  # T5: sentinels, the highest id first
        has_them = any(text == f"{SPACE}<extra_id_0>" for text, _ in vocab)  # as mT5's model
        count = int(config.get("extra_ids", 0 if has_them else 100))
        vocab += [(f"<extra_id_{number}>", 0.0) for number in reversed(range(count))]
    elif kind.head:
        unknown = [text for text, _ in vocab].index(model.pieces[model.unk_id][0])
    elif kind.plain:
        steps += [normalizers.Lowercase()] if config.get("do_lower_case", False) else []
    else:  # ALBERT, which splits a comma from the number before it, and RemBERT
        vocab = [(text, score - 100 * bool(kind.folds and re.search(r"\d,$", text))) for text, score in vocab]
        steps += [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        if not config.get("keep_accents", not kind.folds):
            steps += [normalizers.NFKD(), normalizers.StripAccents()]
        if config.get("do_lower_case", kind.folds):
            steps.append(normalizers.Lowercase())
    return _with_space_rules(Tokenizer(Unigram(vocab, unknown, model.byte_fallback)), model, settings, steps)


def _with_space_rules(
    tokenizer: Tokenizer,
    model: spm.SentencePieceModel,
    settings: Settings,
    steps: Sequence[normalizers.Normalizer] = (),
) -> Tokenizer:
    """Add the normalizer (`steps`, then the model's own rules), the splitting at white space, and the prepended space."""
    steps, config = list(steps), settings.config
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    scheme = "always" if config.get("add_prefix_space", model.adds_prefix) else "never"
    words = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    punctuation = [pre_tokenizers.Punctuation("isolated")] * config.get("split_by_punct", False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), *punctuation, words])
    if model.byte_fallback:
        tokenizer.decoder = _fallback_decoder(strip=scheme == "always")
    else:
        tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    return tokenizer


def _bpe(model: spm.SentencePieceModel, kind: Kind, settings: Settings) -> Tokenizer:
    """Build a BPE model whose merges are in the order of their pieces' scores; Llama falls back to bytes for unknown characters."""
    names = [text for text, _ in _numbered(model, kind)]
    if kind.tab_piece and "\t" not in names:
        names = ["\t" if text == "<0x09>" else text for text in names]
    vocab = {text: number for number, text in enumerate(names)}
    # User-defined pieces, such as runs of spaces, are matched in the normalized text, where they are merges.
    normal = {text: score for text, score, sort in model.pieces if sort in (spm.NORMAL, spm.USER_DEFINED)}
    normal |= {"\t": 0.0} if kind.tab_piece and "\t" in vocab else {}
    merges = []
    for text, score in normal.items():
        cuts = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        merges += [(-score, vocab[text], left, right) for left, right in cuts if left in normal and right in normal]
    tokenizer = Tokenizer(
        BPE(
            vocab,
            [(left, right) for *_, left, right in sorted(merges)],
            unk_token=model.pieces[model.unk_id][0],
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    )
    if kind.languages:
        return _with_space_rules(tokenizer, model, settings)
    prefix = settings.config.get("add_prefix_space")
    prefix = model.adds_prefix if prefix is None else bool(prefix)
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if settings.config.get("legacy", True):  # as sentencepiece itself: a space before every stretch of text
        steps += [normalizers.Prepend(SPACE)] * prefix
        steps.append(normalizers.Replace(" ", SPACE))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=SPACE, prepend_scheme="first" if prefix else "never", split=False
        )
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = _fallback_decoder(strip=prefix)
    return tokenizer


def _fallback_decoder(strip: bool) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + [decoders.Strip(content=" ", left=1)] * strip)


def find_languages(
    tokenizer: Tokenizer, kind: Kind | None, settings: Settings, roles: Mapping[str, str]
) -> Languages | None:
    """Return the languages of a tokenizer that has all its tokens, None if it has no language codes.

    Raises:
      TokenizerError: the settings name a language that the tokenizer lacks.
    """
    if kind is None or not kind.languages:
        return None
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    special = [(token.content, number) for number, token in added if token.special]
    ids = {name.strip("_"): number for name, number in special if name not in roles.values()}  # PLBART has __java__
    return languages_among(ids, kind, settings) if ids.keys() & set(kind.languages) else None


def languages_among(ids: Mapping[str, int], kind: Kind, settings: Settings) -> Languages:
    """Build the languages from code -> id and the settings; raise a TokenizerError if these name a code that is not in `ids`."""
    config = settings.config
    named = {key: (config.get(key) or "").strip("_") for key in ("src_lang", "tgt_lang")}
    default = kind.language if kind.language in ids or not kind.language else next(iter(ids))
    last = kind.wrap == "language last" or bool(config.get("legacy_behaviour"))
    found = Languages(ids, named["src_lang"] or default, named["tgt_lang"], last, kind.starts_decoder)
    for key, code in (("src_lang", found.source), ("tgt_lang", found.target)):
        if code and code not in ids:
            raise TokenizerError(
                f"{settings.where}: {key} in tokenizer_config.json is {code!r}, which is not one of {' '.join(ids)}. Fix it."
            )
    return found


def set_post_processor(
    tokenizer: Tokenizer, kind: Kind, settings: Settings, roles: Mapping[str, str], languages: Languages | None
) -> None:
    """Set the special tokens that go around a text or a pair, as the kind's models were trained.

    Args:
      tokenizer: a tokenizer with all its tokens, changed in place.
      kind: its kind.
      settings: its settings.
      roles: role -> token.
      languages: its languages, None if it has none.
    """

    def template(single: str, pair: str, **names: str) -> processors.PostProcessor:
        used = {name: token for name, token in names.items() if name in single.split() or name in pair.split()}
        ids = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(used.values())]

        def fill(text: str) -> list[str]:
            parts = [part.partition(":") for part in text.split()]
            return [f"{used.get(name, name)}:{number or 0}" for name, _, number in parts]

        return processors.TemplateProcessing(single=fill(single), pair=fill(pair), special_tokens=ids)

    config, vocabulary = settings.config, kind.vocabulary
    bos, eos, cls, sep = (roles.get(role, "") for role in ("bos", "eos", "cls", "sep"))
    if kind.wrap == "cls sep sep" and kind.vocabulary == "bytes":
        sep_id, cls_id = tokenizer.token_to_id(sep), tokenizer.token_to_id(cls)
        assert sep_id is not None and cls_id is not None, "the tokenizer has all its tokens"
        trims, prefix = bool(config.get("trim_offsets", True)), bool(config.get("add_prefix_space", False))
        tokenizer.post_processor = processors.RobertaProcessing((sep, sep_id), (cls, cls_id), trims, prefix)
        return
    start = "BOS " if bos and config.get("add_bos_token", vocabulary == "pieces") else ""
    end = " EOS" if eos and config.get("add_eos_token", False) else ""
    forms = {
        "cls sep": ("CLS $A SEP", "CLS $A SEP $B:1 SEP:1"),
        "cls sep sep": ("CLS $A SEP", "CLS $A SEP SEP $B SEP"),
        "eos": ("$A EOS", "$A EOS $B EOS"),
        "eos once": ("$A EOS", "$A $B EOS"),
        "eos first": ("EOS $A", "EOS $A EOS EOS $B"),
        "language last": ("$A EOS LANG", "$A $B EOS LANG"),
        "language first": ("LANG $A EOS", "LANG $A $B EOS"),
        "bos eos": (f"{start}$A{end}", f"{start}$A{end} {start}$B{end}"),
    }
    form, language = kind.wrap, ""
    if languages is not None:
        form = f"language {'last' if languages.code_last else 'first'}" if languages.source else "eos once"
        language = tokenizer.id_to_token(languages.id_of(languages.source)) or "" if languages.source else ""
    tokenizer.post_processor = template(*forms[form], BOS=bos, EOS=eos, CLS=cls, SEP=sep, LANG=language)


def apply_options(
    tokenizer: Tokenizer, settings: Settings, roles: Mapping[str, str], languages: Languages | None
) -> None:
    """Apply the options of tokenizer_config.json, in place, to a tokenizer that was read from tokenizer.json."""
    config, normalizer, splitter = settings.config, tokenizer.normalizer, tokenizer.pre_tokenizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        tokenizer.normalizer = normalizers.BertNormalizer(
            clean_text=normalizer.clean_text,
            handle_chinese_chars=config.get("tokenize_chinese_chars", normalizer.handle_chinese_chars),
            strip_accents=config.get("strip_accents", normalizer.strip_accents),
            lowercase=config.get("do_lower_case", normalizer.lowercase),
        )
    if isinstance(splitter, pre_tokenizers.ByteLevel) and config.get("add_prefix_space") is not None:
        splitter.add_prefix_space = bool(config["add_prefix_space"])
        tokenizer.pre_tokenizer = splitter
    # transformers saves RemBERT's file without the special tokens around a text; add_bos_token and add_eos_token do not change a file.
    bare = settings.kind and settings.kind.wrap.startswith("cls") and not tokenizer.num_special_tokens_to_add(False)
    if settings.kind and (bare or languages is not None):
        # The file has the language code that was current when it was saved.
        set_post_processor(tokenizer, settings.kind, settings, roles, languages)


def prepend_lowercase(tokenizer: Tokenizer) -> bool:
    """Make a tokenizer, in place, lowercase texts before everything else; return False if it lowercases already."""
    spec = json.loads(tokenizer.to_str())["normalizer"]
    parts = (spec.get("normalizers") or [spec]) if spec else []
    if any(part["type"] == "Lowercase" or part.get("lowercase") for part in parts):
        return False
    existing = [tokenizer.normalizer] if tokenizer.normalizer else []
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *existing])
    return True
