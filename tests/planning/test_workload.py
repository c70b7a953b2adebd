"""Parameters and operations of published models, and what the backward pass keeps."""

from __future__ import annotations

import dataclasses

import pytest

from helpers import tiny
from lm_research.config import Config, loading, replace, resolve
from lm_research.errors import ConfigError
from lm_research.models.families import FAMILIES
from lm_research.models.flops import train_flops_per_token
from lm_research.planning.workload import activation_bytes, flops_per_row, make_workload


def shipped(name: str, **sections: dict) -> Config:
    return replace(resolve(loading.load(f"configs/{name}.py")), **sections)


def t5_11b(**sections: dict) -> Config:
    model = {k: v for k, v in FAMILIES["t5"].sizes["11b"].items()} | dict(
        family="t5", vocab_size=32128, dtype="bfloat16"
    )
    return resolve(
        dict(model=model, objective=dict(name="span_corruption"), data=dict(max_length=512), train=dict(batch_size=512))
        | sections
    )


def test_bert_large_has_the_papers_parameters() -> None:
    # Devlin et al. 2018, section 3: 340M, counted roughly; 24 x 12 D^2 + 30522 D + heads.
    work = make_workload(shipped("bert_large"))
    assert work.definition.num_params == pytest.approx(340e6, rel=0.02)
    assert (work.length, work.predicted_per_row, work.source_length) == (512, 77, 0)


def test_gpt2_xl_has_the_papers_parameters() -> None:
    # Radford et al. 2019, table 2 as corrected by the released model: 1558M.
    assert make_workload(shipped("gpt2_xl")).definition.num_params == pytest.approx(1558e6, rel=1e-3)


@pytest.mark.parametrize("name", ["bert_large", "gpt2_xl"])
def test_operations_are_those_that_training_reports(name: str) -> None:
    work = make_workload(shipped(name))
    share = work.objective.target_fraction
    expected = train_flops_per_token(work.definition, work.length, share)
    assert flops_per_row(work).total / work.tokens_per_row == pytest.approx(expected, rel=1e-9)


def test_t5_11b_operations_by_hand() -> None:
    work = make_workload(t5_11b())
    source, target = work.source_length, work.length
    assert (source, target) == (512, 114)  # Raffel et al. 2019, section 3.1.4
    assert work.definition.num_params == pytest.approx(11.3e9, rel=0.01)  # 11 billion, section 3.7
    attention, feed_forward = 4 * 1024 * 128 * 128, 2 * 1024 * 65536
    flops = flops_per_row(work)
    encoder = 24 * (attention + feed_forward) * source
    decoder = 24 * ((attention + feed_forward) * target + attention / 2 * (target + source))
    assert flops.layers == 6 * (encoder + decoder)
    assert flops.attention == 12 * 24 * 128 * 128 * (source**2 + target * (target + source))
    assert flops.head == 6 * 32128 * 1024 * target


def test_a_causal_block_keeps_what_arithmetic_gives() -> None:
    """With recomputation of whole blocks, an additional layer keeps only its input: L x D x 4 bytes (and its key)."""
    config = tiny.config("gpt2", model=dict(remat="full", num_layers=2))
    more = replace(config, model=dict(num_layers=5))
    assert activation_bytes(more) - activation_bytes(config) == 3 * 16 * 16 * 4


def test_a_remat_policy_that_recomputes_more_keeps_less() -> None:
    kept = {
        remat: activation_bytes(
            tiny.config("bert", model=dict(remat=remat, num_layers=4), objective={"sentence_pair": "none"})
        )
        for remat in ("none", "dots", "full")
    }
    assert kept["none"] > kept["dots"] > kept["full"] > 0


def test_named_remat_keeps_the_named_arrays() -> None:
    """An additional layer keeps its input, and L x D x 4 bytes for each of query, key, value and two sums; F = 2 D doubles "mlp"."""
    base = dict(remat="names", num_layers=2, hidden_size=16, intermediate_size=32)

    def per_layer(names: tuple[str, ...], remat: str = "names") -> float:
        fewer = tiny.config("gpt2", model=base | dict(remat=remat, remat_names=names))
        return (activation_bytes(replace(fewer, model=dict(num_layers=5))) - activation_bytes(fewer)) / 3

    unit = 16 * 16 * 4  # L D float32
    assert per_layer(("heads",)) == 4 * unit
    assert per_layer(("heads", "mlp")) == 6 * unit
    assert per_layer(("mlp", "residual")) == (1 + 2 + 1) * unit
    assert per_layer(("heads", "mlp"), "offload") == 6 * unit  # in the host's memory


def test_16_bits_of_a_gpt_layer_are_near_the_papers_formula() -> None:
    """Korthikanti et al. 2022, equation 1: 34 + 5 H L / D bytes per token and unit of width, two of L L H in dropout masks.

    Ours keeps float32 probabilities in addition to the 16-bit ones: between once and twice theirs.
    """
    length, width, heads = 128, 256, 4
    model = dict(
        hidden_size=width,
        num_heads=heads,
        intermediate_size=4 * width,
        dtype="bfloat16",
        max_length=length,
        dropout_rate=0.1,
        attention_dropout_rate=0.1,
    )
    config = tiny.config("gpt2", model=model, data={"max_length": length})
    layer = activation_bytes(replace(config, model={"num_layers": 4})) - activation_bytes(config)
    assert 1.0 < layer / 2 / (length * width * (34 + 5 * heads * length / width)) < 2.0


def test_a_tensor_axis_divides_what_a_chip_keeps() -> None:
    config = tiny.config(
        "gpt2", model=dict(num_heads=4, hidden_size=32, intermediate_size=128, max_length=64), data={"max_length": 64}
    )
    whole, half = activation_bytes(config), activation_bytes(config, tensor=2)
    assert whole / 2 < half < whole  # norms and the residual stream are not divided


def test_what_depends_on_a_file_is_refused() -> None:
    config = tiny.config("gpt2", model={"vocab_size": 0}, tokenizer={"path": "somewhere"})
    with pytest.raises(ConfigError, match="--config.model.vocab_size"):
        make_workload(config)


@pytest.mark.parametrize("name", ["replaced_token", "seq2seq", "denoising"])
def test_every_objective_declares_its_shapes(name: str) -> None:
    family = {"replaced_token": "bert"}.get(name, "bart")
    model = dict(family=family, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=64, max_length=32)
    model |= dict(family="electra" if family == "bert" else family, vocab_size=64)
    sections = dict(model=model, objective={"name": name}, data={"max_length": 16}, tokenizer={"vocab_size": 64})
    work = make_workload(resolve(sections))
    assert flops_per_row(work).total > 0 and work.tokens_per_row >= 16
    assert dataclasses.is_dataclass(work)
