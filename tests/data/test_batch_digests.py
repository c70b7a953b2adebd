"""Batches of every objective are a function of (seed, step): equal for 1, 2 and 8 processes, threads, workers, restarts.

And equal to the digests in goldens/batch_digests.json, which Python 3.11 (NumPy 2.4.6) and Python 3.12 (NumPy 2.5.5) both gave. A
change that alters them alters the data of every run started before it: it must state this, and rewrite them on both with
`python tests/data/test_batch_digests.py > tests/data/goldens/batch_digests.json` from the root of the repository. Those with settings
were made on Python 3.11 only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from lm_research.config import Config, resolve
from lm_research.data.loader import load
from lm_research.data.mixture import mix
from lm_research.data.sampler import BatchBuilder, Examples
from lm_research.errors import UserError
from lm_research.objectives import OBJECTIVES

STEPS = [*range(51), 10**6]
SOME = [0, 1, 29, 30, 50, 51]  # places in STEPS
BATCH = 16
HERE = pathlib.Path(__file__).parent
# Objectives with settings that their defaults never reach; a few steps each.
SETTINGS = {
    "masked_lm, words": {"masking": "whole_word", "mask_rate": 0.3, "keep_rate": 0.25, "random_rate": 0.25},
    "masked_lm, spans": {"masking": "span", "mean_span_length": 2.5, "max_span_length": 6, "short_seq_prob": 0.5},
    "masked_lm, ngrams": {"masking": "ngram", "max_span_length": 3, "dupe_factor": 2, "sentence_pair": "none"},
    "masked_lm, order": {"sentence_pair": "sentence_order", "short_seq_prob": 1.0},
    "span_corruption, short": {"mask_rate": 0.4, "mean_span_length": 1.5},
    "denoising, all": {
        "text_infilling_prob": 0.4,
        "mean_span_length": 2.0,
        "permute_sentence_prob": 0.5,
        "token_deletion_prob": 0.2,
        "document_rotation_prob": 0.5,
    },
    "denoising, deleted": {
        "text_infilling_prob": 0.0,
        "permute_sentence_prob": 0.0,
        "token_deletion_prob": 0.5,
        "document_rotation_prob": 1.0,
    },
}
FEW = [0, 1, 2, 40, 10**6]
GOLDENS = HERE / "goldens" / "batch_digests.json"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two small sources and their stores."""
    return write_corpora(tmp_path_factory.mktemp("corpora"))


def write_corpora(folder: pathlib.Path) -> pathlib.Path:
    pairs = [f"the number {n} and {n % 7}\t{n % 7} then {n}" for n in range(90)]
    (folder / "pairs.tsv").write_text("\n".join(["source\ttarget", *pairs, ""]))
    for name, words in (
        ("en", "The cat number {0} ran home. Then it slept {1} hours."),
        ("de", "Die Katze {0} lief. Sie fand {1}."),
    ):
        (folder / f"{name}.txt").write_text(
            "\n\n".join(words.format(n, n % 7) + "\n" + words.format(n % 5, n) for n in range(70))
        )
    make_feed(folder, "causal_lm", "")
    return folder


def make_config(folder: pathlib.Path, objective: str) -> Config:
    data = {"mixture": f"en={folder}/en.txt:0.7,de={folder}/de.txt:0.3", "mixture_stages": "30: en=0.2 de=0.8"}
    if objective == "seq2seq":
        data = {"source": f"{folder}/pairs.tsv"}
    tokenizer = {"type": "byte_bpe", "vocab_size": 320, "sentinels": 20}
    return resolve(
        {
            "data": {**data, "max_length": 32, "cache_dir": str(folder)},
            "tokenizer": tokenizer,
            "objective": {"name": objective.split(",")[0], **SETTINGS.get(objective, {})},
        }
    )


@functools.cache
def make_examples(folder: pathlib.Path, objective: str) -> Examples:
    config = make_config(folder, objective)
    kind = OBJECTIVES[objective.split(",")[0]]
    corpus = kind.open_corpus(config, folder, lambda line: None)
    kind = kind(config, corpus.tokenizer)
    return mix(config.data, corpus.train, BATCH, lambda store: kind.examples(store, "train"))


