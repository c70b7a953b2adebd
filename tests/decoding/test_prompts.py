"""Batches of prompts: buckets, padding, and names for rows."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from lm_research.config import resolve
from lm_research.decoding.prompts import as_rows, make_prompts, row_digests, text_start
from lm_research.errors import UserError
from lm_research.tokenizers.loading import load_tokenizer
from lm_research.tokenizers.tokenizer_training import train_tokenizer
from tokenizers import Tokenizer, models, processors


def test_rows_are_aligned_on_the_right() -> None:
    prompts = make_prompts([[1, 2, 3], [4]], 9, min_length=4)
    assert prompts.tokens_BP.tolist() == [[9, 1, 2, 3], [9, 9, 9, 4]]
    assert prompts.start_B.tolist() == [1, 3] and prompts.real_B.sum() == 2
    sources = make_prompts([[5]] * 3, 9, [[1], [2, 3], [4, 5, 6, 7, 8]], multiple=4, min_length=2, max_length=5)
    assert sources.tokens_BP.tolist() == [[5], [5], [5], [9]]  # the fourth row is padding
    assert sources.source_BM.tolist() == [[1, 9, 9, 9, 9], [2, 3, 9, 9, 9], [4, 5, 6, 7, 8], [9] * 5]
    assert sources.source_mask_BM.sum(1).tolist() == [1, 2, 5, 1] and sources.real_B.sum() == 3
    assert sources.first_B is None
    assert make_prompts([[5]] * 3, 9, multiple=4, first=[2, 0, 1]).first_B.tolist() == [2, 0, 1, 0]


def test_names_depend_on_a_rows_content_and_occurrence() -> None:
    first = row_digests([[1, 2], [3], [1, 2], [1, 2]])
    assert first[:, 1].tolist() == [0, 0, 1, 2]
    assert first[0, 0] == first[2, 0] != first[1, 0]
    assert row_digests([[3], [1, 2]])[::-1].tolist() == first[:2].tolist()  # wherever they are


def test_masks_hide_tokens() -> None:
    ids = np.array([[0, 0, 5, 6], [7, 8, 0, 0]])
    assert as_rows("input_ids", ids, ids > 0) == [[5, 6], [7, 8]]
    assert as_rows("input_ids", [[1], [2, 3]]) == [[1], [2, 3]]
    assert as_rows("input_ids", [[1, 4], [2, 3, 5]], [[0, 1], [True, True, False]]) == [[4], [2, 3]]
    bad_ids = ([[1.5]], [["a"]], [[True]], [[2**70]], [[[1]]], [1], 5, "ab", [[1], None])
    bad_masks = ([[0]], [[1, 1]], [["a"]], [1], 1)
    for bad, mask in [*((ids, None) for ids in bad_ids), ([[1.5]], [[1]]), *(([[1]], mask) for mask in bad_masks)]:
        with pytest.raises(UserError):
            as_rows("input_ids", bad, mask)


def test_tokens_before_a_text(tmp_path: pathlib.Path) -> None:
    """Our own tokenizers separate documents by the separator; one with only bos (as Llama's) begins with that, GPT-2's with eos."""
    section = resolve({"tokenizer": {"type": "byte_bpe", "vocab_size": 270}}).tokenizer
    own = train_tokenizer(iter(["a river and a stone"] * 20), section)
    assert text_start(own) == own.roles["sep"] != own.roles["bos"]
    for bos in (True, False):
        backend = Tokenizer(models.WordLevel({"<s>" if bos else "b": 0, "</s>": 1, "a": 2, "?": 3}, "?"))
        if bos:
            backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 0)])
        folder = tmp_path / str(bos)
        folder.mkdir()
        backend.save(str(folder / "tokenizer.json"))
        names = {"eos_token": "</s>"} | ({"bos_token": "<s>"} if bos else {})
        (folder / "tokenizer_config.json").write_text(
            json.dumps(names | {"tokenizer_class": "PreTrainedTokenizerFast"})
        )
        assert text_start(load_tokenizer(folder)) == (0 if bos else 1)
