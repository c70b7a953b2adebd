"""Memory, traffic and time against arithmetic done here by hand, and plans of published models."""

from __future__ import annotations

import jax
import pytest

from helpers import tiny
from lm_research.config import Config, MeshConfig, replace, resolve
from lm_research.errors import MeshError
from lm_research.models.families import FAMILIES
from lm_research.parallel.mesh import make_mesh
from lm_research.planning.estimate import abstract_mesh, memory_by_kind, plan_run
from lm_research.planning.report import table
from lm_research.planning.search import search
from lm_research.planning.topology import parse_topology
from lm_research.planning.traffic import TABLES
from lm_research.planning.workload import flops_per_row, make_workload
from planning.test_workload import shipped, t5_11b


def gpt3_175b(**mesh: object) -> Config:
    model = FAMILIES["gpt3"].sizes["175b"] | dict(family="gpt3", vocab_size=50304, dtype="bfloat16", remat="full")
    return resolve(
        dict(
            model=model,
            objective={"name": "causal_lm"},
            data={"max_length": 2048},
            mesh=dict(preset="fsdp", **mesh),
            train=dict(batch_size=1536, num_steps=95_367),
        )
    )


def test_gpt3_175b_on_4096_chips() -> None:
    plan = plan_run(gpt3_175b(tensor=8), parse_topology("v5p:16x16x16"))
    assert plan.parameters == pytest.approx(175e9, rel=0.005)  # Brown et al. 2020, table 2.1
    # Table D.1 there: 3.14e23 operations for 300 billion tokens, without attention's scores (2 to 3% at this length).
    tokens = plan.tokens_per_step * plan.num_steps
    assert tokens == pytest.approx(300e9, rel=0.001)
    assert plan.flops_per_step * plan.num_steps == pytest.approx(3.14e23, rel=0.04)
    # 12 bytes a parameter; biases and norms, which fsdp does not divide, add some 14% when all else is in 4,096 parts.
    state = plan.memory["parameters"] + plan.memory["optimizer"]
    assert 1.0 < state / (12 * plan.parameters / 4096) < 1.2
    assert plan.fits and plan.mesh == {"data": 1, "fsdp": 512, "context": 1, "tensor": 8}


def test_a_batch_of_a_device_has_that_many_rows_on_each() -> None:
    config = replace(gpt3_175b(tensor=8), train={"per_device_batch_size": 3, "accumulation_steps": 2})
    plan = plan_run(config, parse_topology("v5p:16x16x16"))
    assert (
        plan.rows_per_device == 3 and plan.tokens_per_step == 3 * 512 * 2 * 2048
    )  # 4,096 chips / tensor 8, two micro-batches


def test_logits_are_those_of_a_slice_unless_devices_share_a_table() -> None:
    """12,288 positions a device are three slices of 4,096; a mesh that divides only the vocabulary, or positions, has all at once."""
    config = tiny.config(
        "gpt2", data={"max_length": 64}, model={"max_length": 64}, train={"per_device_batch_size": 192}
    )
    vocab, width = config.model.vocab_size, config.model.hidden_size

    def logits(machine: str, positions: int, **mesh: int) -> None:
        plan = plan_run(replace(config, mesh=mesh), parse_topology(machine))
        columns = vocab / mesh.get("tensor", 1)
        assert plan.memory["logits"] == pytest.approx(columns * (positions * (4 + 4 + 4) + width * (4 + 4 + 4)))

    logits("v5e:4x4", 4096, data=16)
    logits("h100:4", 4096, data=2, tensor=2)
    logits("h100:2", 12288, tensor=2)
    logits("h100:4", 6144, data=2, context=2)


def test_t5_11b_has_a_plan_that_fits() -> None:
    config = t5_11b(mesh={"preset": "fsdp"})
    plan = plan_run(replace(config, model={"remat": "full"}), parse_topology("v5p:4x4x4"), price=2.0)
    assert plan.fits and plan.memory_bytes < 95e9
    assert plan.cost == pytest.approx(2.0 * plan.chip_hours)
    assert 0.1 < plan.mfu <= 1.0


def test_optimizer_memory_falls_with_devices() -> None:
    config = shipped("bert_large", mesh={"preset": "fsdp"}, model={"attention_backend": "xla"})
    work = make_workload(config)

    def needed(config: Config, devices: int) -> float:
        topology = parse_topology(f"h100:{devices}")
        return memory_by_kind(config, work, abstract_mesh(config, topology), 1, topology.platform)["optimizer"]

    memory = {n: needed(config, n) for n in (1, 2, 4, 8)}
    assert memory[1] == 8 * 336_226_108 + 4  # two moments and a counter
    for n in (2, 4, 8):
        assert memory[n] == pytest.approx(memory[1] / n, rel=0.01)
    assert needed(replace(config, mesh={"preset": "dp"}), 8) == memory[1]


