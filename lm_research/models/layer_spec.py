"""One layer of a stack in numbers, and how a flat description becomes layers.

Families and files name fields of a stack and of its layers side by side (`nested`); the modules know LayerSpecs alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One kind of layer.

    Attributes:
      attention: "full"; "window", the nearest positions (Beltagy et al. 2020); "chunked", those of the same chunk of the row
        (Llama 4); or "none", a layer that is a feed-forward layer alone.
      window: how wide: of a causal window the latest positions, itself included; of one to both sides window // 2 on each side, and
        itself; of chunks their length.
      positions: how scores depend on them: "rotary" (Su et al. 2021), "relative" bias by distance bucket, of one table for the
        stack (Raffel et al. 2019), "alibi", a slope for each head (Press et al. 2022), or "none".
      rotary_theta: base of the rotary wavelengths.
      rotary_scaling: how they are stretched: pairs (name, value), "type" being "linear" or "llama3"; empty is not.
      rotary_fraction: share of a head's width that is rotated, its beginning.
      rotary_interleaved: neighbors turn together (GPT-J), instead of numbers half of that width apart.

      query_key_norm: norm of queries and keys before they are rotated: of each "head", of the whole "projection" (OLMo 2), "none".
      score_cap: scores become cap tanh(score / cap) (Gemma 2); 0 leaves them.
      attention_scale: factor on scores; 0 is 1 / sqrt(K).
      scale_by_layer: scores of layer n (from 1) are also divided by n.
      query_bias, key_bias, value_bias, output_bias: biases of the attention's projections.
      num_heads, num_kv_heads, head_size, intermediate_size: where they differ from the architecture's; 0 is the same.

      residual: where norms are, with branch f and norm n: "pre" x + f(n(x)) (Radford et al. 2019), "post" n(x + f(x)) (Vaswani et
        al. 2017), "output" x + n(f(x)) (OLMo 2), "sandwich" x + n'(f(n(x))) (Gemma 2), or "parallel" x + f(n(x)) + g(n'(x)) with
        attention f and feed-forward layer g (GPT-NeoX).
      residual_scale: factor on branches.
      attention_norm: whether the attention has its first norm at all (ModernBERT's first layer has none).
      shared_norm: whether "parallel" branches have one norm (GPT-J).

      gated: a second projection, multiplied with the activated one (Shazeer 2020).
      mlp_bias: biases of the feed-forward layer.
      num_experts: how many feed-forward layers there are, of which each position takes `experts_per_token`; 0 is a plain one.
      experts_per_token: those with the highest router probability.
      normalize_experts: whether their probabilities are made to sum to one.
    """

    attention: Literal["full", "window", "chunked", "none"] = "full"
    window: int = 0
    positions: Literal["rotary", "relative", "alibi", "none"] = "none"
    rotary_theta: float = 10000.0
    rotary_scaling: tuple[tuple[str, float | str], ...] = ()
    rotary_fraction: float = 1.0
    rotary_interleaved: bool = False

    query_key_norm: Literal["none", "head", "projection"] = "none"
    score_cap: float = 0.0
    attention_scale: float = 0.0
    scale_by_layer: bool = False
    query_bias: bool = True
    key_bias: bool = True
    value_bias: bool = True
    output_bias: bool = True
    num_heads: int = 0
    num_kv_heads: int = 0
    head_size: int = 0
    intermediate_size: int = 0

    residual: Literal["pre", "post", "output", "sandwich", "parallel"] = "post"
    residual_scale: float = 1.0
    attention_norm: bool = True
    shared_norm: bool = False

    gated: bool = False
    mlp_bias: bool = True
    num_experts: int = 0
    experts_per_token: int = 0
    normalize_experts: bool = True

    @property
    def reach(self) -> int:
        """How many of the latest positions a causal layer can see, its own among them; 0 is all."""
        return self.window if self.attention in ("window", "chunked") else 0

    @property
    def rotary_width(self) -> int:
        """How many numbers of a head are rotated; of a spec with its sizes."""
        return int(self.head_size * self.rotary_fraction)

    @property
    def across(self) -> LayerSpec:
        """Of the attention to an encoder, which sees all of it, wherever it is."""
        return dataclasses.replace(
            self, attention="full", window=0, positions="none", query_key_norm="none", score_cap=0.0
        )


# Fields that are a layer's in flat descriptions too. Sizes there are those of the stack.
_OF_LAYERS = {field.name for field in dataclasses.fields(LayerSpec)} - {
    "attention",
    "positions",
    "num_heads",
    "num_kv_heads",
    "head_size",
    "intermediate_size",
}
_SAYS = {name: (name,) for name in _OF_LAYERS} | {
    "norm": ("residual",),
    "qkv_bias": ("query_bias", "key_bias", "value_bias"),
    "window_from": (),
}
_ON_SCORES = ("rotary", "relative", "alibi")


def nested(flat: Mapping[str, Any], pattern: Sequence[Mapping[str, Any]] = ({},)) -> dict[str, Any]:
    """Fields of an Architecture, with `layers` as a list of fields of LayerSpecs, from flat ones.

    Flat are: `norm` ("pre", "post", ...) for `residual`; `qkv_bias` for three; `positions` "rotary", "relative" or "alibi" in the place of
    those of embeddings; `window` above 0 for windows; `window_from`, the first layer that has one; and all others of LayerSpec.

    Args:
      flat: fields of the stack and of all layers.
      pattern: for each layer of the pattern, the fields of LayerSpec that differ.
    """
    fields = {name: value for name, value in flat.items() if name not in _SAYS}
    common = {ours: value for name, value in flat.items() for ours in _SAYS.get(name, ())}
    if flat.get("positions") in _ON_SCORES:
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
