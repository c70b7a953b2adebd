"""The previews shown after an evaluation."""

from __future__ import annotations

import types
from typing import Any

import pytest

from helpers import tiny
from lm_research.decoding.preview import make_preview


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_previews_are_about_held_out_documents_and_the_same_each_time(family: str, tmp_path: Any) -> None:
    texts = tiny.documents(seed=4, count=9, sentences=(2, 4), words=(9, 12))
    corpus = types.SimpleNamespace(tokenizer=tiny.WordTokenizer(), validation=tiny.store(tmp_path, texts))
    config = tiny.config(family, eval=dict(num_samples=3))
    definition = tiny.model(family)
    params = tiny.random_params(definition)
    preview = make_preview(config, definition, corpus)
    lines = preview(params, 7)
    assert len(lines) == 3 and lines == preview(params, 7)
    if family == "bert":
        sentences = [" ".join(f"w{token}" for token in sentence) for text in texts for sentence in text]
        for line in lines:
            shown = line.split("\n")[0].replace("[", "").replace("]", "")
            assert any(sentence.startswith(shown) for sentence in sentences)
    else:
        # Documents 0, 3 and 6 of nine, each by its first four tokens.
        openings = [" ".join(f"w{token}" for token in texts[number][0][:4]) for number in (0, 3, 6)]
        assert all(line.startswith(opening) for line, opening in zip(lines, openings, strict=True))
        assert preview(params, 8) != lines  # another step draws again
    none = make_preview(tiny.config(family, eval=dict(num_samples=0)), definition, corpus)
    assert none(params, 1) == []
