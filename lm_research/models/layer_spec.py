"""The specification of one layer, and its construction from flat fields.

Families and stored files give fields of a stack and of its layers in one flat mapping (`nested`); the modules use LayerSpecs only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lm_research.models.rotary import BY_LENGTH, TRAINED


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One kind of layer.

    Attributes:
      attention: "full"; "window", the nearest positions (Beltagy et al. 2020); "chunked", the positions of the same chunk of the
        sequence (Llama 4); "blocks", the near blocks of positions and the first and last ones (Zaheer et al. 2020; mask.block_bias); or
        "none", a layer without attention.
      window: size of the window, chunk or block. A causal window is the latest `window` positions, the query's included; a bidirectional one
        is window // 2 positions on each side and the query's.
      global_tokens: whether a bidirectional window has further queries, keys and values for chosen positions, which attend to all
        positions and which all attend to (Beltagy et al. 2020).
      block_sums: length of blocks whose summed inputs, after a norm, are further keys and values, with a bias by distance in blocks from
        another table of the stack (transient-global attention, Guo et al. 2021); 0 for none.
      random_blocks: number of random blocks that a block attends to in addition, all of which are the first block (see mask.block_bias).
      window_ahead: number of later positions in a bidirectional window if it is not window // 2 (T5Gemma 2); -1 is window // 2.
      positions: how scores depend on positions: "rotary" (Su et al. 2021), "relative" bias by distance bucket from one table per
        stack (Raffel et al. 2019), "alibi", a slope per head (Press et al. 2022), "disentangled", products with embeddings of the distance
        from one table per stack (He et al. 2020), or "none".
      own_relative_table: whether the layer has its own table of "relative" positions (UMT5).
      scaled_alibi: whether "alibi" is added before scores are scaled, as slope x position of the key in bfloat16 (Falcon).
      rotary_theta: base of the rotary wavelengths.
      rotary_scaling: how wavelengths are scaled, as pairs (name, value) that rotary.py describes; empty for no scaling.
      rotary_fraction: fraction of a head's width that is rotated, from its start.
      rotary_interleaved: whether the elements of a rotated pair are adjacent (GPT-J) instead of half the rotated width apart.
      rotary_values: whether values are rotated too (RoFormer).
      position_terms: terms of "disentangled" scores: "query" for queries times the distance's key (content to position), "key" for keys
        times the distance's query (position to content).
      position_projections: whether the layer has its own projections of the distances' embeddings; otherwise those of its queries and
        keys are used (DeBERTa-v3).

      query_key_norm: norm of queries and keys before rotation: over each "head", over the whole "projection" (OLMo 2), or "none".
      projection_clip: bound c of queries, keys and values, which are clipped to [-c, c] before norms and rotation (MPT); 0 for none.
      score_cap: soft cap c of the scores, c tanh(score / c) (Gemma 2); 0 for none.
      attention_scale: factor on scores; 0 is 1 / sqrt(T K), where T is 1 plus the number of `position_terms`.
      scale_by_layer: whether scores of layer n (from 1) are also divided by n.
      mix_norm: whether a norm precedes the attention's output projection.
      attention_gate: activation of a gate, computed from the attention's input, that multiplies its mixed values; empty for none.
      query_bias, key_bias, value_bias, output_bias: whether the attention's projections have biases.
      num_heads, num_kv_heads, head_size, intermediate_size: sizes where they differ from the architecture's; 0 is the same.

      residual: placement of the norms, with branch f and norm n: "pre" x + f(n(x)) (Radford et al. 2019), "post" n(x + f(x))
        (Vaswani et al. 2017), "normed" n(x) + f(n(x)), "output" x + n(f(x)) (OLMo 2), "sandwich" x + n'(f(n(x))) (Gemma 2), or "parallel"
        x + f(n(x)) + g(n'(x)) with attention f and feed-forward layer g (GPT-NeoX).
      residual_scale: factor on branches.
      attention_norm: whether a norm precedes the attention (ModernBERT's first layer has none).
      shared_norm: whether "parallel" branches share one norm (GPT-J).
      span_conv_width: width of convolutions with weights from the text, whose heads follow those of attention (ConvBERT); 0 for none.
      conv_width: width of a convolution of the stack's input, which is activated and added to the layer's output, followed by a norm
        (DeBERTa-v2's first layer); 0 for none.
      conv_groups, conv_activation: number of groups of its channels, and its activation.

      gated: whether a second projection is multiplied with the activated one (Shazeer 2020).
      inner_norm: whether a norm precedes the feed-forward layer's last matrix.
      mlp_groups: number of groups of equal size that the inputs and outputs of the feed-forward layer's matrices are divided into, each with a
        matrix of its own (ConvBERT).
      mlp_bias: whether the feed-forward layer has biases.
      mlp_output_bias: whether its output has a bias; None is `mlp_bias`.
      num_experts: number of expert feed-forward layers; 0 for one layer without a router.
      experts_per_token: number of experts with the highest router probability that each position uses.
      normalize_experts: whether the probabilities of the chosen experts are scaled to sum to one.
      shared_expert_size: width of one more expert, which all positions use, times the sigmoid of a learned gate (Qwen2-MoE); 0 for none.
    """

    attention: Literal["full", "window", "chunked", "blocks", "none"] = "full"
    window: int = 0
    window_ahead: int = -1
    global_tokens: bool = False
    block_sums: int = 0
    random_blocks: int = 0
    positions: Literal["rotary", "relative", "alibi", "disentangled", "none"] = "none"
    own_relative_table: bool = False
    scaled_alibi: bool = False
    rotary_theta: float = 10000.0
    rotary_scaling: tuple[tuple[str, float | str | tuple[float, ...]], ...] = ()
    rotary_fraction: float = 1.0
    rotary_interleaved: bool = False
    rotary_values: bool = False
    position_terms: tuple[Literal["query", "key"], ...] = ()
    position_projections: bool = True

    query_key_norm: Literal["none", "head", "projection"] = "none"
    projection_clip: float = 0.0
    score_cap: float = 0.0
    attention_scale: float = 0.0
    scale_by_layer: bool = False
    mix_norm: bool = False
    attention_gate: str = ""
    query_bias: bool = True
    key_bias: bool = True
    value_bias: bool = True
    output_bias: bool = True
    num_heads: int = 0
    num_kv_heads: int = 0
    head_size: int = 0
    intermediate_size: int = 0

    residual: Literal["pre", "post", "normed", "output", "sandwich", "parallel"] = "post"
    residual_scale: float = 1.0
    attention_norm: bool = True
    shared_norm: bool = False
    span_conv_width: int = 0
    conv_width: int = 0
    conv_groups: int = 1
    conv_activation: str = "tanh"

    gated: bool = False
    inner_norm: bool = False
    mlp_groups: int = 1
    mlp_bias: bool = True
    mlp_output_bias: bool | None = None
    num_experts: int = 0
    experts_per_token: int = 0
    normalize_experts: bool = True
    shared_expert_size: int = 0

    @property
    def reach(self) -> int:
        """Number of latest positions whose keys and values a causal layer's cache stores, its own included; 0 is all."""
        local = self.attention in ("window", "chunked") and not self.is_renewed
        return self.window if local else 0

    def has_sparse_blocks(self, length: int) -> bool:
        """Whether a sequence is long enough for attention to "blocks" to differ from full attention."""
        return self.attention == "blocks" and length > (5 + 2 * self.random_blocks) * self.window

    @property
    def score_scale(self) -> float:
        """Factor on scores; `head_size` must be filled in."""
        return self.attention_scale or (self.head_size * (1 + len(self.position_terms))) ** -0.5

    @property
    def uses_relative_table(self) -> bool:
        """Whether scores depend on the stack's table of relative positions."""
        return self.positions == "relative" and not self.own_relative_table

    @property
    def mask_traits(self) -> tuple[Any, ...]:
        """All that the layer's mask and its bias on scores depend on; sizes must be filled in."""
        alibi = (self.num_heads, self.scaled_alibi and self.score_scale) if self.positions == "alibi" else ()
        own = (self.own_relative_table, bool(self.block_sums), self.random_blocks)
        return (self.attention, self.window, self.window_ahead, self.positions, *own, *alibi)

    @property
    def rotary_width(self) -> int:
        """Number of elements of a head that are rotated; `head_size` must be filled in."""
        return int(self.head_size * self.rotary_fraction)

    @property
    def by_distance(self) -> bool:
        """Whether a number that depends on the distance is added to each score."""
        return self.positions in ("relative", "alibi", "disentangled")

    @property
    def rotary_by_length(self) -> bool:
        """Whether rotations depend on the number of positions in use."""
        return self.positions == "rotary" and dict(self.rotary_scaling).get("type") in BY_LENGTH

    @property
    def steady_length(self) -> int:
        """Number of positions up to which rotations do not depend on it; 0 is any number."""
        scaling: dict[str, Any] = dict(self.rotary_scaling)
        return int(scaling[TRAINED]) if self.rotary_by_length else 0

    @property
    def is_renewed(self) -> bool:
        """Whether all states change where there are more than `steady_length` positions, so that a cache must be computed again."""
        return self.rotary_by_length and dict(self.rotary_scaling)["type"] == "longrope"

    @property
    def across(self) -> LayerSpec:
        """The spec of the cross-attention: full, without positions."""
        return dataclasses.replace(
            self,
            attention="full",
            window=0,
            window_ahead=-1,
            global_tokens=False,
            block_sums=0,
            random_blocks=0,
            positions="none",
            own_relative_table=False,
            position_terms=(),
            span_conv_width=0,
            query_key_norm="none",
            mix_norm=False,
            attention_gate="",
        )


