"""Text without spaces, on its own and in a mixture of languages: through prepare and the train command."""

from __future__ import annotations

import pathlib
import random
import re

import numpy as np
import pytest

from helpers.train_helpers import Lab, summary
from lm_research import prepare
from lm_research.common.sentences import split_sentences
from lm_research.data.corpus import read_corpus

pytestmark = pytest.mark.slow

WHO = "老师 学生 医生 农民 将军 商人 皇帝 诗人 渔夫 姐妹".split()
WHERE = "山上 河边 城里 家中 船头 树下 桥东 南门".split()
WHAT = "读书 唱歌 休息 工作 打仗 喝茶 写字 做饭 看花 种田".split()
MARKS = "。！？"
FLAGS = (
    "--config.objective.sentence_pair=none",
    "--config.eval.num_samples=2",
    "--config.optimizer.learning_rate=5e-3",
)


def chinese(documents: int = 60) -> list[str]:
    """Documents of four sentences, not divided by spaces or lines."""
    draw = random.Random(0)

    def clause():
        return draw.choice(WHO) + "今天在" + draw.choice(WHERE) + draw.choice(WHAT)

    def sentence():
        return f"{clause()}，{clause()}{draw.choice(MARKS)}"

    return ["".join(sentence() for _ in range(4)) for _ in range(documents)]


def test_sentences_end_at_full_width_marks() -> None:
    for text in chinese():
        sentences = split_sentences(text)
        assert len(sentences) == 4 and "".join(sentences) == text
        assert all(sentence[-1] in MARKS and not set(sentence[:-1]) & set(MARKS) for sentence in sentences)


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_chinese_is_learned_and_shown(kind: str, lab: Lab, tmp_path: pathlib.Path) -> None:
    """Held-out loss below unigram entropy; gaps of two characters under sentencepiece; single characters under WordPiece."""
    (tmp_path / "zh.txt").write_text("\n\n".join(chinese()), encoding="utf-8")
    characters = set("".join(chinese()))
    size = 5 + len(characters) + {"unigram": 256 + 25, "wordpiece": 0}[kind]  # roles, characters, bytes, some words
    flags = [*FLAGS, f"--config.data.source={tmp_path}/zh.txt", f"--config.tokenizer.vocab_size={size}"]
    flags += [f"--config.tokenizer.type={kind}", "--config.objective.masking=whole_word", "--config.train.num_steps=50"]
    assert lab.train(tmp_path / "run", *flags, f"--config.data.cache_dir={tmp_path}") == 0
    found, log = summary(tmp_path / "run"), (tmp_path / "run" / "log.txt").read_text()
    assert found["eval"]["eval_mlm_loss_nats"] < found["unigram_loss_nats"]
    (folder,) = (path for path in tmp_path.iterdir() if (path / "train").is_dir() and path.name != "run")
    corpus = read_corpus(folder)
    assert corpus.train.num_sentences + corpus.validation.num_sentences == 4 * 60
    pieces = set(corpus.tokenizer.pieces(np.unique(corpus.train.tokens).tolist()))
    if kind == "wordpiece":  # Devlin et al.'s: each Chinese character is a word
        assert pieces == characters
    else:
        assert pieces & {*WHO, *WHERE, *WHAT} and re.search(r"\[[\u4e00-\u9fff]{2,}\]", log)


def test_a_mixture_of_languages(lab: Lab, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Temperature 0.3: fractions of tokens to that power (Conneau et al. 2019), and losses of each language."""
    (tmp_path / "zh.txt").write_text("\n\n".join(chinese(30)), encoding="utf-8")
    flags = [*FLAGS, f"--config.data.mixture=en={lab.folder}/corpus.txt,zh={tmp_path}/zh.txt"]
    flags += ["--config.data.mixture_alpha=0.3", "--config.tokenizer.vocab_size=400", "--config.data.source="]
    flags += [f"--config.data.cache_dir={tmp_path}/cache"]
    assert prepare.main([*lab.flags(), f"--workdir={tmp_path}/run", "--workers=1", *flags]) == 0
    (folder,) = (tmp_path / "cache").iterdir()
    capsys.readouterr()
    assert prepare.main([f"--inspect={folder}"]) == 0
    shown = capsys.readouterr().out
    assert "zh.txt: 30 documents" in shown, shown
    assert lab.train(tmp_path / "run", *flags) == 0
    found = summary(tmp_path / "run")["eval"]
    assert found["eval_en_loss_nats"] > 0 and found["eval_zh_loss_nats"] > 0
