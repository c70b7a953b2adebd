"""Architectures of GGUF files: how llama.cpp names and stores what transformers has in config.json and in its tensors.

Layouts are those of its conversion from Hugging Face (conversion/), inverted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lm_research.interop import gguf_names
from lm_research.interop.gguf_file import GgufFile

Config = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class GgufArchitecture:
    """A value of general.architecture.

    Attributes:
      model_type: that of config.json.
      class_name: the entry of `architectures`.
      names: of modules, see gguf_names.py.
      keys: of metadata, without the architecture -> those of config.json, for numbers that files must have.
      optional: further keys, which files may lack.
      fixed: keys of config.json that files do not have.
      more: makes further keys of config.json from the file, its metadata without the architecture, and the keys so far.
      kv_key: key of config.json with the number of key and value heads.
      rotary: whether positions are rotary.
      partial: whether a part of each head may be rotated.
      pairs: whether queries and keys are stored with the elements that are rotated together next to each other.
      norm_offset: difference between the stored scales of norms and those of transformers.
      fused_by_group: whether transformers stores queries, keys and values by group of heads, and files all queries first.
      tied: whether the output table belongs to the token table, if files do not have another.
      causal: whether a position attends only to itself and earlier ones.
    """

    model_type: str
    class_name: str
    names: gguf_names.Names
    keys: Mapping[str, str]
    optional: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    more: Callable[[GgufFile, Mapping[str, Any], Config], Config] = lambda file, data, config: {}
    kv_key: str = "num_key_value_heads"
    rotary: bool = True
    partial: bool = False
    pairs: bool = False
    norm_offset: float = 0.0
    fused_by_group: bool = False
    tied: bool = False
    causal: bool = True


_LLAMA_KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_NORM = "attention.layer_norm_epsilon"
_LAYER_NORM_KEYS = {key: name for key, name in _LLAMA_KEYS.items() if not key.endswith("epsilon")}
_GPT2_KEYS = {
    "block_count": "n_layer",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "context_length": "n_positions",
    _NORM: "layer_norm_epsilon",
}
_BLOOM_KEYS = {
    "block_count": "n_layer",
    "embedding_length": "hidden_size",
    "attention.head_count": "n_head",
    _NORM: "layer_norm_epsilon",
}
_FALCON_KEYS = {**_LAYER_NORM_KEYS, "feed_forward_length": "ffn_hidden_size", _NORM: "layer_norm_epsilon"}
_T5_KEYS = {
    "block_count": "num_layers",
    "embedding_length": "d_model",
    "feed_forward_length": "d_ff",
    "attention.head_count": "num_heads",
    "attention.key_length": "d_kv",
    "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
    "attention.relative_buckets_count": "relative_attention_num_buckets",
}
_CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_EXPERTS = {"expert_used_count": "num_experts_per_tok"}


def _qwen_experts(file: GgufFile, data: Mapping[str, Any], config: Config) -> Config:
    """Numbers and widths of experts, which older files have only as shapes."""
    count, width, _ = file.tensors["blk.0.ffn_gate_exps.weight"].shape
    more: Config = {"num_experts": count, "moe_intermediate_size": width, "decoder_sparse_step": 1}
    if (shared := file.tensors.get("blk.0.ffn_gate_shexp.weight")) is not None:
        more["shared_expert_intermediate_size"] = shared.shape[0]
    return more


def _falcon(file: GgufFile, data: Mapping[str, Any], config: Config) -> Config:
    norms = 2 if "blk.0.attn_norm_2.weight" in file.tensors else 1
    grouped = config["num_kv_heads"] > 1 or norms == 2
    more: Config = {
        "new_decoder_architecture": grouped,
        "multi_query": not grouped,
        "parallel_attn": True,
        "bias": False,
    }
    return more | ({"num_ln_in_parallel_attn": norms} if grouped else {})


def _gemma(file: GgufFile, data: Mapping[str, Any], config: Config) -> Config:
    """The factor on scores of the 27B models (46 or 62 layers), which files do not have; the others have the family's default."""
    large = config["num_hidden_layers"] in (46, 62) and config["hidden_size"] > 4000
    return {"query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"]} if large else {}


