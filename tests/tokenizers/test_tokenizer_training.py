"""Training WordPiece and byte-level BPE: the same bytes in every process, roles, round trips and errors."""

from __future__ import annotations

import hashlib
import json
import pathlib
import subprocess
import sys
import time
from typing import IO

import pytest

from lm_research.config import TokenizerConfig
from lm_research.errors import TokenizerError
from lm_research.tokenizers import tokenizer_training
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from lm_research.tokenizers.tokenizer_training import LIBRARY_KINDS, train_tokenizer

SYLLABLES = "ba ce di fo gu ha je ki lo mu".split()
# Many ties: all words are about equally frequent, so an unstable order would show.
WORDS = [SYLLABLES[n % 10] + SYLLABLES[n // 9] + SYLLABLES[n // 7 % 10] for n in range(90)]
TEXTS = [
    f"The cat number {n} met dog {n * 7 % 61}.\nThey ran {n % 5} miles; naïve ÉTUDES, 猫と犬 {word} {word}."
    for n, word in enumerate(WORDS)
]


def config(kind: str, **keys: object) -> TokenizerConfig:
    return TokenizerConfig(**{"type": kind, "vocab_size": 330 if kind == "byte_bpe" else 160, **keys})


@pytest.mark.parametrize("kind", LIBRARY_KINDS)
def test_every_process_makes_the_same_bytes(kind: str) -> None:
    """Each process draws another seed for the library's hash tables; unpinned, five WordPiece runs gave five vocabularies."""
    code = f"""
from test_tokenizer_training import TEXTS, config
from lm_research.tokenizers.tokenizer_training import train_tokenizer
print(train_tokenizer(TEXTS, config({kind!r})).digest)
"""
    here = pathlib.Path(__file__).parent
    runs = [
        subprocess.Popen([sys.executable, "-c", code], cwd=here, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    digests = {run.communicate(timeout=60)[0].strip() for run in runs}
    assert digests == {train_tokenizer(TEXTS, config(kind)).digest}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("wordpiece", dict(pad="[PAD]", unk="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]")),
        ("byte_bpe", dict(cls="<s>", pad="<pad>", sep="</s>", unk="<unk>", mask="<mask>", bos="<s>", eos="</s>")),
    ],
)
def test_roles_and_files(kind: str, names: dict[str, str], tmp_path: pathlib.Path) -> None:
    tokenizer = train_tokenizer(TEXTS, config(kind, sentinels=3))
    assert {role: tokenizer.pieces([tokenizer.roles[role]])[0] for role in names} == names
    assert sorted({tokenizer.roles[role] for role in names}) == list(range(5))
    assert [tokenizer.token_id(f"<extra_id_{number}>") for number in range(3)] == [5, 6, 7]
    assert tokenizer.special_ids.tolist() == list(range(8))
    assert tokenizer.decode([5, *tokenizer.encode("cat"), 7]).strip() == "cat"
    assert tokenizer.size == config(kind).vocab_size
    tokenizer.save_files(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.digest == tokenizer.digest and again.encode(TEXTS[5]) == tokenizer.encode(TEXTS[5])


def test_sentencepiece_also_gets_sentinels(tmp_path: pathlib.Path) -> None:
    tokenizer = SentencePieceTokenizer.train(TEXTS, config("bpe", vocab_size=400, sentinels=2), tmp_path / "a.model")
    assert [tokenizer.token_id(f"<extra_id_{number}>") for number in range(2)] == [5, 6]
    assert tokenizer.special_ids.tolist() == list(range(7))


def test_bytes_lose_nothing() -> None:
    tokenizer = train_tokenizer(TEXTS, config("byte_bpe", keep_newlines=True))
    for text in ("The cat\n\n  met\t犬 🎉 naïve.", "", " ", "\x00\xff"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.keeps_newlines
    plain = train_tokenizer([text.replace("\n", "") for text in TEXTS], config("byte_bpe"))
    assert len(tokenizer.encode(TEXTS[0])) <= len(plain.encode(TEXTS[0]))  # it has seen line breaks


def test_wordpiece_cases() -> None:
    cased, uncased = (train_tokenizer(TEXTS, config("wordpiece", lowercase=lower)) for lower in (False, True))
    assert uncased.encode("ÉTUDES") == uncased.encode("etudes") and uncased.unk_id not in uncased.encode("ÉTUDES")
    assert cased.encode("The") != cased.encode("the")
    assert cased.decode(cased.encode("The cat 12")) == "The cat 12"
    assert len(cased.encode("猫と犬")) == 3  # each ideograph is a word
    assert cased.encode("Ω") == [cased.unk_id]


def test_frequent_words_are_whole() -> None:
    for kind in LIBRARY_KINDS:
        tokenizer = train_tokenizer(TEXTS, config(kind))
        assert len(tokenizer.encode(" number")) == 1 and len(tokenizer.encode(" rebmun")) > 2


@pytest.mark.parametrize(
    ("keys", "texts", "message"),
    [
        (dict(type="wordpiece", keep_newlines=True), TEXTS, "keep_newlines=True, but WordPiece"),
        (dict(type="byte_bpe", vocab_size=100), TEXTS, "vocab_size=100 is too small: byte_bpe needs 261"),
        (
            dict(type="byte_bpe", vocab_size=9000),
            TEXTS,
            r"too small for config.tokenizer.vocab_size=9000.*at most \d+ pieces",
        ),
        (dict(type="wordpiece", vocab_size=9000), TEXTS, "too small for config.tokenizer.vocab_size=9000"),
        (dict(type="wordpiece"), [" ", ""], "no text to train"),
        (dict(type="byte_bpe"), [], "no text to train"),
    ],
)
def test_errors(keys: dict, texts: list[str], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        train_tokenizer(texts, TokenizerConfig(**keys))


def test_named_size_works() -> None:
    """The size that the message suggests can be trained."""
    for kind in LIBRARY_KINDS:
        with pytest.raises(TokenizerError) as caught:
            train_tokenizer(TEXTS, config(kind, vocab_size=9000))
        size = int(str(caught.value).split("at most ")[1].split()[0])
        assert train_tokenizer(TEXTS, config(kind, vocab_size=size)).size == size


def test_vocabulary_has_the_published_format() -> None:
    tokenizer = train_tokenizer(TEXTS, config("byte_bpe"))
    vocab = json.loads(tokenizer.files["vocab.json"])
    merges = tokenizer.files["merges.txt"].decode().splitlines()
    assert len(vocab) == 330 and merges[0].startswith("#version")
    assert len(merges) - 1 == 330 - 261  # every piece beyond roles and bytes is one merge
    assert all("".join(merge.split(" ")) in vocab for merge in merges[1:])
    assert (
        hashlib.sha256(tokenizer.files["vocab.json"]).hexdigest()
        == hashlib.sha256(train_tokenizer(TEXTS, config("byte_bpe")).files["vocab.json"]).hexdigest()
    )


def test_a_long_training_reports_its_progress(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first line, then one periodically with the trainer's last complete line, in the form that sentencepiece writes."""
    lines: list[str] = []

    def learn(texts: object, config: TokenizerConfig, path: object, words: IO[bytes]) -> str:
        words.write(
            b"I0000 00:00:1.5 12 trainer.cc:9] Alphabet size=27\nI0000 00:00:1.6 12 unigram.cc:903] EM size=5\nI0"
        )
        words.flush()
        deadline = time.monotonic() + 60
        while len(lines) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        return "learned"

    monkeypatch.setattr(tokenizer_training.SentencePieceTokenizer, "train", learn)
    monkeypatch.setattr(tokenizer_training, "_LINE_SECONDS", 0.05)
    settings = TokenizerConfig(vocab_size=4096)
    assert tokenizer_training.learn_tokenizer([], settings, tmp_path / "model", lines.append) == "learned"
    assert lines[0] == "Training the tokenizer (unigram) with 4,096 pieces."
    assert lines[2] == "Training the tokenizer (unigram): 0 s. EM size=5"