def make_feed(folder: pathlib.Path, objective: str, rows: str) -> BatchBuilder:
    first, _, last = rows.partition("-")
    return BatchBuilder(make_examples(folder, objective), BATCH, 1, slice(int(first or 0), int(last or BATCH)), 0)


def digest(batches: list[dict[str, np.ndarray]]) -> str:
    """Join several processes' parts of one batch."""
    whole = hashlib.sha256()
    for name in sorted(batches[0]):
        array = np.concatenate([batch[name] for batch in batches], axis=1)
        whole.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return whole.hexdigest()


def digests(folder: pathlib.Path, objective: str, processes: int, steps: list[int]) -> list[str]:
    share = BATCH // processes
    feeds = [make_feed(folder, objective, f"{p * share}-{(p + 1) * share}") for p in range(processes)]
    return [digest([feed(step) for feed in feeds]) for step in steps]


def golden(folder: pathlib.Path, objective: str) -> str:
    """One digest for all of STEPS, or FEW of an objective with settings."""
    return hashlib.sha256(
        "".join(digests(folder, objective, 1, FEW if objective in SETTINGS else STEPS)).encode()
    ).hexdigest()


@pytest.mark.parametrize("objective", SETTINGS)
def test_settings(objective: str, corpora: pathlib.Path) -> None:
    assert golden(corpora, objective) == json.loads(GOLDENS.read_text())[objective]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_processes_threads_and_restarts_read_the_same(objective: str, corpora: pathlib.Path) -> None:
    try:
        alone = digests(corpora, objective, 1, STEPS)
    except UserError as error:
        pytest.fail(f"{objective} cannot use this corpus: {error}")
    assert len(set(alone)) == len(STEPS)
    assert golden(corpora, objective) == json.loads(GOLDENS.read_text())[objective]
    for processes in (2, 8):
        assert digests(corpora, objective, processes, [STEPS[i] for i in SOME]) == [alone[i] for i in SOME]
    feed = make_feed(corpora, objective, "")
    assert [digest([batch]) for batch in load(feed, 0, 51)] == alone[:-1]
    assert [digest([batch]) for batch in load(feed, 20, 51)] == alone[20:-1]
    assert [digest([batch]) for batch in load(feed, 10**6, 10**6 + 1)] == alone[-1:]


def test_worker_processes_and_other_interpreters_read_the_same(corpora: pathlib.Path) -> None:
    feed = make_feed(corpora, "masked_lm", "")
    expected = digests(corpora, "masked_lm", 1, STEPS)
    assert [digest([batch]) for batch in load(feed, 0, 51, num_workers=4)] == expected[:-1]
    code = "import sys, pathlib\nimport test_batch_digests as t\n"
    code += f"print(t.digests(pathlib.Path({str(corpora)!r}), 'masked_lm', 1, t.STEPS))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == str(expected)


def test_a_process_after_a_killed_one_continues_reading(corpora: pathlib.Path) -> None:
    """A kill -9 in the middle of reading ahead, then a fresh process from the step after the last one it gave."""
    expected = digests(corpora, "masked_lm", 1, STEPS[:51])
    code = "import sys, pathlib\nimport test_batch_digests as t\n"
    code += f"feed = t.make_feed(pathlib.Path({str(corpora)!r}), 'masked_lm', '')\n"
    code += "for batch in t.load(feed, int(sys.argv[1]), 51): print(t.digest([batch]), flush=True)"
    with subprocess.Popen([sys.executable, "-c", code, "0"], cwd=HERE, stdout=subprocess.PIPE, text=True) as killed:
        before = [killed.stdout.readline().strip() for _ in range(20)]
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL and before == expected[:20]
    after = subprocess.run(
        [sys.executable, "-c", code, "20"], cwd=HERE, capture_output=True, text=True, check=True, timeout=120
    )
    assert after.stdout.split() == expected[20:]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        texts = write_corpora(pathlib.Path(place))
        print(json.dumps({name: golden(texts, name) for name in [*OBJECTIVES, *SETTINGS]}, indent=1))
