"""Tokenizers of runs as others read them: the ids that transformers gives for the files of a run's model.

The expected values are in goldens/run_exports.json, which goldens/make_goldens.py made with transformers' AutoTokenizer.
"""

from __future__ import annotations

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import lm_research
from helpers.run_exports import (
    GOLDENS,
    PAIRS,
    SECONDS,
    TEXTS,
    VOCABULARIES,
    digest_of,
    exported,
    model_section,
    trained,
)
from helpers.tiny import random_params
from lm_research.errors import TokenizerError
from lm_research.models.families import FAMILIES, define_model
from lm_research.pretrained import LanguageModel
from lm_research.tokenizers.chat_template import TEMPLATE, chat_ids
from lm_research.tokenizers.loading import load_tokenizer, tokenizer_from_files
from lm_research.tokenizers.run_tokenizer import AROUND, BEFORE, with_format

GOLDEN = json.loads(GOLDENS.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("family", "vocabulary"),
    [
        pytest.param(
            *pair, marks=() if pair[0] in ("bert", "gpt2", "t5") or pair[1] == "byte_bpe" else pytest.mark.slow
        )
        for pair in PAIRS
        if "/".join(pair) in GOLDEN["digests"]
    ],
)
def test_transformers_gives_our_ids(family: str, vocabulary: str, tmp_path: pathlib.Path) -> None:
    """Those of the run, and those of its files read again, with special tokens around texts and pairs, types included."""
    tokenizer, _ = exported(family, vocabulary)
    tokenizer.save_files(tmp_path)
    for one in (tokenizer, load_tokenizer(tmp_path)):
        found = [one(TEXTS, seconds, padding=True) for seconds in (None, SECONDS)]
        assert one(TEXTS[2])["input_ids"][0].tolist() == GOLDEN["shown"][f"{family}/{vocabulary}"]
        assert digest_of(found) == GOLDEN["digests"][f"{family}/{vocabulary}"]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_ids_of_training_match_transformers(vocabulary: str) -> None:
    """A run learns from `encode_batch`. Texts that name special tokens are left out: training treats those as letters."""
    named = [number for number, text in enumerate(TEXTS) if "[SEP]" in text or "<extra_id_0>" in text]
    found = trained(vocabulary).encode_batch(TEXTS)
    expected = GOLDEN["plain"][vocabulary]
    for number, text in enumerate(TEXTS):
        if number not in named:
            assert found[number] == expected[number], text
    assert with_format(trained(vocabulary), AROUND).encode_batch(TEXTS) == found  # those too


@pytest.mark.parametrize(
    ("family", "vocabulary"),
    [(family, "wordpiece") for family in sorted(FAMILIES)]
    + [(family, "byte_bpe") for family in ("bert", "gpt2", "m2m_100", "roberta", "t5", "bart", "llama")],
)
def test_config_json_names_the_tokens_of_the_tokenizer(family: str, vocabulary: str) -> None:
    """[PAD] [UNK] [CLS] [SEP] are the first pieces of one, <s> <pad> </s> of the other; the document separator also begins them."""
    pad, first, last = {"wordpiece": (0, 2, 3), "byte_bpe": (1, 0, 2)}[vocabulary]
    config = json.loads(exported(family, vocabulary)[1])
    if family == "m2m_100":  # its positions depend on the padding token's id, so a run keeps the released one
        pad = 1
    decoder = define_model(model_section(family), 64).arch.kind == "decoder"
    first = last if decoder else first
    assert (config["pad_token_id"], config["bos_token_id"], config["eos_token_id"]) == (pad, first, last)
    assert family != "big_bird" or config["sep_token_id"] == 3
    assert not {-1, 50256} & {value for value in config.values() if type(value) is int}


