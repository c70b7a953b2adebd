"""BigBird (Zaheer et al. 2020, arXiv:2007.14062): BERT for long texts, whose blocks of positions attend to near blocks, the first and the last.

Scores are computed for all pairs of positions and masked, at a cost of L^2. Random blocks are those of transformers in evaluation, also in
training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any

from typing_extensions import override

from lm_research.common.documents import Count, Size
from lm_research.config import ModelConfig, key
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.bert import FIELDS, Bert
from lm_research.models.families.common import ConfigField, ParamMapping, dense, given, norm, with_defaults, without
from lm_research.models.families.encoder_weights import replaced, with_paths

DEFAULTS = {"vocab_size": 50358, "hidden_act": "gelu_new", "max_position_embeddings": 4096}


@dataclasses.dataclass(frozen=True)
class BigBirdConfig(ModelConfig):
    """Model section of BigBird."""

    block_size: int = key(64, "Length of the blocks of attention; 0 for full attention.", low=0, high=2**20)
    num_random_blocks: int = key(3, "Number of random blocks that a block attends to.", low=0, high=2**20)


class BigBird(Bert):
    """BERT for long texts, with attention to near blocks of positions and to the first and last ones (Zaheer et al. 2020)."""

    # The released models; vocabulary of 50,358.
    sizes = {name: {**Bert.sizes[name], "max_length": 4096} for name in ("base", "large")}
    traits = Bert.traits | dict(span_layers=True)
    run_traits = Bert.run_traits | dict(activation="gelu_tanh", sequence_activation="gelu_tanh")

    model_types = {"big_bird": "BigBird"}
    classes = {
        **without(Bert.classes, "LMHeadModel", "ForNextSentencePrediction"),
        "ForCausalLM": "causal_lm",
    }
    config_fields = (
        *with_defaults(FIELDS, DEFAULTS),
        ConfigField("causal", "is_decoder", False),
        ConfigField("sep_id", "sep_token_id", 66),
    )
    required = {"attention_type": ("block_sparse", "original_full")}
    other_keys = {"block_size": Size, "num_random_blocks": Count} | dict.fromkeys(
        ("use_bias", "rescale_embeddings"), bool
    )
    unread = (*Bert.unread, r"^bert\.pooler\.")  # of classes without a pooled state

    @override
    def architecture(self, config: Any, vocab_size: int) -> Architecture:
        return _with_blocks(super().architecture(config, vocab_size), config.block_size, config.num_random_blocks)

    @override
    def from_hf(self, hf: Mapping[str, Any], names: Set[str]) -> Architecture:
        arch = super().from_hf(hf, names)
        biases = dict.fromkeys(("query_bias", "key_bias", "value_bias"), given(hf, "use_bias", True))
        scale = arch.hidden_size**0.5 if hf.get("rescale_embeddings") else 1.0
        arch = arch.replace(embedding_scale=scale, sequence_activation=arch.activation).with_layers(**biases)
        # Decoders attend to all earlier positions whatever their type, as transformers generates with them. Without a cache, it lets
        # long inputs of block-sparse ones see later tokens, which no use requires.
        is_sparse = given(hf, "attention_type", "block_sparse") == "block_sparse" and not arch.causal
        size = given(hf, "block_size", 64) if is_sparse else 0
        return _with_blocks(arch, size, given(hf, "num_random_blocks", 3))

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        spec = arch.layers[0]
        is_sparse = spec.attention == "blocks"
        blocks = {"block_size": spec.window, "num_random_blocks": spec.random_blocks} if is_sparse else {}
        return super().to_hf(arch) | {
            "attention_type": "block_sparse" if is_sparse else "original_full",
            **blocks,
            "use_bias": spec.query_bias,
            "rescale_embeddings": arch.embedding_scale != 1.0,
        }

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        is_sequence, spans = head == "classification", "qa_classifier"
        own = (
            *dense("pooler/dense", "classifier.dense" if is_sequence else "@pooler"),
            *dense(
                "classifier",
                {"classification": "classifier.out_proj", "span": f"{spans}.qa_outputs"}.get(head, "classifier"),
            ),
            *dense("span_layers/feed_forward/up", f"{spans}.intermediate.dense"),
            *dense("span_layers/feed_forward/down", f"{spans}.output.dense"),
            *norm("span_layers/norm", f"{spans}.output.LayerNorm"),
        )
        return replaced(super().weights(arch, head), with_paths(own, arch, head))


def _with_blocks(arch: Architecture, size: int, random_blocks: int) -> Architecture:
    """The model with attention to blocks of this size, or full attention if it is 0."""
    fields: dict[str, Any] = dict(attention="blocks", window=size, random_blocks=random_blocks)
    return arch.with_layers(**fields) if size else arch


FAMILIES.register("big_bird", BigBirdConfig)(BigBird())
