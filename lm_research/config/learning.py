"""The keys of the sections train and lora, and those that all objectives, optimizers and schedules have."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from lm_research.config.budget import parse_budget
from lm_research.config.keys import Section, key
from lm_research.errors import ConfigError

if TYPE_CHECKING:
    from lm_research.config.run import Config


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig(Section):
    """Settings of an objective.

    Attributes:
      one_model: whether it trains a single model, so that model.mup_base_width can scale its width.
    """

    one_model: ClassVar[bool] = True

    name: str = key("masked_lm", "Training objective: what the model predicts.")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """Settings of an optimizer.

    Attributes:
      unit_updates: whether the size of updates is independent of the gradient's, so that model.mup_base_width can scale learning rates.
    """

    unit_updates: ClassVar[bool] = False

    name: str = key("adamw", "Optimizer. Each has its own scale of learning rates; the defaults below suit AdamW.")
    learning_rate: float = key(
        1e-4, "Peak learning rate; for muon, that of the hidden matrices (typically 0.02).", low=0.0, high=1e6
    )
    weight_decay: float = key(0.01, "Decoupled weight decay; biases and norms are never decayed.", low=0.0, high=1e6)
    clip_norm: float | None = key(
        1.0, "Maximum global gradient norm, above which the gradient is scaled down; None disables clipping.", low=0.0
    )
    layer_decay: float = key(
        1.0,
        "Learning-rate factor from each layer to the layer below it, down to the embeddings; 1 uses the same rate "
        "everywhere.",
        low=0.0,
        high=1.0,
    )


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Section):
    """Settings of a learning-rate schedule."""

    name: str = key("linear", "Shape of the learning-rate schedule after warm-up.")
    warmup_steps: int = key(0, "Number of linear warm-up steps from 0.", low=0)
    warmup_ratio: float = key(
        0.0, "Warm-up as a fraction of train.num_steps; set this or schedule.warmup_steps.", low=0.0, high=1.0
    )

    @override
    def check(self, config: Config) -> None:
        train = config.train
        if self.warmup_steps and self.warmup_ratio:
            raise ConfigError(
                f"schedule.warmup_steps={self.warmup_steps} and schedule.warmup_ratio={self.warmup_ratio} are both set. Set one of them to 0."
            )
        if not train.num_epochs and not train.budget and self.warmup_steps > train.num_steps:
            raise ConfigError(
                f"schedule.warmup_steps={self.warmup_steps} is longer than train.num_steps={train.num_steps}, so the "
                "learning rate would never reach its peak. Shorten the warm-up or train longer."
            )


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """Keys of the section train: length, batch size and initialization of the run."""

    num_steps: int = key(1000, "Total number of optimizer steps.", low=1, high=2**31 - 2)
    stop_after: int | None = key(
        None,
        "Stop early after this step: evaluate, save and exit with status 0. A run with a later stop_after resumes.",
        low=0,
    )
    num_epochs: float | None = key(
        None, "Number of passes over the training examples; determines train.num_steps.", low=0.0, high=1e9
    )
    max_epochs: float | None = key(
        None,
        "Refuse a run of more passes over the training examples, or over one source of a mixture, as competitions demand; None does not limit "
        "them. Passes of a run that train.init_from continues do not count.",
        low=0.0,
        high=1e9,
    )
    budget: str | None = key(
        None,
        "Training budget instead of train.num_steps: time (90s, 30min, 2h), compute (1e18flops) or data "
        "(2e9tokens); None uses train.num_steps.",
    )
    batch_size: int = key(32, "Global batch size: sequences per optimizer step over all devices.", low=1, high=2**24)
    per_device_batch_size: int | None = key(
        None,
        "Sequences of a micro-batch per device of the mesh's data and fsdp axes, instead of train.batch_size. "
        "batch_size becomes this number times those devices times accumulation_steps, and is stored with the run.",
        low=0,
        high=2**24,
    )
    accumulation_steps: int = key(
        1, "Micro-batches per optimizer step (gradient accumulation); must divide train.batch_size.", low=1, high=2**24
    )
    quantization: str = key(
        "none",
        "Type of the operands of matrix products in Transformer blocks, in the forward and the backward pass: int8; fp8, which is "
        "float8_e4m3 for inputs and weights and float8_e5m2 for gradients; or none, which is model.dtype. Parameters, the "
        "optimizer and evaluation do not change. Needs qwix.",
        choices=("none", "int8", "fp8"),
    )
    init_from: str | None = key(
        None,
        "Model directory to start from: in Hugging Face's format, in the native format, or that of a run or of one of its "
        "checkpoints, RUN/checkpoints/STEP. Its "
        "architecture replaces the model section and its tokenizer is used; set tokenizer.path for a directory "
        "without a tokenizer.",
        path=True,
    )
    freeze: tuple[str, ...] = key(
        (),
        "Parameters to freeze: regular expressions to search for in parameter paths such as "
        "encoder/embeddings/tokens or encoder/layers/3/attention/query/kernel.",
    )
    ema_decay: float | None = key(
        None,
        "Decay of an exponential moving average of the parameters, which evaluation uses; None keeps no average.",
        low=0.0,
        high=0.999999,
    )
    on_nonfinite: str = key(
        "stop",
        "What to do on a NaN or infinite loss: stop before the update (exit code 3) or skip the update.",
        choices=("stop", "skip"),
    )
    check_every: int | None = key(
        None,
        "Compute one of every this many steps twice and compare the bits, to detect faulty devices. If devices "
        "divide only the batch, the second computation also runs on other devices. A difference stops the run and "
        "names the device (exit code 4). None disables the check.",
        low=0,
    )

    @override
    def check(self, config: Config) -> None:
        if self.batch_size % self.accumulation_steps and not self.per_device_batch_size:
            raise ConfigError(
                f"train.batch_size={self.batch_size} cannot be divided into train.accumulation_steps="
                f"{self.accumulation_steps} equal micro-batches. Use a multiple of {self.accumulation_steps}."
            )
        parse_budget(config)


@dataclasses.dataclass(frozen=True)
class LoraConfig(Section):
    """Keys of the section lora: low-rank adapters."""

    rank: int | None = key(
        None,
        "Rank of LoRA adapters (Hu et al. 2021). Only the adapters and lora.modules_to_save are trained; None "
        "uses no adapters.",
        low=0,
        high=2**16,
    )
    alpha: float = key(16.0, "LoRA scale: an adapter's product is multiplied by alpha / rank.", low=0.0, high=1e6)
    rslora: bool = key(False, "Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023), which suits large ranks.")
    target_modules: tuple[str, ...] = key(
        ("attention/(query|value)/",),
        "Matrices that get an adapter: regular expressions to search for in parameter paths such as "
        "encoder/layers/attention/query/kernel.",
    )
    dropout: float = key(
        0.0,
        "Dropout rate on the inputs of adapters; all positions of a micro-batch share one mask.",
        low=0.0,
        high=0.99,
    )
    modules_to_save: tuple[str, ...] = key(
        (),
        "Parameters to train in full next to the adapters: regular expressions like those of lora.target_modules. "
        "Empty trains a task's classifier and any parameters that train.init_from does not have.",
    )
