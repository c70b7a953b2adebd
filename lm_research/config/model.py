"""The keys of the section model that all families share."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from typing_extensions import override

from lm_research.config.keys import Section, key
from lm_research.errors import ConfigError

if TYPE_CHECKING:
    from lm_research.config.run import Config


# Arrays of a block that a remat policy can keep, and those whose recomputation contains no matrix product.
ALL_REMAT_NAMES = ("heads", "mlp", "embed", "mixed", "residual")
REMAT_NAMES = ("heads", "mlp", "mixed", "residual")


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """Settings of a model that all families share."""

    family: str = key(
        "bert", "Model family, one per file of lm_research/models/families. Its keys are those below and its own."
    )
    hidden_size: int = key(768, "Width D of the residual stream.", low=1, high=2**20)
    num_layers: int = key(12, "Number of Transformer blocks N.", low=1, high=4096)
    num_heads: int = key(
        12,
        "Number of attention heads H; must divide model.hidden_size unless model.head_size is set.",
        low=1,
        high=2**16,
    )
    intermediate_size: int = key(3072, "Width F of the feed-forward layer.", low=1, high=2**22)
    num_kv_heads: int | None = key(
        None,
        "Number of key and value heads, each shared by a group of query heads; None uses num_heads.",
        low=1,
        high=2**16,
    )
    head_size: int | None = key(
        None, "Width K of an attention head; None uses hidden_size / num_heads.", low=1, high=2**16
    )
    vocab_size: int | None = key(
        None,
        "Rows of the embedding table; None uses the tokenizer's size rounded up to a multiple of 128.",
        low=1,
        high=2**24,
    )
    max_length: int = key(512, "Maximum sequence length, which is the number of positions.", low=8, high=2**24)
    dropout_rate: float = key(0.1, "Dropout rate on embeddings and on both residual branches.", low=0.0, high=0.99)
    attention_dropout_rate: float = key(0.1, "Dropout rate on attention probabilities.", low=0.0, high=0.99)
    norm_position: str | None = key(
        None,
        "Where blocks normalize: after each residual sum (post) or before each branch (pre); None uses the "
        "family's default.",
        choices=("post", "pre"),
    )
    tie_word_embeddings: bool | None = key(
        None, "Whether token predictions use the table of embeddings; None uses the family's default."
    )
    init_std: float = key(0.02, "Standard deviation of the initial weights.", low=0.0, high=1.0)
    mup_base_width: int | None = key(
        None,
        "Maximal update parametrization (muP): the hidden_size at which the learning rate was tuned. Learning "
        "rates and initial weights are scaled from that width, so that the tuned rate transfers to other widths. "
        "None uses the standard parametrization.",
        low=1,
        high=2**20,
    )
    mup_base_head_size: int | None = key(
        None,
        "The head_size that goes with model.mup_base_width if heads grow with the width; None if the head size "
        "stays the same and the number of heads grows.",
        low=1,
        high=2**16,
    )
    dtype: str = key(
        "float32",
        "Compute dtype; parameters are always float32. auto is bfloat16 on TPUs, GPUs, and CPUs with AMX (before jax "
        "0.12 with scan_layers=False), and float32 on other CPUs; the run's own config has the type that was chosen.",
        choices=("float32", "bfloat16", "auto"),
    )
    scan_layers: bool = key(
        True, "Compile one block and loop over it (compiles fast) instead of unrolling all blocks (may run faster)."
    )
    remat: str = key(
        "none",
        "What the backward pass recomputes: nothing; everything but matrix products (dots); everything but the arrays "
        "of model.remat_names, which stay on the device (names) or wait in the host's memory (offload); or whole blocks "
        "(full).",
        choices=("none", "dots", "names", "offload", "full"),
    )
    remat_names: tuple[str, ...] = key(
        REMAT_NAMES,
        "Arrays that remat=names and remat=offload keep: outputs of products by their axis, heads (queries, keys and "
        "values), mlp (inputs of the activation) and embed (outputs of branches); mixed, outputs of attention kernels; and "
        "residual, sums.",
        choices=ALL_REMAT_NAMES,
    )
    attention_backend: str = key(
        "auto",
        "xla keeps a layer's attention scores in memory; flash uses GPU and TPU kernels that never do; auto uses "
        "flash on GPUs for bfloat16 and on TPUs for sequences of at least 64 tokens.",
        choices=("auto", "xla", "flash"),
    )

    @override
    def check(self, config: Config) -> None:
        if self.hidden_size % self.num_heads and not self.head_size:
            raise ConfigError(
                f"model.hidden_size={self.hidden_size} is not a multiple of model.num_heads={self.num_heads} "
                f"(remainder {self.hidden_size % self.num_heads}). All heads have the same width; change one of them."
            )
        if self.num_heads % (self.num_kv_heads or 1):
            raise ConfigError(
                f"model.num_heads={self.num_heads} is not a multiple of model.num_kv_heads={self.num_kv_heads}: each key-value head "
                "serves a group of query heads, and all groups have the same size. Change one of them."
            )
        if self.vocab_size and self.vocab_size < config.tokenizer.vocab_size and not config.tokenizer.path:
            raise ConfigError(
                f"tokenizer.vocab_size={config.tokenizer.vocab_size} is larger than model.vocab_size={self.vocab_size}: some tokens "
                "would have no embedding. Set model.vocab_size=0 to follow the tokenizer."
            )
        if self.mup_base_width:
            self._check_mup(config)

    def _check_mup(self, config: Config) -> None:
        from lm_research.config.registries import OPTIMIZERS  # imports this module

        setting = f"model.mup_base_width={self.mup_base_width}"
        if not config.optimizer.unit_updates:
            supported = [name for name in OPTIMIZERS if OPTIMIZERS.settings(name).unit_updates]
            raise ConfigError(
                f"{setting} scales learning rates for {' and '.join(supported)}, but optimizer.name={config.optimizer.name}. Use one of those, "
                "or set --config.model.mup_base_width=0."
            )
        if not config.objective.one_model:
            raise ConfigError(
                f"{setting} scales a single model by its width, but objective.name={config.objective.name} trains two of different widths. "
                "Use another objective, or set --config.model.mup_base_width=0."
            )
