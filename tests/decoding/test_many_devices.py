"""A model divided over eight devices generates what it does on one, also in a server, and its cache is divided too."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import many_devices
import pytest

from helpers import toys
from helpers.devices import eight_devices

HERE = pathlib.Path(__file__).resolve().parent


@pytest.mark.slow
def test_a_divided_model_generates_the_same() -> None:
    command = [sys.executable, str(HERE / "many_devices.py")]
    done = subprocess.run(command, env=eight_devices(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["devices"] == 8
    assert found["texts"] == many_devices.texts(toys.language_model())
    assert found["served"] == many_devices.served(toys.language_model())
    said = [row[-6:] for row in found["texts"]["greedy"]]
    assert found["served"] == ["".join(map(str, row)) for row in said]
    rows, heads, *rest = found["keys"]
    assert found["shard"] == [rows // 4, heads // 2, *rest]  # rows over data and fsdp, heads over tensor
