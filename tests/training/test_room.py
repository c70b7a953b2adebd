"""A state that no device has memory for is refused before it is allocated."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from lm_research.errors import MeshError
from lm_research.training.state import check_memory


def test_a_state_that_no_device_has_memory_for() -> None:
    """2**50 float32 are 2**52 bytes: 4 PiB, or 4,194,304 GiB."""
    place = SingleDeviceSharding(jax.devices()[0])
    shapes = {"params": jax.ShapeDtypeStruct((2**25, 2**25), np.float32), "step": jax.ShapeDtypeStruct((), np.int32)}
    with pytest.raises(MeshError, match="take 4,194,304.0 GiB on each device"):
        check_memory(shapes, dict.fromkeys(shapes, place))
    check_memory({"step": shapes["step"]}, {"step": place})
