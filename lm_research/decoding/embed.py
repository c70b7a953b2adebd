"""Embeddings of texts: the final states of their tokens, pooled; and how alike two embeddings are.

Legend: B batch, L length, D width, N, M texts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.common.rounding import next_power_of_two
from lm_research.decoding.generation_request import are_texts, read_texts
from lm_research.errors import UserError
from lm_research.models import forward
from lm_research.models.definition import ModelDefinition, Params
from lm_research.models.text_embedding import SIMILARITIES, Dense, Embedding
from lm_research.tokenizers.base import Tokenizer


def embed(
    lm: Any,
    run: Callable[..., jax.Array],
    texts: Sequence[str] | Sequence[Sequence[int]],
    pooling: str | None,
    normalize: bool | None,
    batch_size: int,
    prompt_name: str | None = None,
    prompt: str | None = None,
) -> np.ndarray:
    """Float32 [len(texts), D]; see LanguageModel.embed.

    Args:
      lm: a LanguageModel.
      run: (rows, pooling, normalize, skipped) -> vectors [B, D] of its, as `program` makes them.
      texts: or token ids of each, which are read as they are.

    Raises:
      UserError: no tokenizer, ids that are none of the model's, a pooling that is not supported, or a prompt that there is not.
    """
    said = lm.embedding or Embedding()
    if pooling is not None:  # "first" is what cls was called before
        pooling = "cls" if pooling == "first" else pooling
        said = dataclasses.replace(said, pooling=pooling, further=(), dense=(), truncate_dim=0)
    said.check()
    _check_width(said, lm.definition.arch)
    begins, width = resolve_prompt(said, texts, prompt_name, prompt), _width(said, lm.definition.arch)
    if begins and are_texts(texts):
        texts = [begins + text for text in texts]
    most, framed = said.max_length or (lm.tokenizer and lm.tokenizer.max_length) or 0, lm.embedding is not None

    def read(some: Any) -> Any:
        return read_texts(lm.tokenizer, lm.definition.arch, some, most, framed)

    skipped = prompt_tokens(lm.tokenizer, read, begins) if begins and not said.include_prompt else 0
    at_once = (said.normalize if normalize is None else normalize) and not said.dense
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # rows of similar length pad each other least
    rows: dict[int, np.ndarray] = {}
    for start in range(0, len(texts), batch_size):
        chosen = order[start : start + batch_size]
        # As many rows as twice, four times ... one, so that few shapes are compiled; what fills up is left out below.
        filled = chosen + chosen[-1:] * (min(batch_size, next_power_of_two(len(chosen))) - len(chosen))
        found = run(read([texts[i] for i in filled]), said.pooling, at_once, np.int32(skipped))
        rows |= dict(zip(chosen, np.asarray(_finished(found, said, normalize)), strict=False))
    return np.stack([rows[i] for i in range(len(texts))]) if texts else np.zeros((0, width), np.float32)


def resolve_prompt(said: Embedding, texts: Sequence[Any], prompt_name: str | None, prompt: str | None) -> str:
    """What is put before texts; token ids get nothing. Raises a UserError for a name that there is not."""
    if len(texts) and not isinstance(texts[0], str):
        if prompt_name is not None or prompt is not None:
            raise UserError(
                "Token ids are read as they are: a prompt goes before texts only. Put its ids before theirs."
            )
        return ""
    return said.prompt(prompt_name) if prompt is None else prompt


def prompt_tokens(tokenizer: Tokenizer, read: Callable[[list[str]], Mapping[str, np.ndarray]], prompt: str) -> int:
    """Tokens that a prompt has at the beginning of a row: its own and special ones before it."""
    row = read([prompt])
    ids = row["input_ids"][0][row["attention_mask"][0] > 0]
    return len(ids) - int(ids[-1] in tokenizer.special_ids)


def _check_width(said: Embedding, arch: Any) -> None:
    """Raises a UserError if the first layer behind the pooling is one for other vectors."""
    width = (arch.encoder or arch).hidden_size * len(said.poolings)
    if said.dense and len(said.dense[0].kernel) != width:
        raise UserError(
            f"The layer behind the pooling takes {len(said.dense[0].kernel)} numbers, but vectors have {width}: modules.json and the model do "
            "not belong together. Give a pooling to have the vectors before it."
        )


def _width(said: Embedding, arch: Any) -> int:
    width = said.dense[-1].kernel.shape[1] if said.dense else (arch.encoder or arch).hidden_size * len(said.poolings)
    return min(width, said.truncate_dim or width)


def _finished(x_BD: jax.Array, said: Embedding, normalize: bool | None) -> jax.Array:
    """Pooled vectors through what follows. With `normalize` those that are cut get length 1 once more."""
    for layer in said.dense:
        x_BD = _dense(jnp.asarray(x_BD), layer)
    if said.dense and (said.normalize if normalize is None else normalize):
        x_BD = forward.l2_normalize(x_BD)
    if said.truncate_dim:
        x_BD = x_BD[:, : said.truncate_dim]
        x_BD = forward.l2_normalize(x_BD) if normalize else x_BD
    return x_BD


def _dense(x_BD: jax.Array, layer: Dense) -> jax.Array:
    functions = {
        "Identity": lambda x: x,
        "Tanh": jnp.tanh,
        "ReLU": jax.nn.relu,
        "GELU": lambda x: jax.nn.gelu(x, approximate=False),
        "SiLU": jax.nn.silu,
        "Sigmoid": jax.nn.sigmoid,
    }
    product = functools.partial(jnp.matmul, precision="highest")
    y_BD = functions[layer.activation](product(x_BD, layer.kernel) + (0 if layer.bias is None else layer.bias))
    return y_BD if layer.residual is None else y_BD + product(x_BD, layer.residual)


def similarities(a_ND: np.ndarray, b_MD: np.ndarray, kind: str) -> np.ndarray:
    """How alike vectors are, each of a with each of b, float32 [N, M], of a kind of SIMILARITIES.

    Distances are negative, so that more is always closer. Raises a UserError for another kind.
    """
    a_ND, b_MD = (np.atleast_2d(np.asarray(x, np.float32)) for x in (a_ND, b_MD))
    if kind in ("cosine", "dot"):
        return (_length_1(a_ND) @ _length_1(b_MD).T) if kind == "cosine" else a_ND @ b_MD.T
    return np.array([similarity_pairwise(a_D, b_MD, kind) for a_D in a_ND], np.float32).reshape(len(a_ND), len(b_MD))


def similarity_pairwise(a: np.ndarray, b: np.ndarray, kind: str) -> np.ndarray:
    """The same of vectors [..., D] that stand at the same place, [...]."""
    if kind == "cosine":
        return (_length_1(a) * _length_1(b)).sum(-1)
    if kind == "dot":
        return (a * b).sum(-1)
    if kind == "euclidean":
        return -np.sqrt(np.square(a - b).sum(-1))
    if kind == "manhattan":
        return -np.abs(a - b).sum(-1)
    raise UserError(f"similarity is {kind!r}; it is one of {', '.join(SIMILARITIES)}.")


def _length_1(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.square(x).sum(-1, keepdims=True)).clip(1e-12)


def program(definition: ModelDefinition) -> Callable[..., jax.Array]:
    """(parameters, rows, pooling, normalize, skipped) -> vectors [B, D], jitted."""

    def run(
        params: Params, inputs: Mapping[str, jax.Array], pooling: str, normalize: bool, skipped: jax.Array
    ) -> jax.Array:
        x_BLD = forward.final_states(definition.bind(params), inputs)
        x_BD = forward.pool(x_BLD, inputs["attention_mask"], pooling, skipped)
        return forward.l2_normalize(x_BD) if normalize else x_BD

    return jax.jit(run, static_argnums=(2, 3))
