"""Tokenizers of sentencepiece models whose pieces a vocab.json numbers: ids and texts are those of transformers."""

from __future__ import annotations

import json
import pathlib
import pickle

import numpy as np
import pytest

from helpers.language_folders import open_family
from helpers.opus_folder import files, golden
from lm_research.errors import TokenizerError
from lm_research.tokenizers.loading import load_tokenizer, tokenizer_from_files

TEXTS = golden()["texts"]


def opus(**config: object):
    name = "tokenizer_config.json"
    return tokenizer_from_files(files() | {name: json.dumps(json.loads(files()[name]) | config).encode()}, "opus")


def test_both_sides_and_decoded_texts_match_transformers() -> None:
    tokenizer = opus()
    for text, read, written, decoded in zip(
        TEXTS, *(golden()[name] for name in ("input_ids", "labels", "decoded")), strict=True
    ):
        assert tokenizer(text)["input_ids"][0].tolist() == read, text
        assert tokenizer(text_target=text)["input_ids"][0].tolist() == written, text
        assert tokenizer.decode(written) == tokenizer.decode(np.array([-100, *written, -100])) == decoded
    # Up to spaces: transformers decodes with the source model, which writes two spaces for a piece that it lacks.
    named = [tokenizer.decode(ids, skip_special_tokens=False) for ids in golden()["labels"]]
    assert [text.split() for text in named] == [text.split() for text in golden()["named"]]
    both = tokenizer(golden()["sources"], text_target=TEXTS[:3], padding=True)
    assert {name: both[name].tolist() for name in ("input_ids", "attention_mask")} == golden()["padded"]
    assert both["labels"].shape == (3, max(map(len, golden()["labels"][:3])))


def test_special_tokens_in_texts_of_corpora_are_plain_text() -> None:
    """The ids of running text are those above without the end, unless it names one: then its characters count."""
    tokenizer = opus()
    for text, read, written in zip(TEXTS, golden()["input_ids"], golden()["labels"], strict=True):
        if not any(token in text for token in ("</s>", "<pad>", "<unk>")):
            assert tokenizer.encode(text) == read[:-1] and tokenizer.encode_targets([text]) == [written[:-1]]
    assert not {tokenizer.eos_id, tokenizer.pad_id} & set(tokenizer.encode("a</s>b <pad> c"))
    assert tokenizer.max_length == 512 and opus(model_max_length=9).max_length == 9
    cut = tokenizer(TEXTS[0], truncation=True, max_length=5)["input_ids"][0].tolist()
    assert cut == [*golden()["input_ids"][0][:4], tokenizer.eos_id]
    # A space counts as one byte; the end, padding and unknown tokens as none.
    assert tokenizer.token_bytes[tokenizer.encode("the earth")].sum() == len(" the earth")
    assert set(tokenizer.special_ids) == {tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id}


def test_files_are_unchanged(tmp_path: pathlib.Path) -> None:
    names = ("source.spm", "target.spm", "vocab.json", "tokenizer_config.json")
    tokenizer = tokenizer_from_files(files(), "opus")
    tokenizer.save_files(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: files()[name] for name in names}
    again = load_tokenizer(tmp_path)  # without a config.json the class is inferred from the files
    assert again.digest == tokenizer.digest == pickle.loads(pickle.dumps(again)).digest
    turned = files() | {"source.spm": files()["target.spm"], "target.spm": files()["source.spm"]}
    assert tokenizer_from_files(turned, "turned").digest != tokenizer.digest


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("source.spm", b"hello", "source.spm is not a sentencepiece model"),
        ("vocab.json", b"{", "vocab.json is not JSON"),
        ("vocab.json", b'{"a": 0}', "has no id for <unk>"),
        ("tokenizer_config.json", b'{"separate_vocabs": true}', "separate_vocabs is true.*not supported"),
        ("target.spm", None, "a MarianTokenizer, which needs source.spm and target.spm and vocab.json"),
    ],
)
def test_files_that_cannot_be_used(name: str, content: bytes | None, message: str) -> None:
    changed = {one: data for one, data in (files() | {name: content, "spiece.model": b"x"}).items() if data is not None}
    with pytest.raises(TokenizerError, match=message):
        tokenizer_from_files(changed, "opus")


def test_unsupported_operations() -> None:
    with pytest.raises(TokenizerError, match="take one text, not pairs"):
        opus()("a", "b")
    with pytest.raises(TokenizerError, match="does not report character offsets"):
        opus()("a", return_offsets=True)


def test_languages_of_m2m_have_ids_after_the_pieces(tmp_path: pathlib.Path) -> None:
    """facebook/m2m100_418M: 128,004 pieces and, after them, `en` as number 18 of a hundred languages: 128,022."""
    tokenizer, _ = open_family(tmp_path, "M2M100")
    pieces = len(json.loads((tmp_path / "vocab.json").read_text()))
    assert (
        tokenizer.size == pieces + 100
        and tokenizer.languages.id_of("en") == tokenizer.token_id("__en__") == pieces + 18
    )
    assert tokenizer.decode([tokenizer.token_id("__en__"), *tokenizer.encode("light"), tokenizer.eos_id]) == "light"
