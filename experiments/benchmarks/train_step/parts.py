"""The parts of our training step, each ready to run separately: profile.py times them.

Legend: B batch, L length, R rows (B * L, or predicted positions), D width, F feed-forward width, H heads, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.benchmarks.train_step import workload
from experiments.benchmarks.train_step.ours_side import OurSide, make_config
from experiments.benchmarks.train_step.workload import Row
from lm_research.models.activations import activation
from lm_research.models.attention.mask import attention_bias
from lm_research.models.attention.module import reference_attention
from lm_research.models.families import define_model
from lm_research.models.heads import Projection
from lm_research.models.layers import Dense, dropout, norm
from lm_research.objectives.cross_entropy import SLICE_ROWS, token_loss
from lm_research.training.optimizer import make_optimizer

HEAD = 64


@dataclasses.dataclass
class Part:
    """A piece of work, how often it occurs in a step, and the fastest time of a run so far."""

    name: str
    run: Callable[[], Any]
    count: int = 1
    flops: float = 0.0
    seconds: float = float("inf")

    def time(self) -> None:
        begin = time.perf_counter()
        self.run()
        self.seconds = min(self.seconds, time.perf_counter() - begin)

    @property
    def total(self) -> float:
        """Seconds of a step."""
        return self.count * self.seconds


@dataclasses.dataclass
class Group:
    """Similar parts of a step, and the matrix products inside them as separate parts: ours and PyTorch's."""

    name: str
    parts: list[Part]
    products: list[Part] = dataclasses.field(default_factory=list)
    torch: list[Part] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Product:
    """Matrix product a b, of which either may be transposed first; leading axes are batches."""

    name: str
    a: tuple[int, ...]
    b: tuple[int, ...]
    count: int
    transposed: tuple[bool, bool] = (False, False)

    def part(self, module: Any) -> Part:
        """Make the part for `jax` or `torch`, whichever module is given."""
        transpose_a, transpose_b = self.transposed

        def product(a: Any, b: Any) -> Any:
            return (a.mT if transpose_a else a) @ (b.mT if transpose_b else b)

        a, b = numbers(*self.a), numbers(*self.b)
        if module is jax:
            run = compiled(product, a, b)
        else:
            a, b = module.from_numpy(a), module.from_numpy(b)

            def run():
                return product(a, b)

        inner = self.a[-2] if transpose_a else self.a[-1]
        outer = self.a[-1] if transpose_a else self.a[-2]
        flops = 2.0 * np.prod(self.a[:-2]) * outer * inner * (self.b[-2] if transpose_b else self.b[-1])
        return Part(self.name, run, self.count, float(flops))


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def compiled(function: Callable, *inputs: Any) -> Callable[[], Any]:
    """Return a function that runs the compiled function on inputs already on the device, and waits."""
    inputs = jax.device_put(inputs)
    program = jax.jit(function).lower(*inputs).compile()
    return lambda: jax.block_until_ready(program(*inputs))


def updating(function: Callable, state: Any, *inputs: Any) -> Callable[[], Any]:
    """Return such a function for state -> state; the state is donated and passed on from run to run."""
    inputs, held = jax.device_put(inputs), [jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(state)]
    program = jax.jit(function, donate_argnums=0).lower(held[0], *inputs).compile()

    def run() -> None:
        held[0] = jax.block_until_ready(program(held[0], *inputs))

    return run


def both_ways(function: Callable, *inputs: Any) -> Callable[[], Any]:
    """Return a function that computes value and gradients with respect to all inputs, for a random gradient of the value."""

    def work(inputs: tuple, slope: jax.Array) -> tuple:
        value, pull = jax.vjp(function, *inputs)
        return value, pull(slope)

    return compiled(work, inputs, numbers(*jax.eval_shape(function, *inputs).shape))


def module_both_ways(module: nnx.Module, x: np.ndarray) -> Callable[[], Any]:
    graphdef, params = nnx.split(module)
    return both_ways(lambda params, x: nnx.merge(graphdef, params)(x), params, x)


def make_step(row: Row) -> Part:
    """Make the whole step, unrolled, as run.py times it; set the mesh on which the parts run."""
    side, stream = OurSide(row, {"scan_layers": False}), workload.batches(row)
    batch = side.prepare(next(stream))

    def run() -> None:
        side.step(batch)
        side.wait()

    return Part("step", run)