# Fields that have another meaning in a flat description: there these sizes are the stack's.
_STACK_FIELDS = set("attention positions num_heads num_kv_heads head_size intermediate_size".split())
# Field of a flat description -> the fields of LayerSpec that it sets.
_LAYER_FIELDS = {f.name: (f.name,) for f in dataclasses.fields(LayerSpec) if f.name not in _STACK_FIELDS} | {
    "norm": ("residual",),
    "qkv_bias": ("query_bias", "key_bias", "value_bias"),
    "score_positions": ("positions",),
    "window_from": (),
}
_SCORE_POSITIONS = ("rotary", "relative", "alibi", "disentangled")


def nested(flat: Mapping[str, Any], pattern: Sequence[Mapping[str, Any]] = ({},)) -> dict[str, Any]:
    """Split flat fields into those of an Architecture and a list `layers` of fields of LayerSpecs.

    A flat mapping has all fields of LayerSpec, and: `norm` for `residual`; `qkv_bias` for the three biases; `positions` of the scores
    ("rotary", "relative", "alibi" or "disentangled") as well as of the embeddings, or `score_positions` for those of the scores only; a `window` above 0 for attention "window"; and `window_from`, the
    first layer with a window.

    Args:
      flat: fields of the stack and of all layers.
      pattern: for each layer of the pattern, the fields of LayerSpec that differ.
    """
    fields = {name: value for name, value in flat.items() if name not in _LAYER_FIELDS}
    common = {ours: value for name, value in flat.items() for ours in _LAYER_FIELDS.get(name, ())}
    if flat.get("positions") in _SCORE_POSITIONS:
        common["positions"], fields["positions"] = flat["positions"], "none"
    layers = [_with_window(common | dict(differences)) for differences in pattern]
    first, depth = flat.get("window_from", 0), flat.get("num_layers", 0)
    if first and flat.get("window"):
        full = common | {"window": 0}
        layers = [full] * min(first, depth) + layers * (depth - first)
        layers = [full] if first >= depth else layers
    return {**fields, "layers": layers}


def _with_window(layer: dict[str, Any]) -> dict[str, Any]:
    return {"attention": "window", **layer} if layer.get("window") else layer
