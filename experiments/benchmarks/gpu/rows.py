"""The rows of the table of training steps on a GPU, the most important first, and batches for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lm_research.config import Config, loading, overlay, resolve

_NO_DROPOUT = {"model.dropout_rate": 0.0, "model.attention_dropout_rate": 0.0}
_LOOPED = {"model.scan_layers": True}
_T5_LARGE = {"model.num_layers": 24, "model.hidden_size": 1024, "model.num_heads": 16, "model.intermediate_size": 2816}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      name: of the model and its way.
      file: the config in configs/ whose training step is timed.
      batch: examples of a step.
      unit: what is counted, tokens (of sources and targets) or sequences.
      goal: the rate to reach on an H100 or H200, per second; 0 for none.
      changes: keys of the config that differ.
      documents: documents that are packed in a row.
    """

    name: str
    file: str
    batch: int
    unit: str = "tokens"
    goal: float = 0
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    documents: int = 1


ROWS = (
    Row("GPT-2 124M, 1,024, unrolled", "gpt2_small", 16, goal=530e3, changes=_NO_DROPOUT),
    Row("GPT-2 124M, 1,024, looped", "gpt2_small", 16, goal=0.95 * 530e3, changes=_NO_DROPOUT | _LOOPED),
    Row("BERT-base, 128", "bert_base", 256, "sequences", 6000, {"data.max_length": 128}),
    Row("BERT-base, 512", "bert_base", 64, "sequences", 1480),
    Row("ModernBERT-base, 1,024, packed", "modernbert_base", 32, goal=500e3, documents=4),
    Row("BERT-large, 128", "bert_large", 128, "sequences", 1850, {"data.max_length": 128}),
    Row("BERT-large, 512", "bert_large", 32, "sequences", 440),
    Row("GPT-2 124M, 1,024, unrolled, dropout 0.1", "gpt2_small", 16),
    Row("T5-base, 512 + 114", "t5_base", 48, changes=_NO_DROPOUT),
    Row("GPT-2 1.5B, 1,024, looped", "gpt2_xl", 8, goal=53e3, changes=_NO_DROPOUT | _LOOPED | {"model.remat": "names"}),
    Row("T5-large, 512 + 114, looped", "t5_base", 16, changes=_NO_DROPOUT | _LOOPED | _T5_LARGE),
)
_TINY = {
    "model.num_layers": 2,
    "model.hidden_size": 64,
    "model.num_heads": 2,
    "model.intermediate_size": 64,
    "model.vocab_size": 256,
    "model.max_length": 64,
    "tokenizer.vocab_size": 256,
    "data.max_length": 64,
    "train.batch_size": 2,
}


def make_config(row: Row, tiny: bool) -> Config:
    """The config of a row on one device, in one micro-batch; `tiny` shrinks it, to try a row on a CPU."""
    changes = {"mesh.preset": "dp", "train.accumulation_steps": 1, "train.batch_size": row.batch, **row.changes}
    if tiny:
        changes |= _TINY | ({"model.head_size": 32} if row.file.startswith("t5") else {})
    return resolve(overlay(loading.load(f"configs/{row.file}.py").to_dict(), changes))


def make_batch(shapes: Mapping[str, jax.ShapeDtypeStruct], vocab: int, documents: int) -> dict[str, np.ndarray]:
    """Random tokens in full rows of equally long documents: the arrays of a batch [1, B, ...] by their names."""
    rng, batch = np.random.default_rng(0), {}
    for name, like in shapes.items():
        shape, kind = like.shape, name.rsplit("_", 1)[0].removeprefix("source_")
        place = np.arange(shape[-1])
        document = place * documents // shape[-1]
        if kind in ("tokens", "targets"):
            values = rng.integers(10, vocab - 1, shape)
        elif kind == "segments":
            values = np.broadcast_to(1 + document, shape)
        elif kind == "positions":
            values = np.broadcast_to(place - np.searchsorted(document, document), shape)
        elif kind == "mask_positions":
            columns = shapes["tokens_BL"].shape[-1]
            values = np.broadcast_to(place * columns // shape[-1], shape)
        elif kind in ("weights", "row_weights"):
            values = np.ones(shape)
        else:
            values = np.zeros(shape)
        batch[name] = values.astype(like.dtype)
    return batch
