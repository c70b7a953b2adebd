"""Text embeddings: the pooled final states of a text's tokens, and similarities of embeddings.

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
from lm_research.models.text_embedding import SIMILARITIES, Dense, EmbeddingConfig
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
    """Embed texts as float32 [len(texts), D]; see LanguageModel.embed.

    Args:
      lm: a LanguageModel.
      run: (inputs, pooling, normalize, skipped) -> vectors [B, D], as `program` compiles it.
      texts: texts, or the token ids of each, which are used unchanged.
      pooling: name of the pooling, which replaces that of the directory and its layers after the pooling; or None.
      normalize: scale vectors to length 1; None uses the directory's setting.
      batch_size: texts per forward pass.
      prompt_name: name of a prompt in the directory, or None for its default.
      prompt: the prompt itself, or None to use `prompt_name`.

    Raises:
      UserError: there is no tokenizer, ids are outside the vocabulary, or the pooling or the prompt does not exist.
    """
    settings = lm.embedding or EmbeddingConfig()
    if pooling is not None:  # "first" is an older name of "cls"
        pooling = "cls" if pooling == "first" else pooling
        settings = dataclasses.replace(settings, pooling=pooling, further=(), dense=(), truncate_dim=0)
    settings.check()
    _check_width(settings, lm.definition.arch)
    prefix, width = resolve_prompt(settings, texts, prompt_name, prompt), _width(settings, lm.definition.arch)
    if prefix and are_texts(texts):
        texts = [prefix + text for text in texts]
    max_length = settings.max_length or (lm.tokenizer and lm.tokenizer.max_length) or 0
    framed = lm.embedding is not None

    def read(batch: Any) -> Any:
        return read_texts(lm.tokenizer, lm.definition.arch, batch, max_length, framed)

    skipped = prompt_tokens(lm.tokenizer, read, prefix) if prefix and not settings.include_prompt else 0
    normalize_pooled = (settings.normalize if normalize is None else normalize) and not settings.dense
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # similar lengths in a batch need the least padding
    rows: dict[int, np.ndarray] = {}
    for start in range(0, len(texts), batch_size):
        chosen = order[start : start + batch_size]
        # A power of two of rows, so that few shapes are compiled; zip drops the results of the repeated rows.
        padded = chosen + chosen[-1:] * (min(batch_size, next_power_of_two(len(chosen))) - len(chosen))
        pooled = run(read([texts[i] for i in padded]), settings.pooling, normalize_pooled, np.int32(skipped))
        rows |= dict(zip(chosen, np.asarray(_postprocess(pooled, settings, normalize)), strict=False))
    return np.stack([rows[i] for i in range(len(texts))]) if texts else np.zeros((0, width), np.float32)


def resolve_prompt(settings: EmbeddingConfig, texts: Sequence[Any], prompt_name: str | None, prompt: str | None) -> str:
    """Return the prompt to put before texts; "" for token ids. Raises a UserError if there is no prompt of that name."""
    if len(texts) and not isinstance(texts[0], str):
        if prompt_name is not None or prompt is not None:
            raise UserError("Token ids are used unchanged: a prompt can precede texts only. Put its ids before theirs.")
        return ""
    return settings.prompt(prompt_name) if prompt is None else prompt


def prompt_tokens(tokenizer: Tokenizer, read: Callable[[list[str]], Mapping[str, np.ndarray]], prompt: str) -> int:
    """Count the tokens of a prompt at the beginning of a row, special tokens before it included."""
    row = read([prompt])
    ids = row["input_ids"][0][row["attention_mask"][0] > 0]
    return len(ids) - int(ids[-1] in tokenizer.special_ids)


def _check_width(settings: EmbeddingConfig, arch: Any) -> None:
    """Raise a UserError if the first layer after the pooling does not take vectors of the model's width."""
    width = (arch.encoder or arch).output_width * len(settings.poolings)
    if settings.dense and len(settings.dense[0].kernel) != width:
        raise UserError(
            f"The layer after the pooling takes {len(settings.dense[0].kernel)} numbers, but vectors have {width}: modules.json and the model "
            "do not belong together. Give a pooling to get the vectors before that layer."
        )


def _width(settings: EmbeddingConfig, arch: Any) -> int:
    pooled = (arch.encoder or arch).output_width * len(settings.poolings)
    width = settings.dense[-1].kernel.shape[1] if settings.dense else pooled
    return min(width, settings.truncate_dim or width)


def _postprocess(x_BD: jax.Array, settings: EmbeddingConfig, normalize: bool | None) -> jax.Array:
    """Apply the dense layers and the truncation after the pooling; with `normalize`, truncated vectors are scaled again."""
    for layer in settings.dense:
        x_BD = _dense(jnp.asarray(x_BD), layer)
    if settings.dense and (settings.normalize if normalize is None else normalize):
        x_BD = forward.l2_normalize(x_BD)
    if settings.truncate_dim:
        x_BD = x_BD[:, : settings.truncate_dim]
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
    """Compute the similarity of each vector of a with each of b, float32 [N, M], by a measure in SIMILARITIES.

    Distances are negated, so that larger is always more similar. Raises a UserError for an unknown measure.
    """
    a_ND, b_MD = (np.atleast_2d(np.asarray(x, np.float32)) for x in (a_ND, b_MD))
    if kind in ("cosine", "dot"):
        return (_length_1(a_ND) @ _length_1(b_MD).T) if kind == "cosine" else a_ND @ b_MD.T
    return np.array([similarity_pairwise(a_D, b_MD, kind) for a_D in a_ND], np.float32).reshape(len(a_ND), len(b_MD))


def similarity_pairwise(a: np.ndarray, b: np.ndarray, kind: str) -> np.ndarray:
    """Compute the similarity of corresponding vectors [..., D] of a and b, [...]."""
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
    """Compile (params, inputs, pooling, normalize, skipped) -> vectors [B, D]; the first `skipped` tokens are not pooled."""

    def run(
        params: Params, inputs: Mapping[str, jax.Array], pooling: str, normalize: bool, skipped: jax.Array
    ) -> jax.Array:
        x_BLD = forward.final_states(definition.bind(params), inputs)
        x_BD = forward.pool(x_BLD, inputs["attention_mask"], pooling, skipped)
        return forward.l2_normalize(x_BD) if normalize else x_BD

    return jax.jit(run, static_argnums=(2, 3))
