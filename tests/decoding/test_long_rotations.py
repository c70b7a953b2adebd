"""Generation across the length at which LongRoPE's frequencies change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers import tiny
from lm_research.errors import UserError
from lm_research.models.definition import define
from lm_research.models.families import FAMILIES
from lm_research.models.heads import HeadSpec
from lm_research.pretrained import LanguageModel

TRAINED = 10  # positions in training


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    rope = dict(rope_type="longrope", short_factor=[1.0, 1.2], long_factor=[3.0, 9.0])
    sizes = dict(vocab_size=29, hidden_size=12, num_attention_heads=3, num_hidden_layers=3, intermediate_size=20)
    hf: dict[str, Any] = dict(rope_scaling=rope, original_max_position_embeddings=TRAINED, sliding_window=6, **sizes)
    definition = define(FAMILIES["phi3"].from_hf(hf | {"pad_token_id": 0}, set()), HeadSpec("causal_lm"))
    return LanguageModel(definition, tiny.random_params(definition, scale=0.5), "phi3", {})


@pytest.mark.parametrize("length", [4, TRAINED])
def test_tokens_from_the_cache_are_those_of_whole_texts(length: int, lm: LanguageModel) -> None:
    """So `use_cache` changes none. The window's ring of keys would be too short to compute the whole cache again."""
    new, width = 9, TRAINED + 9
    rows = np.random.default_rng(0).integers(3, 29, (2, length))
    written = np.zeros((2, width), int)
    written[:, : length + new] = lm.generate(
        rows, max_new_tokens=new, eos_token_id=[], pad_token_id=0, use_cache=length == 4
    )
    for end in range(length, length + new):
        mask = np.broadcast_to(np.arange(width) < end, written.shape)
        logits = np.asarray(lm(input_ids=written * mask, attention_mask=mask.astype(int))["logits"])
        np.testing.assert_array_equal(written[:, end], logits[:, end - 1].argmax(-1), err_msg=str(end))


def test_searches_that_keep_the_cache_are_refused_there(lm: LanguageModel) -> None:
    prompts, longer = [[5, 6, 7]], [list(range(3, 3 + TRAINED + 1))]
    search: dict[str, Any] = dict(penalty_alpha=0.6, top_k=4)
    for option, options in (("penalty_alpha", search), ("assistant_model", {"assistant_model": lm})):
        with pytest.raises(UserError, match=f"{option} does not support.* more than {TRAINED} tokens"):
            lm.generate(prompts, max_new_tokens=TRAINED - 2, pad_token_id=0, **options)
    assert lm.generate(longer, max_new_tokens=2, pad_token_id=0, **search).shape[1] > TRAINED


def test_keys_whose_rotations_would_change_without_a_cache_are_refused_there() -> None:
    """With dynamic NTK scaling each length has frequencies of its own, with which transformers rotates all keys if it has no cache."""
    sizes = dict(vocab_size=29, hidden_size=12, num_attention_heads=3, num_hidden_layers=1, intermediate_size=20)
    rope = dict(rope_scaling=dict(rope_type="dynamic", factor=2.0), max_position_embeddings=TRAINED)
    definition = define(FAMILIES["llama"].from_hf(sizes | rope, set()), HeadSpec("causal_lm"))
    model = LanguageModel(definition, tiny.random_params(definition), "llama", {})
    with pytest.raises(UserError, match=f"use_cache=False does not support.* more than {TRAINED} tokens"):
        model.generate([[5, 6, 7]], max_new_tokens=TRAINED - 2, pad_token_id=0, use_cache=False)