def _gemma3(file: GgufFile, data: Mapping[str, Any], config: Config) -> Config:
    """Rotary positions by kind of layer; those of windowed layers are not scaled."""
    full = config.pop("rope_parameters")
    local = {"rope_type": "default", "rope_theta": float(data.get("rope.freq_base_swa", 10000.0))}
    theta = float(data.get("rope.freq_base", 1e6))
    rope = {"full_attention": full | {"rope_theta": theta}, "sliding_attention": local}
    return {"rope_parameters": rope, **_gemma(file, data, config)}


def _phi3(file: GgufFile, data: Mapping[str, Any], config: Config) -> Config:
    """LongRoPE, whose divisors are tensors."""
    more: Config = {}
    if (trained := data.get("rope.scaling.original_context_length")) is not None:
        more["original_max_position_embeddings"] = trained
    factors = {kind: file.tensors.get(f"rope_factors_{kind}.weight") for kind in ("short", "long")}
    if None in factors.values():
        return more
    lists = {f"{kind}_factor": np.asarray(one.load(), np.float64).tolist() for kind, one in factors.items() if one}
    return more | {"rope_parameters": config["rope_parameters"] | {"rope_type": "longrope", **lists}}


def _neox(file: GgufFile, data: Mapping[str, Any], config: Config) -> Config:
    return {"use_parallel_residual": bool(data.get("use_parallel_residual", True))}


def _t5(file: GgufFile, data: Mapping[str, Any], config: Config) -> Config:
    """v1.1 has a gate, v1.0 a scaled output that is tied to the token table."""
    scaled = "output.weight" not in file.tensors
    decoder = data.get("decoder_block_count", config["num_layers"])
    start = data.get("decoder_start_token_id", 0)
    return {
        "num_decoder_layers": decoder,
        "decoder_start_token_id": start,
        "feed_forward_proj": "gated-gelu" if "enc.blk.0.ffn_gate.weight" in file.tensors else "relu",
        "tie_word_embeddings": scaled,
        "is_encoder_decoder": True,
    }


def _bert(file: GgufFile, data: Mapping[str, Any], config: Config) -> Config:
    """Numbers of rows that files have only as shapes."""
    tables = {"type_vocab_size": "token_types.weight", "max_position_embeddings": "position_embd.weight"}
    return {key: file.tensors[name].shape[0] for key, name in tables.items() if name in file.tensors}


_LLAMA = GgufArchitecture("llama", "LlamaForCausalLM", gguf_names.llama_names(), _LLAMA_KEYS, pairs=True)
_MIXTRAL = dataclasses.replace(
    _LLAMA,
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    names=gguf_names.llama_names(**gguf_names.MIXTRAL_EXPERTS),
    optional={"expert_count": "num_local_experts", **_EXPERTS},
)
_GEMMA = GgufArchitecture(
    "gemma",
    "GemmaForCausalLM",
    gguf_names.llama_names(),
    _LLAMA_KEYS,
    norm_offset=1.0,
    fixed={"hidden_act": "gelu_pytorch_tanh"},
)
_GEMMA2 = dataclasses.replace(
    _GEMMA,
    model_type="gemma2",
    class_name="Gemma2ForCausalLM",
    names=gguf_names.llama_names(**gguf_names.SANDWICH),
    optional={**_WINDOW, **_CAPS},
    fixed={},
    more=_gemma,
)
_QWEN_MOE = GgufArchitecture(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    gguf_names.llama_names(**gguf_names.QWEN_EXPERTS),
    {key: name for key, name in _LLAMA_KEYS.items() if key != "feed_forward_length"},
    optional={"feed_forward_length": "intermediate_size", **_EXPERTS},
    fixed={"norm_topk_prob": False},
    more=_qwen_experts,
)
_BERT = GgufArchitecture(
    "bert",
    "BertModel",
    gguf_names.BERT,
    {**_LAYER_NORM_KEYS, _NORM: "layer_norm_eps"},
    kv_key="",
    rotary=False,
    more=_bert,
    causal=False,
)
_T5 = GgufArchitecture(
    "t5",
    "T5ForConditionalGeneration",
    {},
    _T5_KEYS,
    kv_key="",
    rotary=False,
    more=_t5,
    optional={"context_length": "n_positions"},
)

