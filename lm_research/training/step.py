"""The training step and the evaluation step, as pure functions under jax.jit.

`jax.jit` over arrays with NamedShardings replaces pjit: the same program runs on one device or a pod.

Legend: A accumulation steps, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from lm_research.config import Config
from lm_research.models.definition import ModelDefinition
from lm_research.models.transformer import quantize_products
from lm_research.objectives.base import Batch, Objective, Sums, Trainable
from lm_research.parallel.rules import RULES, batch_parts, replicated, resolve_rules
from lm_research.training.param_groups import ALL_TRAINABLE, ParamGroups, make_groups
from lm_research.training.schedules import Schedule
from lm_research.training.state import State, optimizer_from_dict, optimizer_to_dict
from lm_research.training.table_copies import copy_tables, place_copies, sum_copies

Result = tuple[jax.Array, Sums, dict[str, jax.Array], Any]


def loss_and_gradient(
    objective: Objective,
    definition: ModelDefinition,
    params: Any,
    batch: Batch,
    key: jax.Array,
    groups: ParamGroups = ALL_TRAINABLE,
    total_over: Callable[[Any], Any] = lambda parts: parts,
    rules: Mapping[str, Any] = RULES,
    quantization: str = "none",
) -> Result:
    """Compute loss, sums of metrics, totals and gradient of a batch.

    The totals of the whole batch are computed before any forward pass, and each micro-batch divides its sums by them. So
    the gradient is that of the whole batch's mean over its target tokens, however they are distributed over micro-batches.

    Args:
      objective: what the model learns.
      definition: the model.
      params: its parameters.
      batch: [A, B, ...].
      key: for dropout.
      groups: the trainable parameters, to which the gradient is restricted.
      total_over: sums a value over the devices that have a part of the batch each.
      rules: sharding rules of the parameters.
      quantization: type of the products of blocks (`train.quantization`).
    """
    totals = total_over(objective.normalizers(batch))
    axes, dtype = groups.trainable(definition.axes) if batch_parts() > 1 else None, definition.arch.compute_dtype
    trainable = copy_tables(groups.trainable(params), axes, dtype)

    def micro_loss(trainable: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        model = quantize_products(definition.bind(groups.combine(params, trainable, key)), quantization)
        sums = objective.metric_sums(model, batch, key)
        return objective.loss(sums, totals), sums

    gradient_of = jax.value_and_grad(micro_loss, has_aux=True)
    micro_batches = batch["tokens_BL"].shape[0]
    if micro_batches == 1:
        (loss, sums), gradient = gradient_of(trainable, jax.tree.map(lambda x: x[0], batch), key)
        loss, sums, gradient = total_over((loss, sums, sum_copies(gradient, axes, rules, dtype)))
        return loss, sums, totals, gradient

    def body(carry: Any, micro: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        (loss, sums), gradient = gradient_of(trainable, *micro)
        loss, sums, gradient = jax.tree.map(jnp.add, carry, (loss, sums, gradient))
        return (loss, sums, place_copies(gradient, axes)), None

    first = jax.tree.map(lambda x: x[0], batch)
    (loss, sums), gradient = jax.eval_shape(gradient_of, trainable, first, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (loss, sums, gradient))
    (loss, sums, gradient), _ = jax.lax.scan(body, zeros, (batch, jax.random.split(key, micro_batches)))
    loss, sums, gradient = total_over((loss, sums, sum_copies(gradient, axes, rules, dtype)))
    return loss, sums, totals, gradient


def loss_and_gradient_per_device(
    objective: Objective,
    definition: ModelDefinition,
    params: Any,
    batch: Batch,
    key: jax.Array,
    groups: ParamGroups = ALL_TRAINABLE,
    quantization: str = "none",
) -> Result:
    """Compute `loss_and_gradient` by a program per device (`jax.shard_map`, in the style of jax.pmap).

    Each device has the parameters and its rows, and results are summed over devices explicitly. The result equals `loss_and_gradient` up
    to rounding.
    """

    def on_device(params: Any, batch: Batch, key: jax.Array) -> Result:
        return loss_and_gradient(
            objective,
            definition,
            params,
            batch,
            key,
            groups,
            lambda x: jax.lax.psum(x, RULES["batch"]),
            quantization=quantization,
        )

    everywhere = PartitionSpec()
    rows = PartitionSpec(None, RULES["batch"])
    return jax.shard_map(on_device, in_specs=(everywhere, rows, everywhere), out_specs=everywhere, check_vma=False)(
        params, batch, key
    )


def make_train_step(
    objective: Objective,
    definition: ModelDefinition,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    config: Config,
) -> Callable[[State, Batch], State]:
    """Make the function (state, batch) -> state that a run repeats; it is not jitted yet.

    With a budget of time the function has a third argument, which is passed to `schedule`, as is `peak`, the learning rate that replaces the
    config's.

    The order is: gradient of the loss at the current parameters, its norm, the optimizer, the update scaled by the learning rate of this
    step's number, the average, the window of metrics, the step counter. If loss or gradient is not finite, the update is skipped: for this
    step only (train.on_nonfinite=skip), or from then on (stop).
    """
    groups = make_groups(config, definition.shapes, definition.layers_of)
    template = jax.eval_shape(optimizer.init, groups.trainable(definition.shapes))
    stop, decay = config.train.on_nonfinite == "stop", config.train.ema_decay
    options: dict[str, Any] = {"quantization": config.train.quantization}
    value_and_grad: Callable[..., Result] = loss_and_gradient_per_device
    if config.mesh.preset != "shard_map":
        value_and_grad, options["rules"] = loss_and_gradient, resolve_rules(config.mesh.rules)

    def train_step(state: State, batch: Batch, *position: jax.Array, peak: jax.Array | None = None) -> State:
        step, params = state["step"], state["params"]
        key = jax.random.fold_in(jax.random.key(state["seed"]), step)
        loss, sums, totals, gradient = value_and_grad(objective, definition, params, batch, key, groups, **options)
        gradient = groups.mask_gradient(gradient)
        grad_norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        running = state["halted"] < 0
        apply = finite & running if stop else finite

        direction, optimizer_state = optimizer.update(
            gradient, optimizer_from_dict(template, state["optimizer"]), groups.trainable(params)
        )
        new = {
            "params": groups.apply_updates(params, direction, schedule(step, *position, peak=peak)),
            "optimizer": optimizer_to_dict(optimizer_state),
        }
        if decay:
            new["ema"] = jax.tree.map(lambda e, p: decay * e + (1.0 - decay) * p, state["ema"], new["params"])
        new = jax.tree.map(lambda a, b: jnp.where(apply, a, b), new, {name: state[name] for name in new})

        counters = {"steps": 1.0, "skipped": 1.0 - finite, "grad_norm": grad_norm}
        if not stop:  # a skipped step only counts as skipped
            counters["grad_norm"] = jnp.where(finite, grad_norm, 0.0)
            sums = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), sums)
            totals = jax.tree.map(lambda x: jnp.where(finite, x, 0.0), totals)
        counted = counters | sums | {f"total_{name}": total for name, total in totals.items()}
        counted = {name: state["window"][name] + value for name, value in counted.items()}
        halted = jnp.where(running & ~finite, step, state["halted"]) if stop else state["halted"]
        return new | {
            "step": step + (running & (halted < 0)),
            "seed": state["seed"],
            "window": jax.tree.map(lambda a, b: jnp.where(halted < 0, a, b), counted, state["window"]),
            "halted": halted,
        }

    return train_step


def jit_train_step(
    train_step: Callable[[State, Batch], State], shardings: State, options: Mapping[str, str] | None = None
) -> jax.stages.Wrapped:
    """Jit the step, with the compiler's `options`, and with every buffer of the state donated, so that the update happens in place."""
    return jax.jit(train_step, donate_argnums=0, out_shardings=shardings, compiler_options=dict(options or {}))


def make_eval_step(
    trainable: Trainable[Any],
    definition: ModelDefinition,
    token_bytes_V: Any,
    mesh: Mesh,
    options: Mapping[str, str] | None = None,
) -> Callable[[Any, Batch], tuple[dict[str, jax.Array], dict[str, jax.Array]]]:
    """Make the jitted function (params, batch [B, ...]) -> sums and totals of one batch, without dropout, and outputs to keep.

    "total_bytes" counts the UTF-8 bytes of the predicted tokens, for bits per byte. `options` are the compiler's.
    """
    objective, token_bytes_V = trainable.objective, jnp.asarray(token_bytes_V, jnp.float32)

    def eval_step(params: Any, batch: Batch) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        totals = objective.normalizers(batch)
        if objective.token_loss_name:
            targets, weights = objective.targets(batch)
            totals["bytes"] = (weights * jnp.take(token_bytes_V, targets)).sum()
        model = definition.bind(params)
        sums = objective.metric_sums(model, batch, None)
        return sums | {f"total_{name}": total for name, total in totals.items()}, trainable.outputs(model, batch)

    return jax.jit(eval_step, out_shardings=replicated(mesh), compiler_options=dict(options or {}))
