"""stories260K in llama2.c's format: logits beside an independent implementation, and the text it is known to write."""

from __future__ import annotations

import pathlib
import struct

import numpy as np

import lm_research
from experiments.results.row import Figure, Row, public

FILE = "weights/stories260K/stories260K.bin"


def numpy_logits(path: pathlib.Path, ids: list[int]) -> np.ndarray:
    """Compute logits [L, V] from the file alone, with its own table of rotary angles; layers are computed as llama2.c does."""
    raw = path.read_bytes()
    width, inner, layers, heads, kv_heads, vocab, length = struct.unpack("<7i", raw[:28])
    values, place, size = np.frombuffer(raw[28:], "<f4"), 0, width // heads

    def take(*shape: int) -> np.ndarray:
        nonlocal place
        place += int(np.prod(shape))
        return values[place - int(np.prod(shape)) : place].reshape(shape)

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * scale

    embeddings = take(vocab, width)
    attention_norm, query, key = take(layers, width), take(layers, width, width), take(layers, kv_heads * size, width)
    value, output = take(layers, kv_heads * size, width), take(layers, width, width)
    ffn_norm, gate = take(layers, width), take(layers, inner, width)
    down, up, last_norm = take(layers, width, inner), take(layers, inner, width), take(width)
    cosine, sine = (take(length, size // 2)[: len(ids), None] for _ in range(2))
    assert place == len(values)

    def rotate(x: np.ndarray) -> np.ndarray:
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1).reshape(x.shape)

    future = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    x = embeddings[ids]
    for layer in range(layers):
        h = norm(x, attention_norm[layer])
        q = rotate((h @ query[layer].T).reshape(len(ids), heads, size))
        k = rotate((h @ key[layer].T).reshape(len(ids), kv_heads, size)).repeat(heads // kv_heads, 1)
        v = (h @ value[layer].T).reshape(len(ids), kv_heads, size).repeat(heads // kv_heads, 1)
        scores = np.einsum("thk,shk->hts", q, k) / np.sqrt(size) + future
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        x = x + np.einsum("hts,shk->thk", probs, v).reshape(x.shape) @ output[layer].T
        h = norm(x, ffn_norm[layer])
        gated = h @ gate[layer].T
        x = x + (gated / (1 + np.exp(-gated)) * (h @ up[layer].T)) @ down[layer].T
    return norm(x, last_norm) @ embeddings.T


def measure(folder: pathlib.Path) -> list[Figure]:
    """Write 256 tokens greedily after the first one."""
    lm = lm_research.from_pretrained(public(FILE))
    ids = np.asarray(lm.generate(input_ids=[[1]], max_new_tokens=256, do_sample=False))[0].tolist()
    expected = numpy_logits(public(FILE), ids[:-1])
    ours = np.asarray(lm(input_ids=np.array([ids[:-1]]))["logits"])[0]
    repeated = sum(a == b for a, b in zip(ids[1:], ids[2:], strict=False))
    return [
        Figure("parameters", lm.num_params, 260_032, 0),
        Figure("largest difference of a logit from NumPy's", float(np.abs(ours - expected).max()), 0.0, 1e-3),
        Figure(
            "greedy tokens that are NumPy's most likely, %",
            100 * float((expected.argmax(-1) == ids[1:]).mean()),
            100.0,
            0.0,
        ),
        Figure("tokens equal to the one before, in the known story", repeated, 0, 0),
    ]


ROW = Row(
    title="stories260K: logits, and the story it is known to write",
    source="stories260K.md and stories260K.bin of plctlab/rvspoc-s2311-llama2 at 2fa3f65",
    why="""The logits equal those of an independent implementation in NumPy, but this copy of the weights does not write the known story
("Once upon a time, there was a little girl named Lily."): its greedy tokens repeat each other. The file's embeddings and attention have
the structure of a trained model; the singular values of its feed-forward matrices are those of the same numbers in random order, and
the other orders and transposes of matrices that were tried give no text either. The copy is probably damaged. Its tokenizer of 512 pieces
was not found.""",
    measure=measure,
)
