"""The prepare command: flags, the same corpus as training's, stopping and resuming, and the output of --inspect."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from lm_research import prepare
from lm_research.config import resolve
from lm_research.data.corpus import corpus_folder, open_corpus

TEXTS = [f"Story {n}. The cat number {n} met dog {n * 7}.\nThey ran {n % 5} miles. Then they slept." for n in range(60)]


@pytest.fixture
def config_file(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "corpus.txt").write_text("\n\n".join(TEXTS))
    values = {
        "data": {"source": str(tmp_path / "corpus.txt"), "max_length": 24, "validation_fraction": 0.2},
        "tokenizer": {"vocab_size": 340, "sentinels": 30},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    return path


def test_training_finds_what_was_prepared(
    config_file: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--config={config_file}", f"--workdir={tmp_path}/run", "--workers", "2"]
    assert prepare.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "Tokenized train" in shown and f"--inspect={tmp_path}/run/data/" in shown
    lines: list[str] = []
    config = resolve(json.loads(config_file.read_text()))
    corpus = open_corpus(config, tmp_path / "run", lines.append)
    assert len(lines) == 1 and "found" in lines[0] and corpus.digest in shown
    assert prepare.main(arguments) == 0 and "Corpus found" in capsys.readouterr().out


def test_inspect(config_file: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = tmp_path / "cache"
    assert prepare.main([f"--config={config_file}", f"--config.data.cache_dir={cache}", "--workers=1"]) == 0
    capsys.readouterr()
    (folder,) = cache.iterdir()
    assert prepare.main([f"--inspect={folder}"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "corpus.txt: 60 documents",
        "left out: none",
        "training    ",
        "held out    ",
        "unigram     perplexity",
        "trigram     perplexity",
        "reading     「a→b」",
        "「[MASK]→",
        "<extra_id_0>",
        "source_tokens: ",
        "causal_lm: ",
    ):
        assert words in shown, words
    assert "seq2seq: not with this corpus and tokenizer." in shown
    perplexity = {
        line.split()[0]: float(line.split()[2])
        for line in shown.splitlines()
        if line.startswith(("unigram", "trigram"))
    }
    assert 1 < perplexity["trigram"] < perplexity["unigram"] < 340
    assert (
        prepare.main(["--inspect", str(folder / "train"), f"--config={config_file}", "--config.data.max_length=16"])
        == 0
    )
    assert "examples of up to 16 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers=2"], "--config is missing"),
        (["--config={config}"], "--workdir is missing: the corpus is written to its data/"),
        (["--config={config}", "--workdir={tmp}", "--workers=0"], "--workers=0 is not a number of processes"),
        (["--config={config}", "--workdir={tmp}", "--workers"], "--workers needs a value"),
        (["--config={config}", "--workdir={tmp}", "--worker=2"], "--worker is not a flag"),
        (["--config={config}", "--workdir={tmp}", "--workers=2", "--runner=DirectRunner"], "Remove one of them"),
        (["--config={config}", "--workdir={tmp}", "--runner_options=--x"], "--runner_options requires --runner"),
        (["--inspect={tmp}/nothing"], "nothing"),
        (["--inspect={tmp}"], "is a folder without a tokenizer"),
        (["--config={config}", "--workdir={tmp}", "--config.clean.redact_pii=mail"], "clean.redact_pii names 'mail'"),
        (["--config={config}", "--workdir={tmp}", "--config.data.source={tmp}/x.txt"], "does not exist"),
    ],
)
def test_errors(
    arguments: list[str],
    message: str,
    config_file: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert prepare.main([text.format(config=config_file, tmp=tmp_path) for text in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--config", "--workers", "--inspect", "--workdir"))
    assert prepare.main(["--help_config"]) == 0 and "data.mixture" in capsys.readouterr().out


def test_a_signal_stops_it_and_the_same_command_resumes(config_file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """SIGTERM while the tokenizer is trained, which takes seconds here because of an added wait."""
    code = (
        "import sys, time; from lm_research import prepare; from lm_research.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer as Tokenizer\n"
        "real = Tokenizer.train\n"
        f"Tokenizer.train = lambda *a: (open({str(tmp_path / 'there')!r}, 'w'), time.sleep(30), real(*a))[-1]\n"
        "sys.exit(prepare.main(sys.argv[1:]))"
    )
    arguments = [f"--config={config_file}", f"--workdir={tmp_path}/run", "--workers=1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    limit = time.monotonic() + 60
    while not (tmp_path / "there").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    shown, _ = process.communicate(timeout=30)
    assert process.returncode == 75 and "run the same command again to continue" in shown
    folder = corpus_folder(resolve(json.loads(config_file.read_text())), tmp_path / "run")
    assert not folder.exists() and list(folder.parent.rglob("*.npz"))
    assert prepare.main(arguments) == 0 and folder.is_dir()


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_corpus_is_rebuilt(
    config_file: pathlib.Path, tmp_path: pathlib.Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--config={config_file}", f"--workdir={tmp_path}/run", "--workers", "1"]
    assert prepare.main(arguments) == 0
    digest = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("digest"))
    (tokens,) = (tmp_path / "run/data").glob("*/train/tokens.bin")
    data = tokens.read_bytes()
    tokens.write_bytes(bytes([data[0] ^ 1]) + data[1:]) if damage == "flipped" else tokens.unlink()
    assert prepare.main(arguments) == 0
    shown = capsys.readouterr().out
    folder = tokens.parents[1]
    assert f"It was moved to {folder}.damaged; the corpus is built again." in shown and digest in shown
    assert tokens.read_bytes() == data and folder.with_name(f"{folder.name}.damaged").is_dir()
