"""Names of weights of Llama, and of decoders that share most of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_research.models.families.common import ParamMapping, attention, dense, norm, tensor

# Our norms of a block -> theirs.
NORMS = {"attention_norm": "input_layernorm", "feed_forward_norm": "post_attention_layernorm"}


def decoder_weights(
    classifier: str,
    stack: str = "decoder",
    norms: Mapping[str, str] = NORMS,
    final_norm: str = "norm",
    output: str = "o_proj",
    mlp: tuple[str, str] = ("up_proj", "down_proj"),
) -> tuple[ParamMapping, ...]:
    """Map embeddings, blocks and heads. A later mapping of the same parameter replaces one of these.

    Args:
      classifier: name of the classification layer.
      stack: "decoder", or "encoder" for a bidirectional stack.
      norms: norms of a block, by our name.
      final_norm: name of the norm after the last block.
      output: name of the attention's output projection.
      mlp: names of the feed-forward layer's first and last matrices.
    """
    ours, theirs = f"{stack}/layers", "@layers.{}"
    return (
        *tensor(f"{stack}/embeddings/tokens", "@embed_tokens.weight"),
        *attention(f"{ours}/attention", f"{theirs}.self_attn", "q_proj", "k_proj", "v_proj", output),
        *norm(f"{ours}/attention/query_norm", f"{theirs}.self_attn.q_norm"),
        *norm(f"{ours}/attention/key_norm", f"{theirs}.self_attn.k_norm"),
        *dense(f"{ours}/feed_forward/gate", f"{theirs}.mlp.gate_proj"),
        *dense(f"{ours}/feed_forward/up", f"{theirs}.mlp.{mlp[0]}"),
        *dense(f"{ours}/feed_forward/down", f"{theirs}.mlp.{mlp[1]}"),
        *(weight for name, other in norms.items() for weight in norm(f"{ours}/{name}", f"{theirs}.{other}")),
        *norm(f"{stack}/final_norm", f"@{final_norm}"),
        *tensor("next_token/table", "lm_head.weight"),
        *dense("classifier", classifier),
    )


def expert_weights(count: int, router: str, expert: str, gate: str, up: str, down: str) -> tuple[ParamMapping, ...]:
    """Map a router and `count` experts, by their names in a layer; `expert` has the index, and names of its matrices follow."""
    ours, layer = "decoder/layers/feed_forward", "@layers.{}"
    options: dict[str, Any] = dict(transpose=True, group=count, by_expert=True)
    matrices = {"gate": gate, "up": up, "down": down}
    return (
        *dense(f"{ours}/router", f"{layer}.{router}"),
        *(
            weight
            for name, theirs in matrices.items()
            for weight in tensor(f"{ours}/expert_{name}/kernel", f"{layer}.{expert}.{theirs}.weight", **options)
        ),
    )
