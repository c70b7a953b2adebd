"""Helpers for tests of several objectives: a run's config for a family and an objective, a tokenizer with every role."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from helpers import tiny
from lm_research.config import Config
from lm_research.data.sampler import Examples
from lm_research.data.store import TokenStore
from lm_research.objectives import OBJECTIVES, define
from lm_research.training.optimizer import make_optimizer
from lm_research.training.schedules import make_schedule
from lm_research.training.state import init_state, window_means
from lm_research.training.step import make_train_step

VOCAB = 64
PAD, UNK, BOS, EOS, MASK = range(5)
FAMILY = {  # one of each kind that an objective trains
    "masked_lm": "roberta",
    "replaced_token": "electra",
    "causal_lm": "gpt2",
    "prefix_lm": "gpt2",
    "span_corruption": "t5",
    "denoising": "bart",
    "seq2seq": "transformer",
}


def setting(name: str, family: str = "", /, **sections: Any) -> Config:
    """`tiny.config` of an objective and a family that it trains, with a position table of 64."""
    model = {"max_length": 64, **sections.pop("model", {})}
    objective = {"name": name, **sections.pop("objective", {})}
    return tiny.config(family or FAMILY[name], model=model, objective=objective, **sections)


class Words(tiny.WordTokenizer):
    """Ids 0 to 4 are padding, unknown, <s>, </s> and the mask; the highest are sentinels, <extra_id_0> the last.

    Args:
      starts_word: bool [size], which ids begin a word; all but the special ones if not given.
    """

    roles = {**tiny.WordTokenizer.roles, "bos": BOS, "eos": EOS}

    def __init__(self, size: int = VOCAB, sentinels: int = 0, starts_word: np.ndarray | None = None) -> None:
        super().__init__(size)
        self.sentinels = sentinels
        self.special_ids = np.concatenate([np.arange(5), np.arange(size - sentinels, size)])
        if starts_word is not None:
            self.starts_word = starts_word

    def token_id(self, token: str) -> int | None:
        number = int(token.removeprefix("<extra_id_").removesuffix(">")) if token.startswith("<extra_id_") else -1
        return self.size - 1 - number if 0 <= number < self.sentinels else None


def examples(config: Config, store: TokenStore, tokenizer: Words, purpose: str = "train") -> Examples:
    return OBJECTIVES[config.objective.name](config, tokenizer).examples(store, purpose)


def epoch(rows: Examples, number: int = 0) -> dict[str, np.ndarray]:
    """All rows of one epoch, in order."""
    return rows.batch(np.full(rows.num_examples, number), np.arange(rows.num_examples))


def losses(config: Config, rows: Examples, steps: int, jit: Callable = tiny.jit) -> list[dict[str, float]]:
    """Metrics of each of some steps of the real training step, each on the next rows of the store."""
    definition, tokenizer = define(config, VOCAB), Words(VOCAB, sentinels=8)
    objective, optimizer = OBJECTIVES[config.objective.name](config, tokenizer), make_optimizer(config.optimizer)
    step = jit(make_train_step(objective, definition, optimizer, make_schedule(config), config))
    state = jax.jit(lambda: init_state(definition, optimizer, config, objective), compiler_options=tiny.FAST_COMPILE)()
    seen, size, parts = [], config.train.batch_size, config.train.accumulation_steps
    for number in range(steps):
        index = np.arange(number * size, (number + 1) * size)
        batch = rows.batch(index // rows.num_examples, index % rows.num_examples)
        batch = {name: value.reshape(parts, -1, *value.shape[1:]) for name, value in batch.items()}
        state = step(state, batch)
        seen.append(window_means(objective, state["window"]))
        state["window"] = jax.tree.map(np.zeros_like, state["window"])
    return seen
