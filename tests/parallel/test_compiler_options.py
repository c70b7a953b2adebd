"""Options of the compiler: which are set, how a run changes them, and refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from lm_research.errors import ConfigError
from lm_research.parallel.compiler_options import OPTIONS, compiler_options, parse_flags, refused_options

SIZES = dict(data=1, fsdp=1, expert=1, context=1, tensor=1)
WINDOWED = "xla_jf_spmd_threshold_for_windowed_einsum_mib"
FUSED = "xla_tpu_enable_async_collective_fusion"
DATA = "xla_tpu_enable_data_parallel_all_reduce_opt"


LEVEL = "xla_backend_optimization_level"


def names(kind: str = "TPU v5 lite", **sizes: int) -> set[str]:
    return set(compiler_options((), SIZES | sizes, "tpu", kind))


@pytest.fixture(autouse=True)
def no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def test_options_depend_on_platform_and_mesh() -> None:
    assert compiler_options((), SIZES | {"fsdp": 8}, "gpu") == {}
    assert set(compiler_options((), SIZES | {"fsdp": 8}, "cpu")) == {LEVEL}
    assert names() == set()  # nothing to communicate
    assert WINDOWED in names(fsdp=16) and DATA not in names(fsdp=16)
    assert DATA in names(data=16) and WINDOWED not in names(data=16)
    assert {WINDOWED, DATA} <= names(data=4, fsdp=64)


@pytest.mark.parametrize("kind", ["TPU v4", "TPU v5", "TPU v6 lite", "TPU7x"])
def test_collectives_are_fused_on_v5e_only(kind: str) -> None:
    """The compiler refuses the program otherwise (libtpu 0.0.52)."""
    assert {name for name in names(fsdp=16) - names(kind, fsdp=16)} == {
        FUSED + end for end in ("", "_fuse_all_reduce", "_fuse_all_gather", "_multiple_steps")
    }


def test_every_option_has_a_reason_and_occurs_once() -> None:
    for options in OPTIONS.values():
        assert len({option.name for option in options}) == len(options)
        assert all(option.reason.endswith(".") and option.value for option in options)


def test_a_run_replaces_extends_and_removes_options() -> None:
    flags = (f"{WINDOWED}=5", "--xla_other = 1", f"{DATA}=default")
    options = compiler_options(flags, SIZES | {"data": 4, "fsdp": 4}, "tpu", "TPU v4")
    assert options[WINDOWED] == "5" and options["xla_other"] == "1" and DATA not in options
    assert compiler_options(("xla_other=1", f"{LEVEL}=default"), SIZES, "cpu") == {"xla_other": "1"}


def test_the_environment_decides_over_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", f"--xla_other=1 --{LEVEL}=2")
    assert compiler_options((), SIZES, "cpu") == {}
    assert compiler_options((f"{LEVEL}=3",), SIZES, "cpu") == {LEVEL: "3"}
    monkeypatch.setenv("XLA_FLAGS", f"--{LEVEL}_of_another=2")
    assert compiler_options((), SIZES, "cpu") == {LEVEL: "1"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("xla_a",), "NAME=VALUE"),
        (("=1",), "NAME=VALUE"),
        (("xla_a=",), "NAME=VALUE"),
        (("xla_a=1", "xla_a=2"), "twice"),
    ],
)
def test_malformed_flags_are_refused(flags: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_flags(flags)


@pytest.mark.parametrize("flag", ["xla_no_such_option=true", "xla_cpu_enable_fast_math=perhaps"])
def test_what_the_compiler_refuses_is_named(flag: str) -> None:
    with pytest.raises(ConfigError, match=f"refuses {flag.partition('=')[0]}"), refused_options([flag]):
        jax.jit(lambda x: x + 1, compiler_options=parse_flags([flag])).lower(jnp.ones(2)).compile()


def test_other_errors_of_the_compiler_pass_through() -> None:
    with pytest.raises(ValueError, match="something else"), refused_options(["xla_a=1"]):
        raise ValueError("something else")