def test_adapters_need_little_memory_next_to_the_model() -> None:
    """BERT-large, rank 8: query and value of 24 layers, each 8 x (1,024 + 1,024) numbers, have moments and gradients, 4 bytes each.

    The adapted kernels and their gradients exist once more, 2 x 24 x 1,024^2 of each.
    """
    config = replace(shipped("bert_large", mesh={"preset": "fsdp"}), lora={"rank": 8})
    plan, whole = (plan_run(one, parse_topology("h100:1")) for one in (config, replace(config, lora={"rank": 0})))
    learn = 2 * 24 * 8 * 2048
    assert plan.trained == learn and whole.trained == whole.parameters == plan.parameters - learn
    assert plan.memory["parameters"] == 4 * plan.parameters
    assert plan.memory["optimizer"] == 8 * learn + 4 and plan.memory["gradients"] == 4 * learn
    assert plan.memory["adapted"] == 2 * 4 * (2 * 24 * 1024**2) and "adapted" not in whole.memory
    assert plan.memory_bytes < whole.memory_bytes - 10 * whole.parameters
    assert f"{learn:,} of {plan.parameters:,} parameters trained" in table(plan)
    moved = plan_run(config, parse_topology("h100:8")).collectives
    gradients = sum(c.array_bytes for c in moved if "gradients" in c.purpose)
    assert gradients == 2 * learn  # in bfloat16, as the model computes


def test_traffic_by_hand() -> None:
    """A GPT of width 16 whose parameters fsdp all divides: each of 2 micro-batches gathers twice and reduces once, but the token table once."""
    config = tiny.config("gpt2", mesh={"data": 2, "fsdp": 4}, train=dict(batch_size=16, accumulation_steps=2))
    plan = plan_run(config, parse_topology("h100:4", slices=2))
    found = {(c.kind, c.axis): c for c in plan.collectives if c.purpose in ("weights", "gradients")}
    gather, reduce = found["all-gather", "fsdp"], found["all-reduce", "data"]
    assert gather.count == 4 and gather.link_bytes == gather.array_bytes * 4 * 3 / 4
    assert gather.network_bytes == 0  # the slices are on the data axis, which has one member in each
    assert reduce.link_bytes == 0 and reduce.network_bytes == reduce.array_bytes * 2 * 2 * 1 / 2
    assert found["reduce-scatter", "fsdp"].array_bytes == gather.array_bytes
    table = 4 * 16 * make_workload(config).definition.arch.vocab_size
    tables = {(c.kind, c.axis): (c.count, c.array_bytes) for c in plan.collectives if c.purpose == TABLES}
    whole, part = (1, table), (1, table / 4)  # fsdp sums tables, and data the quarters of its sums
    assert tables == {("all-gather", "fsdp"): whole, ("all-reduce", "fsdp"): whole, ("all-reduce", "data"): part}
    assert plan.memory["gradients"] == 2 * plan.memory["parameters"]


@pytest.mark.parametrize(
    ("name", "topology", "kind"),
    [
        ("bert_large", "v5e:4x4", "all-reduce"),  # a short ring
        ("gpt2_xl", "v5e:8x8", "all-reduce"),  # 25 rows a device, which are not whole registers of 8
        ("bert_large", "v5e:8x8", "reduce-scatter"),
    ],
)
def test_tpus_sum_parts_of_gradients_along_long_rings_if_they_are_whole_registers(
    name: str, topology: str, kind: str
) -> None:
    plan = plan_run(shipped(name, mesh={"preset": "fsdp"}), parse_topology(topology), only_fitting=True)
    assert [c.kind for c in plan.collectives if c.purpose == "gradients"] == [kind]


def test_a_mesh_that_is_set_changes_no_plan() -> None:
    config, topology = (
        tiny.config("gpt2", mesh={"data": 2, "context": 4}, train=dict(batch_size=4)),
        parse_topology("h100:8"),
    )
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        inside = plan_run(config, topology)
    assert inside == plan_run(config, topology)


def test_traffic_of_rings_by_hand() -> None:
    """2 blocks of 2 heads of 8 in float32, rows of 16 positions: each passes 2 x 16 x 16 x 4 bytes around the ring, forward and backward."""
    config = tiny.config("gpt2", mesh={"data": 2, "context": 4}, train=dict(batch_size=4))
    plan = plan_run(config, parse_topology("h100:8"))
    (ring,) = (c for c in plan.collectives if c.kind == "collective-permute")
    assert (ring.axis, ring.count, ring.array_bytes) == (
        "context",
        2 * 2,
        2 * 2 * 16 * 16 * 4,
    )  # of both rows of a chip
    assert ring.link_bytes == ring.count * ring.array_bytes * 3 / 4
    summed = [c.array_bytes for c in plan.collectives if c.axis == "context" and c.kind == "all-reduce"]
    assert sum(summed) == plan.memory["parameters"]


def test_chips_of_a_context_axis_share_activations_and_keep_no_scores() -> None:
    """Whole attention keeps 4 H L^2 bytes a row of a block's scores only: the exponentials."""
    length, sizes = 1024, dict(max_length=1024)
    config = tiny.config("gpt2", model=sizes, data=sizes, mesh={"context": 4}, train=dict(batch_size=4))
    memory = plan_run(config, parse_topology("h100:4")).memory
    whole = plan_run(replace(config, mesh={"context": 1, "data": 4}), parse_topology("h100:4")).memory
    assert whole["activations"] > 2 * 4 * 2 * length**2 > 4 * memory["activations"]
    assert memory["parameters"] == whole["parameters"]


