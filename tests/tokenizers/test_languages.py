"""Tokenizers that mark texts with their language: ids of texts to be read and to be written are those of transformers."""

from __future__ import annotations

import pathlib
import pickle

import pytest

from helpers.hf_folders import write_folder
from helpers.language_folders import goldens, open_family, write_family
from lm_research.errors import TokenizerError
from lm_research.tokenizers.languages import NLLB
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.sentencepiece_model import read_model

FAMILIES = ["MBart", "MBart50", "Nllb", "Nllb legacy", "M2M100", "PLBart", "PLBart multi"]
SOURCES, TARGETS = goldens()["sources"], goldens()["targets"]


def rows(tokenizer, texts: list[str], side: str = "text") -> list[list[int]]:
    return [tokenizer(**{side: text})["input_ids"][0].tolist() for text in texts]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_of_a_pair_match_transformers(family: str, tmp_path: pathlib.Path) -> None:
    """`tokenizer(sources, text_target=targets)` of transformers, by the languages of its files, and read back from what we write."""
    configured, golden = open_family(tmp_path / "a", family)
    write_family(tmp_path / "b", family, src_lang=golden["source"], tgt_lang=golden["target"])
    configured.save_files(tmp_path / "c")
    named = [
        configured,
        load_tokenizer(tmp_path / "b"),
        load_tokenizer(tmp_path / "c"),
        pickle.loads(pickle.dumps(configured)),
    ]
    for tokenizer in named:
        assert rows(tokenizer, SOURCES) == golden["input_ids"]
        assert rows(tokenizer, TARGETS, "text_target") == golden["labels"]
        for text, ids, frame in zip(
            SOURCES + TARGETS, golden["input_ids"] + golden["labels"], 3 * ["frame"] + 3 * ["target_frame"], strict=True
        ):
            head, tail = getattr(tokenizer, frame)
            assert [*head, *tokenizer.encode(text), *tail] == ids
        both = tokenizer(SOURCES, text_target=TARGETS, padding=True)
        assert both["input_ids"].shape[0] == both["labels"].shape[0] == 3
        assert both["labels"][0].tolist()[: len(golden["labels"][0])] == golden["labels"][0]
    assert len({one.digest for one in named}) == 1 != len({configured.digest, load_tokenizer(tmp_path / "a").digest})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_target_keeps_its_language(family: str, tmp_path: pathlib.Path) -> None:
    tokenizer, golden = open_family(tmp_path, family)
    cut = tokenizer(text_target=TARGETS[0], truncation=True, max_length=5)["input_ids"][0].tolist()
    head, tail = tokenizer.target_frame
    assert cut == [*head, *tokenizer.encode(TARGETS[0])[:3], *tail]


def test_nllb_of_a_sentencepiece_model_has_the_published_ids(tmp_path: pathlib.Path) -> None:
    """The four tokens of fairseq, the pieces after sentencepiece's own three, 202 languages by name, the mask.

    eng_Latn is 256,047 of the published 256,001 + 202 + 1, which here is 46 after the pieces.
    """
    golden = write_family(tmp_path, "M2M100", tokenizer_class="NllbTokenizer")
    (tmp_path / "vocab.json").unlink()
    tokenizer, pieces = load_tokenizer(tmp_path), read_model((tmp_path / "sentencepiece.bpe.model").read_bytes()).pieces
    assert tokenizer.size == 4 + len(pieces) - 3 + 202 + 1 and tokenizer.mask_id == tokenizer.size - 1
    assert tokenizer.token_id("eng_Latn") == len(pieces) + 1 + 46 and len(NLLB) == 202
    assert tokenizer.encode(SOURCES[0]) == goldens()["families"]["Nllb legacy"]["input_ids"][0][:-2]
    assert golden["source"] not in tokenizer.languages.ids


def test_unknown_languages(tmp_path: pathlib.Path) -> None:
    tokenizer, _ = open_family(tmp_path / "a", "MBart50")
    with pytest.raises(TokenizerError, match="no language 'ro-RO'. Did you mean 'ro_RO'"):
        tokenizer.in_languages(target="ro-RO")
    with pytest.raises(TokenizerError, match="no language 'en'. Valid: en_XX"):
        tokenizer.in_languages(source="en")
    with pytest.raises(TokenizerError, match="has no language codes"):
        load_tokenizer(write_folder(tmp_path / "b", "bert")).in_languages(target="ro_RO")
    write_family(tmp_path / "c", "Nllb", tgt_lang="ro_RO")
    with pytest.raises(
        TokenizerError, match="tgt_lang in tokenizer_config.json is 'ro_RO', which is not one of eng_Latn ron_Latn"
    ):
        load_tokenizer(tmp_path / "c")
