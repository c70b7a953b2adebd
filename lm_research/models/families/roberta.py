"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT without next-sentence prediction; positions count real tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from lm_research.errors import PretrainedError
from lm_research.models.architecture import Architecture
from lm_research.models.families.base import FAMILIES
from lm_research.models.families.bert import Bert
from lm_research.models.families.common import FIX, ParamMapping, dense, norm, with_defaults, without, write_keys
from lm_research.models.families.encoder_weights import output_table, stack, with_paths


class Roberta(Bert):
    """BERT whose positions count real tokens (Liu et al. 2019)."""

    # Liu et al. 2019, section 3.1 and 5: the shapes of BERT; vocabulary of 50,265 byte-level pieces.
    sizes = {name: Bert.sizes[name] for name in ("base", "large")}
    traits = Bert.traits | dict(head_activation="gelu", count_padding=False, prompt_positions="rows")
    # Two rows come before position 0, as in the released models, whose padding token has id 1.
    run_traits = dict(
        count_padding=True, prompt_positions="tokens", num_types=1, norm_epsilon=1e-5, position_offset=2, pad_id=1
    )
    head = ""

    model_types = {"roberta": "Roberta"}
    classes = {
        **without(Bert.classes, "ForPreTraining", "ForNextSentencePrediction", "LMHeadModel"),
        "ForCausalLM": "causal_lm",
    }
    config_fields = with_defaults(Bert.config_fields, {"vocab_size": 50265, "pad_token_id": 1})
    base_prefix = "roberta."

    @override
    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().read(hf)
        offset = fields["pad_id"] + 1
        if not 0 < offset < fields["max_length"]:
            raise PretrainedError(
                f"config.json: pad_token_id is {fields['pad_id']} and max_position_embeddings is {fields['max_length']}, but positions "
                f"start at pad_token_id + 1, which must be positive and below max_position_embeddings. {FIX}"
            )
        return fields | {"max_length": fields["max_length"] - offset, "position_offset": offset}

    @override
    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        offset = arch.position_offset
        return write_keys(arch.replace(max_length=arch.max_length + offset, pad_id=offset - 1), self.config_fields)

    @override
    def weights(self, arch: Architecture, head: str) -> tuple[ParamMapping, ...]:
        inner, outer = (
            ("classifier.dense", "classifier.out_proj") if head == "classification" else ("@pooler.dense", "")
        )
        mappings = (
            *stack(*self._norms),
            *dense("pooler/dense", inner),
            *dense("masked_lm/dense", "lm_head.dense"),
            *norm("masked_lm/norm", "lm_head.layer_norm"),
            *output_table("lm_head", "lm_head.decoder", arch),
            *dense("classifier", outer or ("qa_outputs" if head == "span" else "classifier")),
        )
        return with_paths(mappings, arch, head)


FAMILIES.register("roberta")(Roberta())