def test_gpus_keep_no_scores_in_16_bits() -> None:
    """Flash does not keep the exponentials of a block's scores, 4 H L^2 bytes a row, which plain attention keeps."""
    length, sizes = 1024, dict(max_length=1024)
    config = tiny.config("gpt2", model=sizes | {"dtype": "bfloat16"}, data=sizes, train=dict(batch_size=1))
    topology = parse_topology("h100:1")
    auto, flash, plain = (
        plan_run(replace(config, model={"attention_backend": name}), topology) for name in ("auto", "flash", "xla")
    )
    assert auto == flash
    assert plain.memory["activations"] - auto.memory["activations"] > 2 * 4 * 2 * length**2
    assert plan_run(replace(config, model={"dtype": "float32"}), topology).memory["activations"] > 2 * 4 * 2 * length**2


def test_one_device_sends_nothing() -> None:
    plan = plan_run(tiny.config("gpt2"), parse_topology("a100:1"))
    assert plan.collectives == () and plan.seconds["ici"] == plan.seconds["dcn"] == 0


def test_a_step_takes_at_least_its_products() -> None:
    config = shipped("bert_large", mesh={"preset": "fsdp"}, model={"remat": "none"})
    plan = plan_run(config, parse_topology("v5p:4x4x4"))
    # The kernels' backward pass computes the scores again: one product in addition to the six of attention's two.
    again = config.train.batch_size * flops_per_row(make_workload(config)).attention / 6
    assert plan.seconds["compute"] == pytest.approx((plan.flops_per_step + again) / (64 * 459e12))
    assert plan.step_seconds >= plan.seconds["compute"] and plan.mfu <= 1.0 + 1e-9
    slow = plan_run(replace(config, model={"dtype": "float32"}), parse_topology("v5p:4x4x4"))
    assert slow.seconds["compute"] == pytest.approx(6 * plan.seconds["compute"])
    whole = plan_run(replace(config, model={"remat": "full"}), parse_topology("v5p:4x4x4"))
    assert 1.3 < whole.seconds["compute"] / plan.seconds["compute"] < 4 / 3


def test_quantized_layers_take_half_the_time_at_best() -> None:
    """v5p: 918 TOP/s of int8 for the dense layers of blocks, 459 TFLOP/s for the rest."""
    pytest.importorskip("qwix", reason="needs the extra quant")
    config = shipped("bert_large", mesh={"preset": "fsdp"}, model={"remat": "none"}, train={"quantization": "int8"})
    plain, quantized = (
        plan_run(one, parse_topology("v5p:4x4x4")) for one in (replace(config, train={"quantization": "none"}), config)
    )
    layers = config.train.batch_size * flops_per_row(make_workload(config)).layers
    saved = layers / (64 * 459e12) - layers / (64 * 918e12)
    assert plain.seconds["compute"] - quantized.seconds["compute"] == pytest.approx(saved)
    assert quantized.parts["products"] < plain.parts["products"]
    assert quantized.parts["elementwise"] > plain.parts["elementwise"]  # quantization reads every operand twice


def test_a_tensor_axis_that_cannot_divide_heads_is_refused() -> None:
    with pytest.raises(MeshError, match=r"25 'heads' entries.*25 = 6 x 4 \+ 1"):
        plan_run(shipped("gpt2_xl", mesh={"tensor": 4}, model={"vocab_size": 50304}), parse_topology("v5p:4x4x4"))


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(MeshError, match="cannot be divided equally over 1024 devices"):
        plan_run(shipped("bert_large"), parse_topology("v5p:8x8x16"))


@pytest.mark.slow  # test_stored_plans.test_search ranks in the default run
def test_the_search_ranks_by_time_and_reports_when_nothing_fits() -> None:
    plans = search(tiny.config("gpt2"), parse_topology("h100:8"))
    assert all(plan.fits for plan in plans)
    assert [plan.step_seconds for plan in plans] == sorted(plan.step_seconds for plan in plans)
    assert {plan.remat for plan in plans} == {"none", "dots", "full"}
    assert {plan.mesh["tensor"] for plan in plans} == {1, 2}  # two heads
    assert {plan.mesh["context"] for plan in plans} == {1}  # as many rows as chips, and short ones
    few = search(tiny.config("gpt2", train=dict(batch_size=2)), parse_topology("h100:8"))
    assert {plan.mesh["context"] for plan in few} == {2, 4, 8}
    with pytest.raises(
        MeshError,
        match="Nothing fits v5e:1x1: the plan with the least memory .* needs .* GiB, but a device has 15.75 GiB",
    ):
        search(replace(shipped("gpt2_xl"), train=dict(batch_size=1, accumulation_steps=1)), parse_topology("v5e:1x1"))
