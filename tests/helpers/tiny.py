"""The smallest configs, tokenizer of words and stores for tests of models, objectives and decoding."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from lm_research import config as config_lib
from lm_research.config import Config
from lm_research.data.store import TokenStore, write_store
from lm_research.models.definition import ModelDefinition
from lm_research.models.families import FAMILIES, define_model
from lm_research.objectives import build_objective
from lm_research.tokenizers.base import Tokenizer
from lm_research.training.optimizer import make_optimizer
from lm_research.training.schedules import make_schedule
from lm_research.training.state import init_state, window_means
from lm_research.training.step import make_train_step

VOCAB = 64
OBJECTIVE = {"bert": "masked_lm", "gpt2": "causal_lm"}


def _fast_compile() -> dict[str, Any]:
    """Compiler options with which tiny programs compile four times as fast (and large ones would run slower)."""
    options: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:  # later versions of XLA lack the second
        del options["xla_cpu_use_fusion_emitters"]
    return options


FAST_COMPILE = _fast_compile()


def config(family: str, **sections: Any) -> Config:
    """Two layers of width 16 on rows of 16 tokens, without dropout; sections change it as in `config.replace`."""
    model = dict(
        family=family,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_length=16,
        vocab_size=VOCAB,
        dropout_rate=0.0,
        attention_dropout_rate=0.0,
    )
    base = {
        "model": model,
        "objective": {"name": OBJECTIVE[family]} if family in OBJECTIVE else {},
        "data": {"max_length": 16},
        "tokenizer": {"vocab_size": VOCAB},
        "train": {"batch_size": 8},
    }
    for section, changes in sections.items():
        base[section] = {**base.get(section, {}), **changes} if isinstance(changes, dict) else changes
    return config_lib.resolve(base)


def model(family: str, **changes: Any) -> ModelDefinition:
    """The model of `config(family)` with some keys of its section changed."""
    section = config(family, model=changes).model
    return define_model(section, section.vocab_size)


def families(*fast: str) -> list[Any]:
    """Every family as a parameter of a test; all but the `fast` ones are slow."""
    import pytest

    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in sorted(FAMILIES)]


def jit(function: Callable) -> Callable:
    """`jax.jit` for tests of properties, in which nearly all time goes into compiling."""
    return jax.jit(function, compiler_options=FAST_COMPILE)


def random_params(definition: ModelDefinition, seed: int = 0, scale: float = 0.2) -> Any:
    """Parameters far from initial ones, where biases and norms matter and attention is not nearly uniform.

    From NumPy, because making them with jax.random would compile a program for each.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        center = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(center, scale, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, definition.shapes)


class WordTokenizer(Tokenizer):
    """A tokenizer whose words are w5, w6, ...: id n is "w" and n. Ids 0 to 4 are roles."""

    roles = dict(pad=0, unk=1, cls=2, sep=3, mask=4)
    adds_special_tokens = False

    def __init__(self, size: int = VOCAB) -> None:
        self.size = size
        self.token_bytes = np.array([0] * 5 + [len(f" w{token}") + 1 for token in range(5, size)], np.int32)
        self.starts_word = np.arange(size) >= 5

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[int(word[1:]) for word in text.split()] for text in texts]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        return " ".join(f"w{token}" for token in ids if 5 <= token < self.size)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        return [f"<{token}>" for token in ids]


def documents(seed: int, count: int, sentences: tuple[int, int] = (1, 6), words: tuple[int, int] = (1, 9)) -> list:
    """Random documents: numbers of sentences and of words in each are drawn from [low, high)."""
    rng = np.random.default_rng(seed)
    return [
        [rng.integers(5, VOCAB, rng.integers(*words)).tolist() for _ in range(rng.integers(*sentences))]
        for _ in range(count)
    ]


def store(folder: pathlib.Path, texts: list, vocab_size: int = VOCAB) -> TokenStore:
    """Documents as lists of sentences of ids, on disk."""
    return write_store(folder / "store", iter(texts), "none", vocab_size)


def load_golden(path: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """A file of models/goldens/make_goldens.py: its groups "weights", "inputs" and "outputs"."""
    groups: dict[str, dict[str, np.ndarray]] = {"weights": {}, "inputs": {}, "outputs": {}}
    with np.load(path) as file:
        for name in set(file) - {"origin"}:
            group, _, key = name.partition("/")
            groups[group][key] = file[name]
    return groups


def training_losses(config: Config, params: Any, batches: dict[str, np.ndarray]) -> list[float]:
    """Loss of each step of the real training step on batches [steps, B, ...], from given parameters."""
    definition = define_model(config.model, config.model.vocab_size)
    objective = build_objective(config, WordTokenizer(config.model.vocab_size), definition.arch)
    optimizer = make_optimizer(config.optimizer)
    step = jax.jit(make_train_step(objective, definition, optimizer, make_schedule(config), config))
    shapes = jax.eval_shape(lambda: init_state(definition, optimizer, config, objective))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state |= {"params": params, "halted": np.int32(-1)}
    losses = []
    for number in range(len(batches["tokens_BL"])):
        state = step(state, {name: value[number : number + 1] for name, value in batches.items()})
        losses.append(window_means(objective, state["window"])["loss_nats"])
        state["window"] = jax.tree.map(np.zeros_like, state["window"])
    return losses
