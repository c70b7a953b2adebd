"""Make the .npz files next to this script: results of transformers' models on PyTorch, one for each kind of block.

Run in a separate environment with torch 2.13 and transformers 5.24; tests need neither:

    python tests/models/block_goldens/make_goldens.py

Tiny models with random weights (rounded to float16, in which they are stored, and computed in float32), two rows of which the second is
padded on the right. Each file holds the weights under their Hugging Face names, `tokens` and `mask`, the model's outputs
(`states` or `logits`, at real positions), and the versions that made it (`origin`).
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import torch
import transformers
from transformers.masking_utils import chunked_overlay
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

HERE = pathlib.Path(__file__).parent
LENGTH, REAL, VOCAB = 12, 9, 32
SIZES = dict(vocab_size=VOCAB, hidden_size=16, num_attention_heads=2, intermediate_size=24)
SHARED = dict(num_key_value_heads=1, head_dim=8, max_position_embeddings=64, pad_token_id=0)
ROPE = {"rope_type": "default", "rope_theta": 100.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "modernbert": (
        "ModernBertModel",
        dict(
            **SIZES,
            num_hidden_layers=7,
            local_attention=4,
            global_attn_every_n_layers=3,
            pad_token_id=0,
            max_position_embeddings=64,
            rope_parameters={"full_attention": {**ROPE, "rope_theta": 1000.0}, "sliding_attention": ROPE},
        ),
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        dict(
            **SIZES | {"intermediate_size": 8},
            **SHARED,
            num_hidden_layers=7,
            sliding_window=4,
            query_pre_attn_scalar=5,
            final_logit_softcapping=None,
            rope_parameters={"full_attention": {**ROPE, "rope_theta": 1000.0}, "sliding_attention": ROPE},
        ),
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        dict(
            **SIZES,
            **SHARED,
            num_hidden_layers=3,
            sliding_window=4,
            query_pre_attn_scalar=5,
            attn_logit_softcapping=0.8,
            final_logit_softcapping=0.7,
            rope_parameters=ROPE,
        ),
    ),
    "gpt_neox": (
        "GPTNeoXModel",
        dict(
            **SIZES,
            num_hidden_layers=2,
            rope_parameters={**ROPE, "partial_rotary_factor": 0.5},
            max_position_embeddings=64,
        ),
    ),
    "gptj": (
        "GPTJModel",
        dict(
            vocab_size=VOCAB,
            n_embd=16,
            n_head=2,
            n_inner=24,
            n_layer=2,
            rotary_dim=4,
            n_positions=64,
            activation_function="gelu_new",
        ),
    ),
    "qwen3": ("Qwen3Model", dict(**SIZES, **SHARED, num_hidden_layers=2, rope_parameters=ROPE)),
    "olmo2": (
        "Olmo2Model",
        dict(
            **SIZES,
            num_key_value_heads=1,
            num_hidden_layers=2,
            rope_parameters=ROPE,
            pad_token_id=0,
            max_position_embeddings=64,
        ),
    ),
    "bloom": ("BloomModel", dict(vocab_size=VOCAB, hidden_size=12, n_head=3, n_layer=2)),
    "mixtral": (
        "MixtralModel",
        dict(
            **SIZES,
            **SHARED,
            num_hidden_layers=2,
            num_local_experts=4,
            num_experts_per_tok=2,
            sliding_window=None,
            rope_parameters=ROPE,
        ),
    ),
}


def make(name: str) -> None:
    kind, settings = MODELS[name]
    model_class = getattr(transformers, kind)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**settings, attn_implementation="eager")).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            center = parameter.mean() if parameter.ndim == 1 and parameter.std() == 0 else 0.0  # norms
            noise = center + 0.3 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise.to(torch.float16))
    tokens = torch.randint(1, VOCAB, (2, LENGTH), generator=generator)
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, REAL:] = 0
    asked = {"output_router_logits": True} if name == "mixtral" else {}
    with torch.no_grad():
        outputs = model(input_ids=tokens * mask, attention_mask=mask, **asked)
    said = "logits" if "logits" in outputs else "last_hidden_state"
    arrays = {
        "origin": np.array(f"{kind}, transformers {transformers.__version__}, torch {torch.__version__}"),
        "tokens": (tokens * mask).numpy().astype(np.int32),
        "mask": mask.numpy().astype(np.int32),
        "logits" if said == "logits" else "states": (outputs[said] * mask[..., None]).numpy(),
    }
    if asked:
        arrays["load_balancing"] = load_balancing_loss_func(outputs.router_logits, 4, 2, mask).numpy()
    arrays |= {
        f"weights/{key}": value.numpy().astype(np.float16)
        for key, value in model.state_dict().items()
        if not key.endswith(("inv_freq", "masked_bias", "attn.bias", "attention.bias", "lm_head.weight"))
    }
    np.savez_compressed(HERE / f"{name}.npz", **arrays)


def show_chunks() -> None:
    """The mask of Llama 4's chunks of 4 for a row that begins at slot 3: the literal in the test."""
    overlay, seen = chunked_overlay(4, torch.tensor([3])), np.zeros((LENGTH, LENGTH), int)
    for query, key in np.ndindex(seen.shape):
        seen[query, key] = query >= key >= 3 and bool(overlay(0, 0, query, key))
    print(*("".join(map(str, row)) for row in seen[3:, 3:]), sep="\n")


if __name__ == "__main__":
    for name in MODELS:
        make(name)
    show_chunks()
