"""Names of weights of DeBERTa."""

from __future__ import annotations

import dataclasses

from lm_research.models.architecture import Architecture
from lm_research.models.families.common import ParamMapping, attention, dense, norm, tensor
from lm_research.models.families.encoder_weights import embeddings, output_table


def stack() -> tuple[ParamMapping, ...]:
    """Map embeddings and blocks of DeBERTa-v2."""
    ours, theirs = "encoder/layers", "@encoder.layer.{}"
    projections = ("self.query_proj", "self.key_proj", "self.value_proj", "output.dense")
    return (
        *embeddings(),
        *tensor("encoder/relative_embeddings", "@encoder.rel_embeddings.weight"),
        *norm("encoder/relative_norm", "@encoder.LayerNorm"),
        *attention(f"{ours}/attention", f"{theirs}.attention", *projections),
        *dense(f"{ours}/attention/position_key", f"{theirs}.attention.self.pos_key_proj"),
        *dense(f"{ours}/attention/position_query", f"{theirs}.attention.self.pos_query_proj"),
        *norm(f"{ours}/attention_norm", f"{theirs}.attention.output.LayerNorm"),
        *dense(f"{ours}/feed_forward/up", f"{theirs}.intermediate.dense"),
        *dense(f"{ours}/feed_forward/down", f"{theirs}.output.dense"),
        *norm(f"{ours}/feed_forward_norm", f"{theirs}.output.LayerNorm"),
        *tensor(f"{ours}/convolution/filters", "@encoder.conv.conv.weight"),
        *tensor(f"{ours}/convolution/bias", "@encoder.conv.conv.bias"),
        *norm(f"{ours}/convolution_norm", "@encoder.conv.LayerNorm"),
    )


def heads(arch: Architecture, head: str, legacy: bool) -> tuple[ParamMapping, ...]:
    """Map the heads. Those of masked tokens have two sets of names, of which either is read: `legacy` ones are BERT's."""
    old = (
        *dense("masked_lm/dense", "cls.predictions.transform.dense"),
        *norm("masked_lm/norm", "cls.predictions.transform.LayerNorm"),
        *output_table("cls.predictions", "cls.predictions.decoder", arch),
    )
    new = (
        *dense("masked_lm/dense", "lm_predictions.lm_head.dense"),
        *norm("masked_lm/norm", "lm_predictions.lm_head.LayerNorm"),
        *tensor("masked_lm/bias", "lm_predictions.lm_head.bias"),
    )
    names = {weight.path: weight.names for weight in (new if legacy else old)}
    either = [
        dataclasses.replace(weight, names=(*weight.names, *names.get(weight.path, ())))
        for weight in (old if legacy else new)
    ]
    classifier = "qa_outputs" if head == "span" else "classifier"
    return (*either, *dense("pooler/dense", "pooler.dense"), *dense("classifier", classifier))
