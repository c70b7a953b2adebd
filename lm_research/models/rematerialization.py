"""What a stack's backward pass reads from the forward pass, and what it computes again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from lm_research.models.architecture import Architecture
from lm_research.models.layers import STATISTICS


def remat_policy(arch: Architecture) -> Callable[..., Any]:
    """The policy of jax.checkpoint for `arch.remat`.

    With "names" and "offload" the statistics of norms and of attention are kept too, which are small. Of quantized products the scaled
    results are kept, which take half as much memory as the sums of 32 bits.
    """
    policies = jax.checkpoint_policies
    if arch.remat == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[STATISTICS],
            names_which_can_be_offloaded=list(arch.remat_names),
            offload_src="device",
            offload_dst="pinned_host",
        )
    if arch.remat == "names":
        return policies.save_only_these_names(STATISTICS, *arch.remat_names)
    if arch.remat == "dots" and arch.quantization != "none":
        return policies.save_only_these_names("heads", "mlp", "embed")
    return policies.dots_with_no_batch_dims_saveable if arch.remat == "dots" else policies.nothing_saveable
