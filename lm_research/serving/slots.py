"""Texts of many requests in one batch of fixed shape: a row is filled when a request joins and free again when it leaves.

Prompts stand at the left of their row. What is behind a row's length is never seen before it is written again, so neither
padding nor an earlier text of the row changes anything. Each row has its own length, so rows join and leave between steps,
and one program says the next token of all of them.

Legend: R rows, S slots, P slots of a prompt, M places of the encoder, E best tokens, V vocabulary.
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

BEST = 20  # alternatives to a token that can be asked for
BIASES = 300  # tokens that a row may have a bias for
_SHORTEST = 16  # prompts are filled up to this, or to the next of bucket's sizes

NEUTRAL = {  # filters of sampling with the value that leaves a row alone; 0 of top_k is the whole vocabulary
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
}
_USUAL = ("top_k", "top_p")
PENALTIES = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


@dataclasses.dataclass(frozen=True)
class StepPlan:
    """What a step is compiled for.

    Attributes:
      sample, logprobs: whether some row draws, or wants log-probabilities.
      filters: those that some row may have: none, the usual ones, or all.
      rules: whether some row has penalties, biases or a least length.
    """

    sample: bool = False
    filters: tuple[str, ...] = ()
    rules: bool = False
    logprobs: bool = False


def make_pool(bound: BoundModel, slots: int, prompts: Prompts[jax.Array]) -> Cache:
    return encode_prompts(bound, prompts, slots)[1]


def join(bound: BoundModel, slots: int, pool: Cache, prompt: Prompts[jax.Array], row: jax.Array) -> Cache:
    """The pool with the keys and values of the first prompt in a row."""
    new, copies = encode_prompts(bound, prompt, slots)[1], len(prompt.start_B)
    axis = 1 if bound.blocks is None else 0

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:
        # Where layers are apart, a row is as many rows of the array as it has heads.
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
    """The pool with the last token of each row in it, and the next token of each row."""
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
        rules["min_new_tokens"] = {"count": rows["least"], "ends_E": rules["ends_E"]}
        one = jnp.arange(len(scores_RV))[:, None]
        scores_RV = scores_RV.at[one, rows["bias_tokens"]].add(rows["bias"], mode="drop")
    if "forced_eos" in rules:
        rules["forced_eos"] = rules["forced_eos"] | {"at": rows["most"] - 1}
    scores_RV = logits_processors.apply(scores_RV, history, rules)
    token_R = sampling.best(scores_RV)
    if plan.sample:
        token_R = jnp.where(rows["temperature"] > 0, _draw(plan, scores_RV, rows, new_R), token_R)
    found = {"token": token_R}
    if plan.logprobs:
        log_RV = jax.nn.log_softmax(logits_RV, axis=1)
        found["logprob"] = jnp.take_along_axis(log_RV, token_R[:, None], axis=1)[:, 0]
        found["best_logprobs"], found["best"] = jax.lax.top_k(log_RV, min(BEST, log_RV.shape[1]))
    return pool, found


def _draw(plan: StepPlan, scores_RV: jax.Array, rows: Mapping[str, jax.Array], new_R: jax.Array) -> jax.Array:
    """A draw for each row, as `generate` would draw it."""

    def key(seed: jax.Array, digest: jax.Array, number: jax.Array, new: jax.Array) -> jax.Array:
        row = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), digest), number)
        return jax.random.fold_in(row, new)

    keys_R = jax.vmap(key)(rows["seed"], rows["digest"], rows["number"], new_R)
    warm_R = jnp.where(rows["temperature"] > 0, rows["temperature"], 1.0)
    scores_RV = scores_RV / warm_R[:, None]
    for name in plan.filters:
        setting_R = rows[name]
        cut = jax.vmap(lambda scores, value, name=name: sampling.FILTERS[name](scores[None], value)[0])
        # Rows without a filter must not notice that others have it, not even by a rounding.
        scores_RV = jnp.where((setting_R != NEUTRAL[name])[:, None], cut(scores_RV, setting_R), scores_RV)
    return jax.vmap(jax.random.categorical)(keys_R, scores_RV).astype(jnp.int32)


class Slots:
    """Rows and what stands in them. Control lies on the host, keys and values on the device.

    Attributes:
      count, length: R, at least as many as were asked for and a multiple of the devices that share them, and S.
      places: M, how long an encoder's text may be; 0 without an encoder.
      vocab: V.
    """

    def __init__(self, engine: Engine, count: int, length: int, rules: Mapping[str, Any]) -> None:
        """`rules` are those of all rows, as of options.make_rules, and `ends_E`: the end tokens."""
        arch, count = engine.definition.arch, round_up(count, engine.rows_multiple)
        self.engine, self.count, self.length, self.rules, self.vocab = engine, count, length, rules, arch.vocab_size
        self.places = 0
        if arch.encoder is not None:
            learned = arch.encoder.positions == "learned"
            self.places = min(length, arch.encoder.max_length) if learned else length
        self._check_room()
        self.tokens_RS = np.zeros((count, length), np.int32)
        self.rows: dict[str, np.ndarray] = {
            name: np.ones(count, np.int32) for name in ("length", "width", "most", "least", "top_k")
        }
        self.rows |= {name: np.zeros(count, np.uint32) for name in ("seed", "digest", "number")}
        self.rows |= {name: np.zeros(count, np.float32) for name in (*NEUTRAL, *PENALTIES, "temperature")} | self.rows
        self.rows["bias_tokens"] = np.full((count, BIASES), self.vocab, np.int32)  # V is no token
        self.rows["bias"] = np.zeros((count, BIASES), np.float32)
        if self.places:
            self.rows["source"] = np.full((count, self.places), logits_processors.NO_TOKEN, np.int32)
        self.wants_logprobs_R = np.zeros(count, bool)
        self.free(range(count))
        empty = self._prompts([[0]] * count, [[0]] * count if self.places else None, 1)
        self.pool = engine.program(make_pool, length)(empty)

    def _check_room(self) -> None:
        """Raises a UserError, before anything is made, for slots that do not fit into the memory that is free."""
        arch, devices = self.engine.definition.arch, 1 if self.engine.mesh is None else self.engine.mesh.size
        cache = cache_bytes(arch, self.count, self.length, self.places) + self.count * (self.length + 2 * BIASES) * 4
        # Each token of the longest prompt looks at each slot of its row; encoders begin with all rows.
        looks = score_bytes(arch, self.length, self.length)
        if self.places:
            looks += self.count * score_bytes(arch.encoder, self.places, self.places)
        needed, free = (cache + looks) / devices, free_bytes()
        if needed > free:
            raise UserError(
                f"--slots={self.count} --length={self.length}: the texts under way take up to {needed / 2**30:,.1f} GiB on each device "
                f"({cache / devices / 2**30:,.1f} for keys and values, the rest to read the longest prompt), and "
                f"{free / 2**30:,.1f} GiB are free. Lower --slots or --length."
            )

    def _prompts(self, tokens: list[list[int]], sources: list[list[int]] | None, width: int) -> Prompts[np.ndarray]:
        """Prompts at the left of their rows."""
        tokens_BP, source_BM, mask_BM = np.zeros((len(tokens), width), np.int32), None, None
        for row, ids in zip(tokens_BP, tokens, strict=True):
            row[: len(ids)] = ids
        if sources is not None:
            source_BM = np.zeros((len(tokens), self.places), np.int32)
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
        """Puts a prompt into a row; `bias` is of tokens, `control` are values of self.rows."""
        width = min(bucket_size(len(tokens), _SHORTEST), self.length)
        copies = self.engine.rows_multiple  # of devices that share rows each reads it
        prompt = self._prompts([tokens] * copies, None if source is None else [source] * copies, width)
        self.pool = self.engine.program(join, self.length, donate=0)(self.pool, prompt, np.int32(row))
        self.tokens_RS[row] = 0
        self.tokens_RS[row, : len(tokens)] = tokens
        if source is not None:
            self.rows["source"][row] = logits_processors.NO_TOKEN
            self.rows["source"][row, : len(source)] = source
        for name, value in ({"length": len(tokens), "width": len(tokens)} | control).items():
            self.rows[name][row] = value
        for place, (token, value) in enumerate(bias.items()):
            self.rows["bias_tokens"][row, place], self.rows["bias"][row, place] = token, value
        self.wants_logprobs_R[row] = logprobs

    def free(self, rows: Any) -> None:
        """Gives rows back; what they say from now on is nobody's."""
        neutral = (
            NEUTRAL | PENALTIES | dict(length=1, width=1, most=1, least=0, temperature=0.0, bias_tokens=self.vocab)
        )
        for row in rows:
            for name, value in neutral.items():
                self.rows[name][row] = value
            self.wants_logprobs_R[row] = False

    def plan(self) -> StepPlan:
        """The cheapest step that does what the rows want."""
        rows, warm_R = self.rows, self.rows["temperature"] > 0
        used = {name for name, value in NEUTRAL.items() if (warm_R & (rows[name] != np.float32(value))).any()}
        changed = any((rows[name] != value).any() for name, value in PENALTIES.items())
        return StepPlan(
            sample=bool(warm_R.any()),
            filters=() if not used else _USUAL if used <= set(_USUAL) else tuple(NEUTRAL),
            rules=bool(changed or rows["least"].any() or (rows["bias_tokens"] < self.vocab).any()),
            logprobs=bool(self.wants_logprobs_R.any()),
        )

    def step(self, taken: list[int]) -> dict[str, np.ndarray]:
        """Says a token in each row; in those that are taken it is kept."""
        program = self.engine.program(step, self.plan(), donate=0)
        self.pool, found = program(self.pool, self.tokens_RS, self.rows, self.rules)
        found = jax.device_get(found)
        for row in taken:
            place = self.rows["length"][row]
            if place < self.length:
                self.tokens_RS[row, place] = found["token"][row]
                self.rows["length"][row] = place + 1
        return found
