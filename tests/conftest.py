"""Pytest puts the folder of this file on sys.path, so that tests in subfolders can `import tiny` and `train_helpers`."""

from __future__ import annotations

import os

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Spares compile time, most of what tests of tiny models cost, in this process and those it starts.

    Compiled programs stay in pytest's own cache; their machine code is not optimised, which halves the rest.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and hasattr(config, "cache"):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("xla"))
    if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory):  # its class stays untyped: importing it here would import jax early
    """A tiny corpus and a cache for its tokens; see train_helpers.py."""
    from train_helpers import Lab

    return Lab.make(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session")
def bert_run(lab, tmp_path_factory: pytest.TempPathFactory):
    """The workdir of an undisturbed run of `lab`; to be read only."""
    workdir = tmp_path_factory.mktemp("runs") / "bert"
    assert lab.train(workdir, "--config.logging.trackers=tensorboard", "--config.profile.steps=12-13") == 0
    return workdir


@pytest.fixture(scope="session")
def gpt_run(lab, tmp_path_factory: pytest.TempPathFactory):
    """The same for the causal model, with accumulation, averaged parameters and nonfinite=skip; to be read only."""
    workdir = tmp_path_factory.mktemp("runs") / "gpt"
    assert lab.train(workdir, variant="gpt") == 0
    return workdir
