"""Texts of many requests in one batch of fixed shape: a request takes a row when it joins and frees it when it leaves.

Prompts are left-aligned in their rows. Positions after a row's length are overwritten before they are attended to, so
neither padding nor an earlier text of the row has any effect. Each row has its own length, so that rows join and leave
between steps, and one program generates the next token of all rows.

Legend: R rows, S slots, P slots of a prompt, M source tokens, E end tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_research.common.rounding import bucket_size, round_up
from lm_research.decoding import logits_processors, sampling
from lm_research.decoding.engine import Engine, causal_slots, encode_prompts, predict
from lm_research.decoding.logits_processors import History
from lm_research.decoding.prompts import Prompts, first_positions
from lm_research.errors import UserError
from lm_research.models import decode
from lm_research.models.decode import BoundModel, Cache
from lm_research.parallel.hardware import free_bytes
from lm_research.serving.memory import cache_bytes, score_bytes

MAX_TOP_LOGPROBS = 20  # alternatives to a token
MAX_BIASES = 300  # tokens of a row that may have a bias
_MIN_PROMPT = 16  # prompts are padded to this, or to the next bucket size

NEUTRAL = {  # sampling filters, with the values that have no effect; 0 of top_k is the whole vocabulary
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
}
_COMMON_FILTERS = ("top_k", "top_p")
PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """Static arguments of a step.

    Attributes:
      sample: whether some row samples.
      filters: sampling filters to apply: none, the common ones, or all.
      rules: whether some row has penalties, biases or a minimum length.
      logprobs: whether some row needs log-probabilities.
    """

    sample: bool = False
    filters: tuple[str, ...] = ()
    rules: bool = False
    logprobs: bool = False


def make_pool(bound: BoundModel, slots: int, prompts: Prompts[jax.Array]) -> Cache:
    """Return the cache of all rows."""
    return encode_prompts(bound, prompts, slots)[1]


def join(bound: BoundModel, slots: int, pool: Cache, prompt: Prompts[jax.Array], row: jax.Array) -> Cache:
    """Return the pool with the keys and values of the first prompt written to a row."""
    new, copies = encode_prompts(bound, prompt, slots)[1], len(prompt.start_B)
    axis = 1 if bound.blocks is None else 0

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:
        # In an unstacked cache, a row takes one row of the array per head.
        part = jax.lax.slice_in_dim(part, 0, part.shape[axis] // copies, axis=axis)
        return jax.lax.dynamic_update_slice_in_dim(whole, part, row * part.shape[axis], axis)

    layers = jax.tree.map(put, tuple(pool[:4]), tuple(new[:4]))
    mask = pool.memory_mask_BM
    if mask is not None and new.memory_mask_BM is not None:
        mask = jax.lax.dynamic_update_slice_in_dim(mask, new.memory_mask_BM[:1], row, 0)
    return pool._replace(**dict(zip(Cache._fields, layers, strict=False)), memory_mask_BM=mask)


def step(
    bound: BoundModel, plan: StepPlan, pool: Cache, tokens_RS: jax.Array, rows: Mapping[str, jax.Array], rules: Any
) -> tuple[Cache, dict[str, jax.Array]]:
    """Write the last token of each row to the pool, and return the pool and the next token of each row."""
    length_R, new_R = rows["length"], rows["length"] - rows["width"]
    start_R = jnp.zeros_like(length_R)
    last_R1 = jnp.take_along_axis(tokens_RS, length_R[:, None] - 1, axis=1)
    place = causal_slots(start_R, length_R - 1, 1, tokens_RS.shape[1])
    x_R1D, pool = decode.extend(bound, last_R1, pool, place)
    logits_RV = predict(bound, x_R1D)
    history = History(tokens_RS, start_R, length_R, new_R, rows.get("source"))
    rules, scores_RV = dict(rules), logits_RV
    if plan.rules:
        rules |= {name: rows[name][:, None] for name in PENALTIES}
        rules["min_new_tokens"] = {"count": rows["min_new_tokens"], "ends_E": rules["ends_E"]}
        row_R1 = jnp.arange(len(scores_RV))[:, None]
        scores_RV = scores_RV.at[row_R1, rows["bias_tokens"]].add(rows["bias"], mode="drop")
    if "forced_eos" in rules:
        rules["forced_eos"] = rules["forced_eos"] | {"at": rows["max_new_tokens"] - 1}
    scores_RV = logits_processors.apply(scores_RV, history, rules)
    token_R = sampling.best(scores_RV)
    if plan.sample:
        token_R = jnp.where(rows["temperature"] > 0, _sample(plan, scores_RV, rows, new_R), token_R)
    outputs = {"token": token_R}
    if plan.logprobs:
        log_probs_RV = jax.nn.log_softmax(logits_RV, axis=1)
        outputs["logprob"] = jnp.take_along_axis(log_probs_RV, token_R[:, None], axis=1)[:, 0]
        count = min(MAX_TOP_LOGPROBS, log_probs_RV.shape[1])
        outputs["best_logprobs"], outputs["best"] = jax.lax.top_k(log_probs_RV, count)
    return pool, outputs


def _sample(plan: StepPlan, scores_RV: jax.Array, rows: Mapping[str, jax.Array], new_R: jax.Array) -> jax.Array:
    """Sample a token for each row, with the same random keys as `generate`."""

    def key(seed: jax.Array, digest: jax.Array, number: jax.Array, new: jax.Array) -> jax.Array:
        row = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), digest), number)
        return jax.random.fold_in(row, new)

    keys_R = jax.vmap(key)(rows["seed"], rows["digest"], rows["number"], new_R)
    temperature_R = jnp.where(rows["temperature"] > 0, rows["temperature"], 1.0)
    scores_RV = scores_RV / temperature_R[:, None]
    for name in plan.filters:
        value_R = rows[name]
        apply_filter = jax.vmap(lambda scores, value, name=name: sampling.FILTERS[name](scores[None], value)[0])
        # Other rows' filters must not change a row without a filter, not even by rounding.
        scores_RV = jnp.where((value_R != NEUTRAL[name])[:, None], apply_filter(scores_RV, value_R), scores_RV)
    return jax.vmap(jax.random.categorical)(keys_R, scores_RV).astype(jnp.int32)


class Slots:
    """Rows of a batch. Settings are stored on the host, keys and values on the device.

    Attributes:
      count: R: the requested number, rounded up to a multiple of the devices that share the rows.
      length: S.
      max_source_length: M: maximum length of an encoder's text; 0 without an encoder.
      vocab_size: V.
      tokens_RS: prompts and generated tokens.
      rows: settings of each row by name.
    """

    def __init__(self, engine: Engine, count: int, length: int, rules: Mapping[str, Any]) -> None:
        """Allocate the rows; raise a UserError if they do not fit into memory.

        Args:
          engine: the model.
          count: requested number of rows.
          length: tokens of a row.
          rules: rules of all rows, from generation_settings.make_rules, and `ends_E`, the end tokens.
        """
        arch, count = engine.definition.arch, round_up(count, engine.rows_multiple)
        self.engine, self.count, self.length, self.rules, self.vocab_size = (
            engine,
            count,
            length,
            rules,
            arch.vocab_size,
        )
        self.max_source_length = 0
        if arch.encoder is not None:
            learned = arch.encoder.positions == "learned"
            self.max_source_length = min(length, arch.encoder.max_length) if learned else length
        self._check_memory()
        self.tokens_RS = np.zeros((count, length), np.int32)
        self.rows: dict[str, np.ndarray] = {
            name: np.ones(count, np.int32) for name in ("length", "width", "max_new_tokens", "min_new_tokens", "top_k")
        }
        self.rows |= {name: np.zeros(count, np.uint32) for name in ("seed", "digest", "number")}
        self.rows |= {name: np.zeros(count, np.float32) for name in (*NEUTRAL, *PENALTIES, "temperature")} | self.rows
        self.rows["bias_tokens"] = np.full((count, MAX_BIASES), self.vocab_size, np.int32)  # V is not a token
        self.rows["bias"] = np.zeros((count, MAX_BIASES), np.float32)
        if self.max_source_length:
            self.rows["source"] = np.full((count, self.max_source_length), logits_processors.NO_TOKEN, np.int32)
        self.needs_logprobs_R = np.zeros(count, bool)
        self.free(range(count))
        empty = self._prompts([[0]] * count, [[0]] * count if self.max_source_length else None, 1)
        self.pool = engine.program(make_pool, length)(empty)

    def _check_memory(self) -> None:
        """Raise a UserError if the rows do not fit into the free memory."""
        arch, devices = self.engine.definition.arch, 1 if self.engine.mesh is None else self.engine.mesh.size
        cache = (
            cache_bytes(arch, self.count, self.length, self.max_source_length)
            + self.count * (self.length + 2 * MAX_BIASES) * 4
        )
        # Each token of the longest prompt attends to each slot of its row; an encoder first runs on all rows.
        scores = score_bytes(arch, self.length, self.length)
        if self.max_source_length:
            scores += self.count * score_bytes(arch.encoder, self.max_source_length, self.max_source_length)
        needed, free = (cache + scores) / devices, free_bytes()
        if needed > free:
            raise UserError(
                f"--slots={self.count} --length={self.length}: the texts need up to {needed / 2**30:,.1f} GiB on each device "
                f"({cache / devices / 2**30:,.1f} for keys and values, the rest to read the longest prompt), but only "
                f"{free / 2**30:,.1f} GiB are free. Lower --slots or --length."
            )

    def _prompts(self, tokens: list[list[int]], sources: list[list[int]] | None, width: int) -> Prompts[np.ndarray]:
        """Return left-aligned prompts."""
        tokens_BP, source_BM, mask_BM = np.zeros((len(tokens), width), np.int32), None, None
        for row, ids in zip(tokens_BP, tokens, strict=True):
            row[: len(ids)] = ids
        if sources is not None:
            source_BM = np.zeros((len(tokens), self.max_source_length), np.int32)
            mask_BM = np.zeros_like(source_BM)
            for row, mask, ids in zip(source_BM, mask_BM, sources, strict=True):
                row[: len(ids)], mask[: len(ids)] = ids, 1
        start_B = np.zeros(len(tokens), np.int32)
        first = first_positions(self.engine.definition.arch, start_B.tolist())
        first_B = None if first is None else np.array(first, np.int32)
        return Prompts(
            tokens_BP,
            start_B,
            np.zeros((len(tokens), 2), np.uint32),
            source_BM,
            mask_BM,
            np.ones(len(tokens), bool),
            first_B,
            np.array([len(ids) for ids in tokens], np.int32),
        )

    def join(
        self,
        row: int,
        tokens: list[int],
        source: list[int] | None,
        logprobs: bool,
        bias: Mapping[int, float] = {},
        **control: Any,
    ) -> None:
        """Put a prompt into a row.

        Args:
          row: the row.
          tokens: prompt of the decoder.
          source: input of the encoder, if any.
          logprobs: whether log-probabilities are needed.
          bias: values added to the logits of tokens.
          **control: settings of the row, by their names in `rows`.
        """
        width = min(bucket_size(len(tokens), _MIN_PROMPT), self.length)
        copies = self.engine.rows_multiple  # each device that shares the rows reads the prompt
        prompt = self._prompts([tokens] * copies, None if source is None else [source] * copies, width)
        self.pool = self.engine.program(join, self.length, donate=0)(self.pool, prompt, np.int32(row))
        self.tokens_RS[row] = 0
        self.tokens_RS[row, : len(tokens)] = tokens
        if source is not None:
            self.rows["source"][row] = logits_processors.NO_TOKEN
            self.rows["source"][row, : len(source)] = source
        for name, value in ({"length": len(tokens), "width": len(tokens)} | control).items():
            self.rows[name][row] = value
        for index, (token, value) in enumerate(bias.items()):
            self.rows["bias_tokens"][row, index], self.rows["bias"][row, index] = token, value
        self.needs_logprobs_R[row] = logprobs

    def free(self, rows: Any) -> None:
        """Free rows, whose tokens are ignored from now on."""
        neutral = NEUTRAL | PENALTIES | {"length": 1, "width": 1, "max_new_tokens": 1, "min_new_tokens": 0}
        neutral |= {"temperature": 0.0, "bias_tokens": self.vocab_size}
        for row in rows:
            for name, value in neutral.items():
                self.rows[name][row] = value
            self.needs_logprobs_R[row] = False

    def plan(self) -> StepPlan:
        """Return the cheapest step that supports the settings of all rows."""
        rows, samples_R = self.rows, self.rows["temperature"] > 0
        used = {name for name, value in NEUTRAL.items() if (samples_R & (rows[name] != np.float32(value))).any()}
        penalized = any((rows[name] != value).any() for name, value in PENALTIES.items())
        return StepPlan(
            sample=bool(samples_R.any()),
            filters=() if not used else _COMMON_FILTERS if used <= set(_COMMON_FILTERS) else tuple(NEUTRAL),
            rules=bool(penalized or rows["min_new_tokens"].any() or (rows["bias_tokens"] < self.vocab_size).any()),
            logprobs=bool(self.needs_logprobs_R.any()),
        )

    def step(self, active: list[int]) -> dict[str, np.ndarray]:
        """Generate a token in each row, append it in the active rows, and return the outputs of `step`."""
        program = self.engine.program(step, self.plan(), donate=0)
        self.pool, outputs = program(self.pool, self.tokens_RS, self.rows, self.rules)
        outputs = jax.device_get(outputs)
        for row in active:
            length = self.rows["length"][row]
            if length < self.length:
                self.tokens_RS[row, length] = outputs["token"][row]
                self.rows["length"][row] = length + 1
        return outputs
