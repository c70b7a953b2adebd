"""Dropout rates of a config.json that a run does not train with are named in its log."""

from __future__ import annotations

import pathlib

import pytest

from helpers import golden_models
from lm_research.config import ModelConfig
from lm_research.run.init_checkpoint import InitCheckpoint

MPT = "attn_config.attn_pdrop=0 (0.2 here), emb_pdrop=0.0 (0.2 here), resid_pdrop=0.0 (0.2 here)"
PAIR = ", ".join(
    f"{name}=0.1 (0.0 here)"
    for name in (
        "decoder.attn_pdrop",
        "decoder.embd_pdrop",
        "decoder.resid_pdrop",
        "encoder.attention_probs_dropout_prob",
        "encoder.hidden_dropout_prob",
    )
)


@pytest.mark.parametrize(
    ("golden", "head", "rate", "named"),
    [
        # Defaults of DistilBertConfig: dropout and attention_dropout 0.1, seq_classif_dropout 0.2, qa_dropout 0.1.
        ("distilbert_sequence", "classification", 0.1, "seq_classif_dropout=0.2 (0.1 here)"),
        ("distilbert_sequence", "span", 0.1, ""),
        ("distilbert_sequence", "span", 0.0, "attention_dropout=0.1 (0.0 here), dropout=0.1 (0.0 here), qa_dropout=0.1 (0.0 here)"),
        # Defaults of M2M100Config: both 0.05, and attention_dropout 0.1; this golden has dropout 0.
        ("m2m_100_generation", "seq2seq_lm", 0.1, "decoder_layerdrop=0.05 (0.0 here), dropout=0.0 (0.1 here), encoder_layerdrop=0.05 (0.0 here)"),
        # In objects of config.json: MPT has one rate for all, 0 by default; rates of BertConfig and GPT2Config are 0.1 by default.
        ("mpt_causal", "causal_lm", 0.2, MPT),
        ("pair_bert_gpt2", "seq2seq_lm", 0.1, ""),
        ("pair_bert_gpt2", "seq2seq_lm", 0.0, PAIR),
        # T5GemmaConfig gives both stacks its own rates.
        ("t5gemma_generation", "seq2seq_lm", 0.2, "attention_dropout=0.0 (0.2 here), dropout_rate=0.0 (0.2 here)"),
    ],
)  # fmt: skip
def test_rates_that_a_run_does_not_use_are_named(
    golden: str, head: str, rate: float, named: str, tmp_path: pathlib.Path
) -> None:
    golden_models.write_checkpoint(tmp_path, golden_models.load_golden(golden_models.golden_path(golden)))
    init = InitCheckpoint(tmp_path, ModelConfig(dropout_rate=rate, attention_dropout_rate=rate), head)
    start = "dropout rates of its config.json that differ from this run's: "
    assert init._unused_rates() == ([start + named] if named else [])
