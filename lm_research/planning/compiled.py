"""Plans by the compiler: the real training step, compiled ahead of time for TPUs that need not be present."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from lm_research.config import Config
from lm_research.errors import MeshError
from lm_research.models.quantization import check_quantization
from lm_research.objectives.balanced import balanced
from lm_research.parallel.batches import resolve_batch
from lm_research.parallel.compiler_options import compiler_options, refused_options
from lm_research.parallel.mesh import arrange_devices, network_axis
from lm_research.parallel.rules import batch_sharding
from lm_research.planning.calibration import Factors, factors
from lm_research.planning.communication import Network
from lm_research.planning.estimate import abstract_mesh
from lm_research.planning.reading import Reading, Temporary, read
from lm_research.planning.schedule import Machine
from lm_research.planning.topology import Topology
from lm_research.planning.workload import flops_per_row, make_workload
from lm_research.training.optimizer import make_optimizer
from lm_research.training.schedules import make_schedule
from lm_research.training.state import init_state, state_shardings
from lm_research.training.step import jit_train_step, make_train_step

# These keep libtpu from querying a TPU's metadata at start, and from claiming a chip.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True)
class CompiledPlan:
    """The compiler's figures for a step, of one device (a chip, or half of a tpu7x).

    Attributes:
      compile_seconds: compilation time on this machine.
      peak_bytes: peak memory: arguments, results that do not reuse their memory, and temporaries.
      argument_bytes: memory of the state and the batch.
      temporary_bytes: memory of everything else, at its peak.
      donated: number of arrays of the state that the step may reuse.
      reused: number of arrays that it reuses.
      flops: operations of the model in a step, of one device.
      roof_mfu, cycles_mfu: those over the peak, with the step times of planning/reading.py.
      calibration: factors from these to real MFU, or None if no speed of the chip is published; see planning/calibration.py.
      reading: cost of the step, instruction by instruction, see planning/reading.py.
      float32: temporaries of the reading that are float32 although the model computes in another type, those with the most bytes first.
    """

    compile_seconds: float
    peak_bytes: int
    argument_bytes: int
    temporary_bytes: int
    donated: int
    reused: int
    flops: float
    roof_mfu: float
    cycles_mfu: float
    calibration: Factors | None
    reading: Reading
    float32: tuple[Temporary, ...]


def compile_step(config: Config, topology: Topology, effort: str = "full") -> CompiledPlan:
    """Compile the step of a run for a topology of TPUs.

    Args:
      config: config of the run.
      topology: slices of TPUs.
      effort: "low" takes a tenth of the time and changes the peak by up to 15%.

    Raises:
      MeshError: libtpu is missing or does not support the topology, the chips are not TPUs, or the step does not fit.
    """
    config = resolve_batch(config, topology.num_devices)
    abstract_mesh(config, topology)
    mesh = topology_mesh(config, topology)
    work = make_workload(config)
    check_quantization(config, work.definition.arch, mesh.shape, topology.chip)
    optimizer = make_optimizer(config.optimizer)
    objective = balanced(work.objective, work.definition.arch)
    shapes = jax.eval_shape(lambda: init_state(work.definition, optimizer, config, objective))
    shardings = state_shardings(mesh, work.definition, shapes, config.mesh)
    step = make_train_step(objective, work.definition, optimizer, make_schedule(config), config)
    micro = config.train.accumulation_steps
    batch = work.batch(config.train.batch_size // micro, micro)
    rows = batch_sharding(mesh, 1)
    placed = (jax.tree.map(_placed, shapes, shardings), jax.tree.map(lambda x: _placed(x, rows), batch))
    begin = time.perf_counter()
    with jax.set_mesh(mesh), _precision(config):
        options = compiler_options(config.xla.flags)
        lowered = jit_train_step(step, shardings, options).lower(*placed)
        try:
            with refused_options(config.xla.flags):
                compiled, text = compile_program(lowered, _effort(effort))
        except jax.errors.JaxRuntimeError as error:
            raise _refused(error, topology) from error
    seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    assert memory is not None, "every backend provides it for a compiled program"
    rates, flops = machine(topology, mesh), flops_per_row(work).total * config.train.batch_size / topology.num_devices
    reading = read(text, rates)
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return CompiledPlan(
        seconds,
        kept + memory.temp_size_in_bytes,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        len(jax.tree.leaves(shapes)),
        reused_arguments(text),
        flops,
        flops / rates.flops / reading.roof_seconds,
        flops / rates.flops / reading.cycles_seconds,
        factors(topology.chip_name),
        reading,
        () if config.model.dtype == "float32" else reading.float32(),
    )


def topology_mesh(config: Config, topology: Topology) -> Mesh:
    """Make the run's mesh over described chips; raise a MeshError if libtpu cannot describe them."""
    if not topology.chip.torus:
        raise MeshError(f"--compile compiles for TPUs, but {topology.name} are GPUs. Remove --compile.")
    if importlib.util.find_spec("libtpu") is None:
        raise MeshError(
            "--compile needs the TPU compiler, which the extra `plan` installs: pip install 'lm_research[plan]' (or pip install "
            "libtpu). No TPU is needed."
        )
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    more: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.chip.described_as:
        more["chip_config_name"] = topology.chip.described_as
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **more).devices
    except Exception as error:  # of many types, by version
        raise MeshError(f"libtpu does not support the topology {topology.name}: {error}") from error
    shape = tuple(abstract_mesh(config, topology).shape.values())
    return arrange_devices(shape, devices, topology.slices)