def make_groups(row: Row, torch: Any = None) -> list[Group]:
    """Make all parts of the row's step; with the module torch also its products."""
    config = make_config(row, {})
    definition = define_model(config.model, config.model.vocab_size)
    arch, rngs = definition.arch, nnx.Rngs(0)
    layers, width, inner, rows = row.layers, row.width, 4 * row.width, row.tokens
    x_BLD, x_BLF = numbers(row.batch, row.length, width), numbers(row.batch, row.length, inner)
    key = jax.random.key(0) if row.dropout else None

    dense = [(width, width, 4 * layers), (width, inner, layers), (inner, width, layers)]
    sources = {width: x_BLD, inner: x_BLF}
    groups = [
        Group(
            "dense layers",
            [
                Part(f"{i} to {o}", module_both_ways(Dense([(i, None)], [(o, None)], arch, rngs), sources[i]), count)
                for i, o, count in dense
            ],
        ),
        Group("attention", [_attention(row, arch.causal, key, layers)]),
        Group("vocabulary", [_vocabulary(row)]),
        Group("activation", [Part("", both_ways(lambda x: activation(arch.activation, x), x_BLF), layers)]),
        Group("norms", [Part("", module_both_ways(norm(arch), x_BLD), 2 * layers + 1)]),
        Group("embeddings", [_embeddings(row)]),
        Group("optimizer", [_optimizer(config, definition.init(0))]),
    ]
    if row.dropout:
        run = both_ways(lambda x: dropout(x, row.dropout, key), x_BLD)
        groups.append(Group("dropout outside attention", [Part("", run, 2 * layers + 1)]))
    for group in groups:
        group.products = [p.part(jax) for p in products(row, dense, rows).get(group.name, [])]
        group.torch = [p.part(torch) for p in products(row, dense, rows).get(group.name, [])] if torch else []
    return groups


def products(row: Row, dense: list[tuple[int, int, int]], rows: int) -> dict[str, list[Product]]:
    """Return group -> its products in a step, forward and backward."""
    left, right = (True, False), (False, True)
    found: dict[str, list[Product]] = {"dense layers": [], "attention": [], "vocabulary": []}
    for i, o, count in dense:
        found["dense layers"] += [
            Product(f"{i} to {o}", (rows, i), (i, o), count),
            Product("its input's gradient", (rows, o), (i, o), count, right),
            Product("its kernel's gradient", (rows, i), (rows, o), count, left),
        ]
    heads = (row.batch, row.width // HEAD)
    wide, narrow = (*heads, row.length, row.length), (*heads, row.length, HEAD)
    found["attention"] = [
        Product("q k^T", narrow, narrow, 2 * row.layers, right),
        Product("p v", wide, narrow, 2 * row.layers),
        Product("p^T g", wide, narrow, 2 * row.layers, left),
    ]
    size, count = _slices(row)
    vocab = workload.VOCAB_SIZE[row.family]
    found["vocabulary"] = [
        Product("logits", (size, row.width), (vocab, row.width), count, right),
        Product("states' gradient", (size, vocab), (vocab, row.width), count),
        Product("table's gradient", (row.width, size), (size, vocab), count),
    ]
    return found


def _slices(row: Row) -> tuple[int, int]:
    """Return the rows of logits made at a time, and how often."""
    rows = row.tokens if row.family == "gpt2" else row.batch * row.num_masked
    count = max(1, round(rows / SLICE_ROWS))
    return -(-rows // count), count


def _attention(row: Row, causal: bool, key: jax.Array | None, layers: int) -> Part:
    segments_BL = np.ones((row.batch, row.length), np.int32)
    bias = jax.jit(lambda segments: attention_bias(segments, segments, causal))(segments_BL)
    x_BLHK = numbers(row.batch, row.length, row.width // HEAD, HEAD)
    return Part(
        "",
        both_ways(lambda q, k, v: reference_attention(q, k, v, bias, row.dropout, key), x_BLHK, x_BLHK, x_BLHK),
        layers,
    )


def _vocabulary(row: Row) -> Part:
    size, count = _slices(row)
    vocab, rng = workload.VOCAB_SIZE[row.family], np.random.default_rng(0)
    bias = numbers(vocab) if row.family == "bert" else None
    targets, weights = rng.integers(0, vocab, (1, size * count), dtype=np.int32), np.ones((1, size * count), np.float32)

    def loss(hidden: jax.Array, table: jax.Array, bias: jax.Array | None) -> jax.Array:
        return token_loss(Projection(hidden, table, bias), targets, weights).loss / targets.size

    return Part("", both_ways(loss, numbers(1, size * count, row.width), numbers(vocab, row.width), bias))


def _embeddings(row: Row) -> Part:
    """Make the part that looks up rows of the token table and adds their gradient to the table's from the vocabulary."""
    vocab = workload.VOCAB_SIZE[row.family]
    tokens = np.random.default_rng(0).integers(0, vocab, (row.batch, row.length), dtype=np.int32)

    def work(state: tuple, table: jax.Array, slope: jax.Array) -> tuple:
        gradient, _ = state
        return gradient.at[tokens].add(slope), jnp.take(table, tokens, axis=0)

    x_BLD, table = numbers(*tokens.shape, row.width), numbers(vocab, row.width)
    return Part("", updating(work, (table, x_BLD), table, x_BLD))


def _optimizer(config: Any, params: Any) -> Part:
    """Make the part for the end of training/step.py: norm, clipping, AdamW, and the choice between the new state and the old."""
    optimizer = make_optimizer(config.optimizer)

    def work(state: tuple, gradient: Any) -> tuple:
        params, moments = state
        apply = jnp.isfinite(optax.tree.norm(gradient))
        direction, new = optimizer.update(gradient, moments, params)
        params = jax.tree.map(lambda p, d: jnp.where(apply, p - 1e-4 * d, p), params, direction)
        return params, jax.tree.map(lambda a, b: jnp.where(apply, a, b), new, moments)

    return Part("", updating(work, (params, optimizer.init(params)), params))
