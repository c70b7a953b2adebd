"""Eight simulated devices give the losses of one, through the real command and with dropout on."""

from __future__ import annotations

import json
import os
import pathlib
import shutil

import pytest

from helpers.train_helpers import Lab, checkpoints, finish, metrics

EIGHT = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
MESH = ("--config.mesh.fsdp=4", "--config.mesh.tensor=2")


def assert_close(a: pathlib.Path, b: pathlib.Path) -> None:
    """Losses by step within 1e-5, relative; accuracies count the same tokens except for ties."""
    left, right = metrics(a), metrics(b)
    assert [line["step"] for line in left] == [line["step"] for line in right]
    for x, y in zip(left, right, strict=True):
        losses = [name for name in x if name.endswith("loss_nats")]
        assert losses
        for name in losses:
            assert x[name] == pytest.approx(y[name], rel=1e-5), (name, x["step"])
        for name in x.keys() & {"grad_norm"}:
            assert x[name] == pytest.approx(y[name], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["bert", "gpt"])
def test_eight_devices(lab: Lab, variant: str, tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> None:
    alone = request.getfixturevalue(f"{variant}_run")
    code, output = finish(lab.start(tmp_path, *MESH, variant=variant, **EIGHT))
    assert code == 0, output
    assert "on 8 x cpu (fsdp 4 x tensor 2)" in output
    assert json.loads((tmp_path / "environment.json").read_text())[0]["devices"]["count"] == 8
    assert_close(tmp_path, alone)
    if variant == "gpt":  # a run on eight devices resumes on one
        (tmp_path / "summary.json").unlink()
        for step in checkpoints(tmp_path)[1:]:
            shutil.rmtree(tmp_path / "checkpoints" / str(step))
        code, output = finish(lab.start(tmp_path, variant=variant))
        assert code == 0, output
        assert_close(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", [("fsdp=8", "tensor=1"), ("data=8", "tensor=1"), ("data=2", "fsdp=2", "tensor=2")], ids=str
)
def test_a_run_on_one_device_resumes_on_eight(
    lab: Lab, bert_run: pathlib.Path, mesh: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(bert_run, workdir)
    (workdir / "summary.json").unlink()
    for step in checkpoints(workdir)[1:]:
        shutil.rmtree(workdir / "checkpoints" / str(step))
    code, output = finish(lab.start(workdir, *(f"--config.mesh.{size}" for size in mesh), **EIGHT))
    assert code == 0, output
    assert "resuming after step 6" in output
    assert_close(workdir, bert_run)