ARCHITECTURES: Mapping[str, GgufArchitecture] = {
    "llama": _LLAMA,
    "qwen2": GgufArchitecture("qwen2", "Qwen2ForCausalLM", gguf_names.llama_names(), _LLAMA_KEYS),
    "qwen3": GgufArchitecture("qwen3", "Qwen3ForCausalLM", gguf_names.llama_names(), _LLAMA_KEYS),
    "qwen2moe": _QWEN_MOE,
    "qwen3moe": dataclasses.replace(
        _QWEN_MOE, model_type="qwen3_moe", class_name="Qwen3MoeForCausalLM", fixed={"norm_topk_prob": True}
    ),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3": dataclasses.replace(
        _GEMMA2,
        model_type="gemma3_text",
        class_name="Gemma3ForCausalLM",
        optional={**_GEMMA2.optional, "attention.sliding_window_pattern": "sliding_window_pattern"},
        more=_gemma3,
    ),
    "phi2": GgufArchitecture(
        "phi",
        "PhiForCausalLM",
        gguf_names.PHI,
        {**_LAYER_NORM_KEYS, _NORM: "layer_norm_eps"},
        partial=True,
    ),
    "phi3": GgufArchitecture(
        "phi3",
        "Phi3ForCausalLM",
        gguf_names.llama_names(attn_qkv="self_attn.qkv_proj", ffn_up="mlp.gate_up_proj"),
        _LLAMA_KEYS,
        partial=True,
        optional=_WINDOW,
        more=_phi3,
    ),
    "starcoder2": GgufArchitecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        gguf_names.llama_names(ffn_up="mlp.c_fc", ffn_down="mlp.c_proj"),
        {**_LAYER_NORM_KEYS, _NORM: "norm_epsilon"},
        optional=_WINDOW,
    ),
    "granite": dataclasses.replace(
        _LLAMA,
        model_type="granite",
        class_name="GraniteForCausalLM",
        optional={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
    "olmo2": GgufArchitecture(
        "olmo2",
        "Olmo2ForCausalLM",
        gguf_names.llama_names(
            post_attention_norm="post_attention_layernorm", post_ffw_norm="post_feedforward_layernorm"
        ),
        _LLAMA_KEYS,
    ),
    "smollm3": dataclasses.replace(_LLAMA, model_type="smollm3", class_name="SmolLM3ForCausalLM"),
    "seed_oss": GgufArchitecture(
        "seed_oss",
        "SeedOssForCausalLM",
        gguf_names.llama_names(post_attention_norm="post_attention_layernorm"),
        _LLAMA_KEYS,
    ),
    "gpt2": GgufArchitecture(
        "gpt2", "GPT2LMHeadModel", gguf_names.GPT2, _GPT2_KEYS, kv_key="", rotary=False, tied=True
    ),
    "gptneox": GgufArchitecture(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        gguf_names.GPT_NEOX,
        {**_LAYER_NORM_KEYS, _NORM: "layer_norm_eps"},
        kv_key="",
        partial=True,
        fused_by_group=True,
        more=_neox,
    ),
    "bloom": GgufArchitecture(
        "bloom",
        "BloomForCausalLM",
        gguf_names.FUSED,
        _BLOOM_KEYS,
        {"feed_forward_length": "n_inner"},
        kv_key="",
        rotary=False,
        fused_by_group=True,
        tied=True,
    ),
    "falcon": GgufArchitecture(
        "falcon",
        "FalconForCausalLM",
        gguf_names.FUSED,
        _FALCON_KEYS,
        kv_key="num_kv_heads",
        fused_by_group=True,
        tied=True,
        more=_falcon,
    ),
    "t5": _T5,
    "bert": _BERT,
    "nomic-bert": dataclasses.replace(
        _BERT, model_type="nomic_bert", class_name="NomicBertModel", names=gguf_names.NOMIC_BERT, rotary=True
    ),
}


def architecture_of(name: str, file: GgufFile) -> GgufArchitecture:
    """Return the architecture of a file whose general.architecture is `name`, with the names of its variant."""
    found = ARCHITECTURES[name]
    if found is _LLAMA and file.metadata.get(f"{name}.expert_count"):
        return _MIXTRAL
    if found.model_type == "falcon":
        return dataclasses.replace(found, names=gguf_names.falcon_names("blk.0.attn_norm_2.weight" in file.tensors))
    if found is _T5:
        names = gguf_names.t5_names(gated="enc.blk.0.ffn_gate.weight" in file.tensors)
        own = "enc.blk.1.attn_rel_b.weight" in file.tensors  # a table in each layer
        found = dataclasses.replace(found, names=names)
        return dataclasses.replace(found, model_type="umt5", class_name=f"UM{found.class_name}") if own else found
    return found
