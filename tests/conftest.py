"""Settings and fixtures of all tests."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import pathlib

import pytest

TESTS = pathlib.Path(__file__).resolve().parent


def pytest_configure(config: pytest.Config) -> None:
    """Set up the environment of the processes that tests start, and reduce compile time, which dominates tests of tiny models.

    Other processes import the package from this checkout and `helpers`, as this one does (`pythonpath` in pyproject.toml). Compiled
    programs stay in pytest's own cache; their machine code is not optimized, by emitters that compile three times as fast, in one piece.
    """
    # Tracing makes many objects that stay. By default a tenth of the time of tests is spent on searching them for garbage.
    gc.set_threshold(100_000, 20, 20)
    paths = [str(TESTS.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and hasattr(config, "cache"):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("xla"))
    flags = {"xla_backend_optimization_level": "0"}
    if importlib.metadata.version("jaxlib").startswith(
        "0.10."
    ):  # later versions of XLA may lack these options, and exit on them
        flags["xla_cpu_use_fusion_emitters"] = "false"
        flags["xla_cpu_parallel_codegen_split_count"] = "1"  # pieces of a program cost more than they save
    given = os.environ.get("XLA_FLAGS", "")
    added = (f"--{name}={value}" for name, value in flags.items() if name not in given)
    os.environ["XLA_FLAGS"] = " ".join([given, *added]).strip()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory):  # its class stays untyped: importing it here would import jax early
    """A tiny corpus and a cache for its tokens; see helpers/train_helpers.py."""
    from helpers.train_helpers import Lab

    return Lab.make(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session")
def bert_run(lab, tmp_path_factory: pytest.TempPathFactory):
    """The workdir of an uninterrupted run of `lab`; read-only."""
    workdir = tmp_path_factory.mktemp("runs") / "bert"
    assert lab.train(workdir, "--config.logging.trackers=tensorboard", "--config.profile.steps=12-13") == 0
    return workdir


@pytest.fixture(scope="session")
def gpt_run(lab, tmp_path_factory: pytest.TempPathFactory):
    """The same for the causal model, with accumulation, averaged parameters and nonfinite=skip; read-only."""
    workdir = tmp_path_factory.mktemp("runs") / "gpt"
    assert lab.train(workdir, variant="gpt") == 0
    return workdir
