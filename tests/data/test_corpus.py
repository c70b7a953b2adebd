"""The corpus: built once, found again, split without overlap, and refusals of what it cannot do."""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from helpers.hf_folders import write_folder
from lm_research import config as config_module
from lm_research.config import Config, resolve
from lm_research.data import corpus as corpus_module
from lm_research.data import sources
from lm_research.data.corpus import Corpus, open_corpus
from lm_research.data.workers import WorkerDied
from lm_research.errors import DamagedStore, DataError, TokenizerError
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

TEXTS = [f"Story {n}. The cat number {n} met dog {n * 7}.\nThey ran {n % 5} miles. Then they slept." for n in range(60)]


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return write(tmp_path / "text", TEXTS)


def write(folder: pathlib.Path, texts: list[str]) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:03}.txt").write_text(text)
    return folder


def make_config(source: object, tokenizer: dict[str, Any] | None = None, **data: Any) -> Config:
    return resolve(
        dict(
            data={"source": str(source), "document_separator": "file", "validation_fraction": 0.2, **data},
            tokenizer={"vocab_size": 340, **(tokenizer or {})},
        )
    )


def texts_of(corpus: Corpus, part: str) -> list[str]:
    stored = getattr(corpus, part)
    return [corpus.tokenizer.decode(stored.document_tokens(i)) for i in range(stored.num_documents)]


