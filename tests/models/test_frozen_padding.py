"""Architecture.frozen_padding, PyTorch's `padding_idx`: values against transformers are those of the golden *_question_losses."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from helpers import tiny
from lm_research.models.definition import define
from lm_research.models.families import FAMILIES, family_of
from lm_research.models.forward import forward
from lm_research.models.heads import HeadSpec
from lm_research.trees import flatten

PAD = 1
MASK = np.array([[1] * 9, [1] * 6 + [0] * 3, [0] * 4 + [1] * 5])
TOKENS = np.where(MASK, np.random.default_rng(0).integers(5, tiny.VOCAB, MASK.shape), PAD)
LABELS = np.where(MASK, TOKENS, -100)


def gradients(family: str, head: str, frozen: bool, inputs: dict[str, np.ndarray], **changes: Any) -> dict[str, Any]:
    """Gradients of the loss with dropout, in a model whose padding token is PAD."""
    arch = tiny.model(family, dropout_rate=0.1, attention_dropout_rate=0.1).arch
    changes |= dict(frozen_padding=frozen, pad_id=PAD)
    if arch.encoder is not None:
        changes["encoder"] = arch.encoder.replace(**changes)
    definition = define(arch.replace(**changes), HeadSpec(head))

    def loss(params: Any) -> jax.Array:
        return forward(definition.bind(params), head, inputs, key=jax.random.key(0))["loss"]

    return flatten(tiny.jit(jax.grad(loss))(tiny.random_params(definition)))


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("bert", "masked_lm"),
        pytest.param("bert", "token_classification", marks=pytest.mark.slow),
        pytest.param("gpt2", "causal_lm", marks=pytest.mark.slow),
        pytest.param("bart", "seq2seq_lm", marks=pytest.mark.slow),
    ],
)
def test_losses_of_real_positions_have_bit_equal_gradients_with_and_without_it(family: str, head: str) -> None:
    """Real positions read no padding, so that its row has no gradient from the input in either case."""
    inputs = {"input_ids": TOKENS, "attention_mask": MASK, "labels": LABELS}
    if head == "token_classification":
        inputs["labels"] = np.where(MASK, TOKENS % 2, -100)
    if head == "causal_lm":  # the first position after padding on the left is predicted from padding
        inputs["labels"] = np.where(np.pad(MASK, ((0, 0), (1, 0)))[:, :-1], LABELS, -100)
    if head == "seq2seq_lm":
        inputs |= {"decoder_input_ids": TOKENS[:2], "decoder_attention_mask": MASK[:2], "labels": LABELS[:2]}
        inputs |= {"input_ids": TOKENS[1:], "attention_mask": MASK[1:]}
    frozen, trained = (gradients(family, head, flag, inputs) for flag in (True, False))
    assert frozen.keys() == trained.keys()
    assert not [path for path, x in frozen.items() if np.asarray(x).tobytes() != np.asarray(trained[path]).tobytes()]
    table = next(x for path, x in frozen.items() if path.endswith("embeddings/tokens"))
    assert np.abs(table[TOKENS[0, 0]]).max() > 0


@pytest.mark.parametrize("frozen", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_padding_that_a_loss_reads_has_no_gradient_from_the_input(frozen: bool) -> None:
    """The rows of padding in both tables, where positions do not count it; other rows are trained."""
    ends = dict.fromkeys(("start_positions", "end_positions"), np.array([1, 2, 5]))
    inputs = {"input_ids": TOKENS, "attention_mask": MASK} | ends
    found = gradients("bert", "span", frozen, inputs, count_padding=False, position_offset=PAD + 1, max_length=14)
    for table in ("tokens", "positions"):
        row_norms = np.abs(found[f"encoder/embeddings/{table}"]).max(-1)
        assert (row_norms[PAD] == 0) == frozen and row_norms[PAD + 1 :].max() > 0, table


# Families whose token tables have no padding_idx in their reference.
TRAINED = "bloom falcon gpt2 gpt3 gpt_bert gpt_neo gpt_neox gptj longt5 mpt mt5 t5 umt5".split()


def test_families_without_a_padding_idx() -> None:
    """Read from the classes of transformers 5.24: no `padding_idx` in `nn.Embedding(config.vocab_size, ...)`."""
    assert sorted(name for name in FAMILIES if not family_of(name).frozen_padding) == TRAINED


def test_a_pad_token_id_of_null_freezes_no_row() -> None:
    """As in nn.Embedding(padding_idx=None); new models freeze none either."""
    family = family_of("bert")
    assert family.from_hf({}, set()).frozen_padding and not family.from_hf({"pad_token_id": None}, set()).frozen_padding
    assert not tiny.model("bert").arch.frozen_padding


def test_without_a_pad_token_id_the_default_of_the_family_decides() -> None:
    """LlamaConfig's is None, BertConfig's is 0 (transformers 5.24)."""
    assert not FAMILIES["llama"].from_hf({}, set()).frozen_padding
    assert FAMILIES["llama"].from_hf({"pad_token_id": 0}, set()).frozen_padding
