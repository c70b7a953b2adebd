"""The simulated cloud in place of gcloud and of the clock."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import pytest
from cloud_simulator import Cloud

from launch import gcloud, slices, tpu_vm


@pytest.fixture
def cloud(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cloud]:
    """Return a function that makes a cloud, with which the launchers speak from then on."""
    wheel = tmp_path / "wheel" / "lm_research-1-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_text("wheel")
    monkeypatch.setattr(tpu_vm, "build_wheel", lambda folder: (wheel, "abc123"))

    def make(*args: object, **kwargs: object) -> Cloud:
        made = Cloud(*args, **kwargs)
        monkeypatch.setattr(gcloud, "subprocess", made)
        for module in (gcloud, slices, tpu_vm):
            monkeypatch.setattr(module, "time", made)
        return made

    return make