def folded(texts: list[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]


def test_each_document_lands_in_one_part_in_order(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    lines: list[str] = []
    corpus = open_corpus(make_config(folder), tmp_path / "run", lines.append)
    train, validation = texts_of(corpus, "train"), texts_of(corpus, "validation")
    assert sorted(train + validation) == sorted(folded(TEXTS))
    assert 3 <= len(validation) <= 24  # 60 draws at 0.2: 12, give or take 4 deviations of sqrt(60 * 0.2 * 0.8) = 3.1
    order = {text: number for number, text in enumerate(folded(TEXTS))}
    assert [order[text] for text in train] == sorted(order[text] for text in train)
    assert corpus.train.num_sentences == 4 * len(train)
    assert corpus.train.manifest["tokenizer_digest"] == corpus.tokenizer.digest
    text_bytes = sum(len(text.encode()) for text in TEXTS if " ".join(text.split()) in train)
    assert corpus.train.manifest["text_bytes"] == text_bytes
    assert [
        line.split(":")[0].split(" ")[0] for line in lines
    ] == "Read Split Training Trained Tokenized Tokenized Corpus".split()


def test_second_call_reads_no_text(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_corpus(make_config(folder), tmp_path / "run", print)
    monkeypatch.setattr(sources, "read_documents", lambda *_: pytest.fail("text was read again"))
    monkeypatch.setattr(SentencePieceTokenizer, "train", lambda *_: pytest.fail("the tokenizer was trained again"))
    lines: list[str] = []
    second = open_corpus(make_config(folder), tmp_path / "run", lines.append)
    assert second.digest == first.digest and len(lines) == 1 and "found" in lines[0]


def test_cache_dir_is_shared_between_runs(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(folder, cache_dir=str(tmp_path / "cache"))
    first = open_corpus(config, tmp_path / "run1", print)
    monkeypatch.setattr(sources, "read_documents", lambda *_: pytest.fail("text was read again"))
    assert open_corpus(config, tmp_path / "run2", print).digest == first.digest
    assert not (tmp_path / "run1").exists()


def test_what_changes_the_corpus_and_what_does_not(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    base = make_config(folder)
    key = corpus_module._key(base)
    changes = [
        dict(data=dict(validation_fraction=0.3)),
        dict(data=dict(document_separator="line")),
        dict(data=dict(validation_source=str(folder))),
        dict(tokenizer=dict(vocab_size=341)),
        dict(tokenizer=dict(type="bpe")),
        dict(tokenizer=dict(keep_newlines=True)),
    ]
    keys = [corpus_module._key(config_module.replace(base, **change)) for change in changes]
    assert len({key, *keys}) == 7
    same = [dict(seed=5), dict(data=dict(max_length=64, num_workers=2)), dict(train=dict(batch_size=8))]
    assert {corpus_module._key(config_module.replace(base, **change)) for change in same} == {key}
    os.utime(folder / "000.txt", ns=(0, 10**18))
    assert corpus_module._key(base) != key


def test_the_folder_of_an_earlier_version_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a corpus is the SHA-256 of these facts in JSON: another one would build every stored corpus again."""
    monkeypatch.setattr(sources, "fingerprint", lambda source, data: "f")
    clean = '{"unicode": "none", "near_duplicates": 0.0, "min_characters": 0, "max_characters": 0, "scripts": "", '
    clean += '"min_script_ratio": 0.8, "scrub": ""}'
    facts = f'[3, [["", "f"]], 0.05, "blank_line", "error", {clean}, ["unigram", 8192, false, 0], false]'
    name = hashlib.sha256(facts.encode()).hexdigest()[:20]
    assert corpus_module.corpus_folder(Config(), pathlib.Path("run")).name == name


def test_same_text_elsewhere_has_the_same_digest(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = write(tmp_path / "other", TEXTS)
    digests = {open_corpus(make_config(source), tmp_path / "run", print).digest for source in (folder, other)}
    assert len(digests) == 1


@pytest.mark.parametrize("content", [b"", b"none"])
def test_a_damaged_tokenizer_is_damage_of_the_corpus(
    content: bytes, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """So prepare builds it again, and the message does not name a tokenizer key that the user never set."""
    open_corpus(make_config(folder), tmp_path, print)
    (made,) = (tmp_path / "data").iterdir()
    (made / "tokenizer.model").write_bytes(content)
    with pytest.raises(DamagedStore, match="the tokenizer next to it .* Delete the folder"):
        open_corpus(make_config(folder), tmp_path, print)


def test_left_over_temporary_folder_is_ignored(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = make_config(folder)
    left_over = tmp_path / "run/data" / f".{corpus_module._key(config)}.abc.tmp"
    (left_over / "train").mkdir(parents=True)
    (left_over / "tokenizer.model").write_bytes(b"half")
    assert open_corpus(config, tmp_path / "run", print).train.num_documents > 1


def test_failed_build_leaves_nothing(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    with pytest.raises(TokenizerError, match="too small for config.tokenizer.vocab_size=9000"):
        open_corpus(make_config(folder, dict(vocab_size=9000)), tmp_path / "run", print)
    assert list((tmp_path / "run/data").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "kept"), [(WorkerDied("One was killed."), True), (DataError("Line 3 is damaged."), False)]
)
def test_what_is_left_of_a_build_that_fails(
    error: DataError, kept: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished shards of a killed build are kept; damaged text must be read again."""

    def fail(work: pathlib.Path, *_: Any) -> None:
        (work / "000000.npz").touch()
        raise error

    monkeypatch.setattr(corpus_module, "_build_in", fail)
    with pytest.raises(type(error), match=str(error)):
        corpus_module._build(Config(), tmp_path / "corpus", print, None, None)
    assert (tmp_path / ".corpus.work" / "000000.npz").exists() == kept


def test_more_words_than_the_limit_are_refused(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Sixteen words in each of 60 stories; the held-out text does not count, and a corpus that was not counted is not taken for one that was."""
    held_out = write(tmp_path / "held_out", ["One two three four. Five six."] * 2)
    with pytest.raises(DataError, match="has 960 words, more than data.max_words=959 allows"):
        open_corpus(make_config(folder, validation_source=str(held_out), max_words=959), tmp_path / "run", print)
    lines: list[str] = []
    open_corpus(make_config(folder, validation_source=str(held_out), max_words=960), tmp_path / "run", lines.append)
    assert "The training text has 960 words." in lines


def test_repeated_and_empty_documents_are_left_out(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "text", [*TEXTS, TEXTS[3], "", " \n", TEXTS[3], TEXTS[9]])
    lines: list[str] = []
    corpus = open_corpus(make_config(source), tmp_path / "run", lines.append)
    assert sorted(texts_of(corpus, "train") + texts_of(corpus, "validation")) == sorted(folded(TEXTS))
    (warning,) = [line for line in lines if line.startswith("Warning")]
    assert "3 documents that occurred before and 2 empty" in warning


def test_validation_source(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Documents in both are held out, never trained on."""
    held = write(tmp_path / "held", ["Another text. It is new.", TEXTS[5]])
    corpus = open_corpus(make_config(folder, validation_source=str(held)), tmp_path / "run", print)
    assert texts_of(corpus, "validation") == folded(["Another text. It is new.", TEXTS[5]])
    assert texts_of(corpus, "train") == folded(TEXTS[:5] + TEXTS[6:])
    with pytest.raises(DataError, match="No document of .* is left to train on.*validation_source"):
        open_corpus(make_config(folder, validation_source=str(folder)), tmp_path / "run", print)


@pytest.mark.parametrize("fraction", [0.0001, 0.9])
def test_both_parts_have_a_document(fraction: float, tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "text", [" ".join(TEXTS[:30]), " ".join(TEXTS[30:])])
    corpus = open_corpus(make_config(source, validation_fraction=fraction), tmp_path / "run", print)
    assert corpus.train.num_documents == corpus.validation.num_documents == 1


@pytest.mark.parametrize("keep_newlines", [False, True])
def test_one_document_is_cut_by_sentences(keep_newlines: bool, tmp_path: pathlib.Path) -> None:
    text = "\n".join(TEXTS)
    source = write(tmp_path / "text", [text])
    corpus = open_corpus(make_config(source, dict(keep_newlines=keep_newlines)), tmp_path / "run", print)
    (train,), (validation,) = texts_of(corpus, "train"), texts_of(corpus, "validation")
    assert train + ("" if keep_newlines else " ") + validation == (text if keep_newlines else folded([text])[0])
    share = corpus.validation.num_sentences / (corpus.train.num_sentences + corpus.validation.num_sentences)
    assert abs(share - 0.2) < 0.01


def test_kept_newlines_are_lossless(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    corpus = open_corpus(make_config(folder, dict(keep_newlines=True)), tmp_path / "run", print)
    assert sorted(texts_of(corpus, "train") + texts_of(corpus, "validation")) == sorted(TEXTS)
    counted = int((corpus.train.token_counts * corpus.tokenizer.token_bytes).sum())
    assert counted == corpus.train.manifest["text_bytes"]


def test_tokenizer_never_sees_held_out_text(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Other held-out text, the same training text: the same tokenizer."""
    digests = []
    for name in ("x", "y"):
        held = write(tmp_path / name, [f"Only {name} here. {name * 30}."])
        config = make_config(folder, validation_source=str(held))
        digests.append(open_corpus(config, tmp_path / "run", print).tokenizer.digest)
    assert digests[0] == digests[1]


def test_tokenizer_path(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    first = open_corpus(make_config(folder), tmp_path / "run", print)
    model = tmp_path / "my.model"
    model.write_bytes(first.tokenizer.proto)
    corpus = open_corpus(make_config(folder, dict(path=str(model), vocab_size=64)), tmp_path / "run2", print)
    assert corpus.digest == first.digest
    model.unlink()
    with pytest.raises(TokenizerError, match="does not exist"):
        open_corpus(make_config(folder, dict(path=str(model))), tmp_path / "run3", print)


@pytest.mark.parametrize("family", ["bert cased", "gpt2", "t5"])
def test_tokenizer_of_a_published_model(family: str, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Its files are copied to the corpus's folder, which no longer needs the model's; sentences keep their spaces."""
    model = write_folder(tmp_path / "model", family)
    config = make_config(folder, dict(path=str(model)))
    corpus = open_corpus(config, tmp_path / "run", print)
    inside = {path.name for path in corpus.train.path.parent.iterdir()}
    assert inside == {*corpus.tokenizer.files, "train", "validation"} and "tokenizer.json" in inside
    assert load_tokenizer(corpus.train.path.parent).digest == load_tokenizer(model).digest == corpus.tokenizer.digest
    assert open_corpus(config, tmp_path / "run", print).digest == corpus.digest
    assert all(". The cat" in text for text in texts_of(corpus, "train"))
    if family == "gpt2":  # which loses nothing
        assert sorted(texts_of(corpus, "train") + texts_of(corpus, "validation")) == sorted(folded(TEXTS))
        kept = open_corpus(make_config(folder, dict(path=str(model), keep_newlines=True)), tmp_path / "run", print)
        assert sorted(texts_of(kept, "train") + texts_of(kept, "validation")) == sorted(TEXTS)
    else:
        with pytest.raises(TokenizerError, match="keep_newlines=True, but"):
            open_corpus(make_config(folder, dict(path=str(model), keep_newlines=True)), tmp_path / "run", print)


def test_tokenizer_that_folds_newlines_cannot_keep_them(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    first = open_corpus(make_config(folder), tmp_path / "run", print)
    model = tmp_path / "my.model"
    model.write_bytes(first.tokenizer.proto)
    with pytest.raises(TokenizerError, match="keep_newlines=True, but"):
        open_corpus(make_config(folder, dict(path=str(model), keep_newlines=True)), tmp_path / "run", print)


def test_too_small(tmp_path: pathlib.Path) -> None:
    source = write(tmp_path / "text", ["Just one sentence."])
    with pytest.raises(DataError, match="too small: one document of one sentence"):
        open_corpus(make_config(source), tmp_path / "run", print)


def test_damaged_corpus(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = make_config(folder)
    corpus = open_corpus(config, tmp_path / "run", print)
    (corpus.train.path / "tokens.bin").unlink()
    with pytest.raises(DataError, match="damaged.*tokens.bin is missing.*Delete the folder"):
        open_corpus(config, tmp_path / "run", print)


def test_folder_that_cannot_be_made(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be stored in .*config.data.cache_dir"):
        open_corpus(make_config(folder, cache_dir=str(tmp_path / "file")), tmp_path / "run", print)


def test_the_data_package_does_not_import_jax() -> None:
    code = (
        "import sys\n"
        "import lm_research.data.corpus, lm_research.data.loader\n"
        "print([name for name in ('jax', 'flax', 'grain', 'tensorflow', 'tensorflow_datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
