"""The keys of how a model learns: objective, optimizer and schedule, as far as all of them have them; train, lora."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from lm_research.config.budget import budget
from lm_research.config.keys import Section, key
from lm_research.errors import ConfigError

if TYPE_CHECKING:
    from lm_research.config.run import Config


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Section):
    """Settings of an objective.

    Attributes:
      one_model: whether it trains one model alone, whose width model.mup_base_width can scale.
    """

    one_model: ClassVar[bool] = True

    name: str = key("masked_lm", "What the model is asked to predict.")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """Settings of an optimizer.

    Attributes:
      unit_updates: whether updates have a size of their own, whatever the gradient's, so that model.mup_base_width can scale rates.
    """

    unit_updates: ClassVar[bool] = False

    name: str = key("adamw", "Optimizer; each has its own scale of learning rates, and the defaults below are AdamW's.")
    learning_rate: float = key(1e-4, "Peak learning rate; muon: of hidden matrices (0.02 is usual).", low=0.0, high=1e6)
    weight_decay: float = key(0.01, "Decoupled weight decay; never on biases and norms.", low=0.0, high=1e6)
    clip_norm: float | None = key(
        1.0, "Global gradient norm above which the gradient is scaled down; none never clips.", low=0.0
    )
    layer_decay: float = key(
        1.0,
        "Factor on the learning rate from each layer to the one below it, and to the embeddings; 1 is one rate for all.",
        low=0.0,
        high=1.0,
    )


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Section):
    name: str = key("linear", "Shape of the learning rate after warm-up.")
    warmup_steps: int = key(0, "Steps of linear warm-up from 0.", low=0)
    warmup_ratio: float = key(0.0, "Warm-up as a share of num_steps; give this or warmup_steps.", low=0.0, high=1.0)

    def check(self, config: Config) -> None:
        train = config.train
        if self.warmup_steps and self.warmup_ratio:
            raise ConfigError(
                f"schedule.warmup_steps={self.warmup_steps} and schedule.warmup_ratio={self.warmup_ratio} are both set. Set one of them to 0."
            )
        if not train.num_epochs and not train.budget and self.warmup_steps > train.num_steps:
            raise ConfigError(
                f"schedule.warmup_steps={self.warmup_steps} is longer than train.num_steps={train.num_steps}: the "
                "peak learning rate would never be reached. Shorten the warm-up or train longer."
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    num_steps: int = key(1000, "Optimizer steps of the whole run.", low=1, high=2**31 - 2)
    stop_after: int | None = key(
        None,
        "Evaluate, save and end well after this step, before num_steps; the run goes on with a later one.",
        low=0,
    )
    num_epochs: float | None = key(None, "Passes over the training examples; it sets num_steps.", low=0.0, high=1e9)
    budget: str | None = key(
        None,
        "What the run may spend, instead of num_steps: time (90s, 30min, 2h), 1e18flops or 2e9tokens; none goes by num_steps.",
    )
    batch_size: int = key(32, "Global batch: examples per optimizer step over all devices.", low=1, high=2**24)
    per_device_batch_size: int | None = key(
        None,
        "Instead of batch_size: examples of a micro-batch on each device that has rows of its own (the mesh's data x fsdp). batch_size becomes "
        "that times those devices times accumulation_steps, and is kept with the run.",
        low=0,
        high=2**24,
    )
    accumulation_steps: int = key(1, "Micro-batches per optimizer step; must divide batch_size.", low=1, high=2**24)
    init_from: str | None = key(
        None,
        "Model directory (Hugging Face's format, native, or a run's) to start from. Its shape replaces the model "
        "section's, and its tokenizer is used; tokenizer.path may name one for a directory that has none.",
        path=True,
    )
    freeze: tuple[str, ...] = key(
        (),
        "Parameters that do not learn: regular expressions that are looked for in paths such as encoder/embeddings/tokens or "
        "encoder/layers/3/attention/query/kernel.",
    )
    ema_decay: float | None = key(
        None,
        "Decay of an exponential average of the parameters, used for evaluation; none keeps no average.",
        low=0.0,
        high=0.999999,
    )
    on_nonfinite: str = key(
        "stop",
        "On a NaN or infinite loss: stop before the update (exit code 3), or skip that update.",
        choices=("stop", "skip"),
    )
    check_every: int | None = key(
        None,
        "Of so many steps one is computed twice, and where devices share only the rows of a batch on other devices too; other bits stop the "
        "run and name the device (exit code 4); none never checks.",
        low=0,
    )

    def check(self, config: Config) -> None:
        if self.batch_size % self.accumulation_steps and not self.per_device_batch_size:
            raise ConfigError(
                f"train.batch_size={self.batch_size} cannot be divided into train.accumulation_steps="
                f"{self.accumulation_steps} equal micro-batches. Use a multiple of {self.accumulation_steps}."
            )
        budget(config)


@dataclasses.dataclass(frozen=True)
class LoraConfig(Section):
    rank: int | None = key(
        None,
        "Rank of adapters (Hu et al. 2021): they and a new head learn, the rest of the model stays; none has no adapters.",
        low=0,
        high=2**16,
    )
    alpha: float = key(16.0, "An adapter's product counts alpha / rank.", low=0.0, high=1e6)
    rslora: bool = key(False, "It counts alpha / sqrt(rank) instead (Kalajdzievski 2023), for large ranks.")
    target_modules: tuple[str, ...] = key(
        ("attention/(query|value)/",),
        "Matrices with an adapter: regular expressions that are looked for in paths such as encoder/layers/attention/query/kernel, "
        "a list.",
    )
    dropout: float = key(
        0.0,
        "Share of an adapter's inputs that each micro-batch leaves out, the same for all its positions.",
        low=0.0,
        high=0.99,
    )
    modules_to_save: tuple[str, ...] = key(
        (),
        "Other parameters that learn, as they are: regular expressions as above; none takes a task's classifier and the parts that "
        "train.init_from lacks.",
    )