@pytest.mark.parametrize("vocabulary", ["unigram", "byte_bpe"])
def test_positions_begin_after_the_padding_token(vocabulary: str, tmp_path: pathlib.Path) -> None:
    """RoBERTa's rule in transformers: position 0 is row padding_idx + 1 of the table; here 0 + 1 and 1 + 1."""
    tokenizer, config = exported("roberta", vocabulary)
    definition = define_model(model_section("roberta"), tokenizer.size)
    lm = LanguageModel(definition, random_params(definition), "roberta", json.loads(config), tokenizer)
    lm.save_pretrained(tmp_path)
    again = lm_research.from_pretrained(tmp_path)
    rows = tokenizer.pad_id + 1 + 64
    assert again.config.max_position_embeddings == again.params["encoder"]["embeddings"]["positions"].shape[0] == rows
    batch = lm.tokenizer(["the king", "the old river ran"], padding=True)
    found, expected = (model(**batch)["logits"][batch["attention_mask"] > 0] for model in (again, lm))
    np.testing.assert_array_equal(found, expected)


def test_one_api_for_all() -> None:
    """The ids are those of the golden; the texts are what went in."""
    for vocabulary in VOCABULARIES:
        tokenizer, _ = exported("gpt2", vocabulary)
        batch = tokenizer(
            ["the king", "old"], padding="max_length", max_length=12, truncation=True, return_offsets=True
        )
        assert batch["input_ids"].shape == (2, 12) and batch["offset_mapping"].shape == (2, 12, 2)
        row, name = batch["input_ids"][0], tokenizer.pieces([tokenizer.eos_id])[0]
        ids = row[: batch["attention_mask"][0].sum()]
        labels = np.where(batch["attention_mask"][0] > 0, row, -100)
        for same in (row, row.tolist(), jnp.asarray(row), labels, [*ids, tokenizer.size + 5], tuple(ids)):
            assert tokenizer.decode(same) == "the king"
        assert tokenizer.decode(labels, skip_special_tokens=False).removeprefix(name).strip() == "the king"
        assert tokenizer.decode(labels, skip_special_tokens=False).startswith(name)
        assert tokenizer.decode(int(ids[0])) == "" and tokenizer.decode([]) == ""
        assert tokenizer.batch_decode(batch["input_ids"]) == ["the king", "old"]
        assert tokenizer.batch_decode([[-100], ids]) == ["", "the king"]
        with pytest.raises(TokenizerError, match="one text.*batch_decode"):
            tokenizer.decode(batch["input_ids"])
        assert trained(vocabulary).decode([-100, *trained(vocabulary).encode("the king")]) == "the king"


@pytest.mark.parametrize("vocabulary", ["unigram", "bpe", "wordpiece", "byte_bpe"])
def test_a_chat_template_goes_with_the_tokenizer(vocabulary: str, tmp_path: pathlib.Path) -> None:
    """Through folders of a run, its model's and copies of that; special tokens of its text become their ids."""
    template = "{% for one in messages %}{{ one.content }}{{ eos_token }}{% endfor %}the"
    folder = tmp_path / "run"
    trained(vocabulary).save_files(folder)
    (folder / TEMPLATE).write_text(template)
    tokenizer = with_format(load_tokenizer(folder), BEFORE)
    tokenizer.save_files(tmp_path / "model")
    assert (tmp_path / "model" / TEMPLATE).read_text() == template
    expected = [*tokenizer.encode("old king"), tokenizer.eos_id, *tokenizer.encode("the")]
    for one in (tokenizer, load_tokenizer(tmp_path / "model"), tokenizer_from_files(tokenizer.files, "copy")):
        assert chat_ids(one, [{"role": "user", "content": "old king"}]) == expected


def test_a_tokenizer_of_a_published_class_keeps_its_class(tmp_path: pathlib.Path) -> None:
    tokenizer = trained("wordpiece")
    files = {name: tokenizer.files[name] for name in ("vocab.txt", "tokenizer.json")}
    files["tokenizer_config.json"] = b'{"tokenizer_class": "BertTokenizer"}'
    published = tokenizer_from_files(files, "published")
    assert with_format(published, AROUND) is published and with_format(published) is published
    assert with_format(published, BEFORE)("the king")["input_ids"][0, 0] == published.sep_id