def machine(topology: Topology, mesh: Mesh) -> Machine:
    """Return the rates of a device of the mesh, as planning/schedule.py needs them."""
    shape, device = dict(mesh.shape), topology.device
    network = Network.of(topology, shape, network_axis(shape, topology.slices))
    return Machine(device.flops, device.hbm_bandwidth, device.clock, network, device.product_flops(1))


def compile_program(
    lowered: jax.stages.Lowered, options: Mapping[str, Any] | None = None
) -> tuple[jax.stages.Compiled, str]:
    """Compile a program, and return it with the text of the optimized module.

    The text is the compiler's own dump. `as_text` would parse the module again first, which fails for the programs of some chips if jaxlib
    is older than libtpu.
    """
    with tempfile.TemporaryDirectory() as folder:
        dump: dict[str, str | bool] = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options={**(options or {}), **dump})
        (file,) = pathlib.Path(folder).glob("*.after_codegen.txt")
        return compiled, file.read_text()


def _placed(leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@contextlib.contextmanager
def _precision(config: Config) -> Iterator[None]:
    """Set the precision of training: float32 models use float32 products."""
    with jax.default_matmul_precision("float32" if config.model.dtype == "float32" else "default"):
        yield


def _effort(effort: str) -> dict[str, Any] | None:
    if effort == "full":
        return None
    version = tuple(int(part) for part in jax.__version__.split(".")[:2])
    return {"exec_time_optimization_effort": -1.0} if version < (0, 12) else {"optimization_level": 9}


def _refused(error: Exception, topology: Topology) -> MeshError:
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" in text:
        need = re.search(r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm", text)
        amount = f"it needs {need[1]} of {need[2]} bytes" if need else "its memory is too small"
        return MeshError(
            f"The step does not fit a chip of {topology.name}: {amount}. Raise train.accumulation_steps or mesh.fsdp, or set "
            "--config.model.remat=full; --search lists plans that fit."
        )
    return MeshError(f"The compiler refuses this step for {topology.name}: {text[:600]}")


def reused_arguments(text: str) -> int:
    """Count the arguments whose memory results reuse, according to the module's header."""
    header = text.partition("\n")[0]
    _, _, alias = header.partition("input_output_alias={")
    return len(re.findall(r"\{[\d, ]*\}: \(\d+,", alias.partition("entry_computation_layout")[0]))
