"""Make bert.npz and gpt2.npz: results of another implementation, Hugging Face transformers on PyTorch.

Run in a separate environment with torch 2.13 and transformers 5.23; tests need neither:

    python tests/models/goldens/make_goldens.py

Small models of odd sizes with random weights, float32, no dropout. Each file holds all weights under their Hugging Face
names, ten batches with padding (inputs/*), the model's outputs for the first (outputs/*), the losses of ten AdamW
steps, one a batch (outputs/losses), and the versions that made it (origin).
"""

from __future__ import annotations

import pathlib
import platform

import numpy as np
import torch
import transformers
from transformers import BertConfig, BertForPreTraining, GPT2Config, GPT2LMHeadModel

HERE = pathlib.Path(__file__).parent
STEPS, ROWS, LENGTH, VOCAB, MASKED = 10, 4, 17, 61, 3
IGNORED = -100  # the label that transformers leaves out of its losses


def shake(model: torch.nn.Module, seed: int) -> None:
    """Random values everywhere, biases and norms included, large enough for every part to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name.lower() or ".ln_" in name
            parameter.copy_((1.0 if is_scale and name.endswith("weight") else 0.0) + 0.15 * noise)


def train(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> list[float]:
    """Losses before each of the updates: AdamW, decay on matrices and tables only, clipping to norm 1."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-6)
    losses = []
    for batch in batches:
        loss = model(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return losses


def save(name: str, weights: dict, inputs: dict, outputs: dict) -> None:
    """One compressed file; groups are prefixes of the names."""
    origin = (
        f"tests/models/goldens/make_goldens.py, transformers {transformers.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
    arrays = {"origin": np.array(origin)}
    for group, values in {"weights": weights, "inputs": inputs, "outputs": outputs}.items():
        arrays |= {f"{group}/{key}": np.asarray(value) for key, value in values.items()}
    np.savez_compressed(HERE / f"{name}.npz", **arrays)
    print(name, (HERE / f"{name}.npz").stat().st_size, "bytes; losses", outputs["losses"])


def weights_of(model: torch.nn.Module, tied: tuple[str, ...]) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy().copy() for k, v in model.named_parameters() if k not in tied}


def padded(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask [STEPS, ROWS, LENGTH]; some rows are shorter, the first of each batch is full."""
    lengths = rng.integers(LENGTH // 2, LENGTH + 1, (STEPS, ROWS))
    lengths[:, 0] = LENGTH
    mask = (np.arange(LENGTH) < lengths[..., None]).astype(np.int64)
    return rng.integers(5, VOCAB, mask.shape) * mask, mask


def make_bert() -> None:
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=19,
        type_vocab_size=2,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
    )
    model = BertForPreTraining(config).eval()
    shake(model, 1)
    weights = weights_of(model, ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"))
    rng = np.random.default_rng(1)
    tokens, mask = padded(rng)
    types = (np.arange(LENGTH) >= rng.integers(3, 7, (STEPS, ROWS, 1))).astype(np.int64) * mask
    labels = np.full(tokens.shape, IGNORED)
    for step, row in np.ndindex(STEPS, ROWS):  # the last row of each batch predicts fewer
        places = rng.choice(mask[step, row].sum(), MASKED - (row == ROWS - 1), replace=False)
        labels[step, row, places] = rng.integers(5, VOCAB, len(places))
    follows = rng.integers(0, 2, (STEPS, ROWS))
    inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": types, "labels": labels}
    inputs["next_sentence_label"] = follows
    batches = [{k: torch.tensor(v[step]) for k, v in inputs.items()} for step in range(STEPS)]
    with torch.no_grad():
        said = model(**batches[0], output_hidden_states=True)
    outputs = {"hidden": said.hidden_states[-1], "logits": said.prediction_logits}
    outputs |= {"next_sentence_logits": said.seq_relationship_logits, "loss": said.loss}
    save("bert", weights, inputs, outputs | {"losses": train(model, batches)})


def make_gpt2() -> None:
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=24,
        n_layer=2,
        n_head=3,
        n_inner=40,
        n_positions=19,
        activation_function="gelu_new",
        layer_norm_epsilon=1e-5,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval()
    shake(model, 2)
    weights = weights_of(model, ("lm_head.weight",))
    tokens, mask = padded(np.random.default_rng(2))
    inputs = {"input_ids": tokens, "attention_mask": mask, "labels": np.where(mask, tokens, IGNORED)}
    batches = [{k: torch.tensor(v[step]) for k, v in inputs.items()} for step in range(STEPS)]
    with torch.no_grad():
        said = model(**batches[0], output_hidden_states=True)
    outputs = {"hidden": said.hidden_states[-1], "logits": said.logits, "loss": said.loss}
    save("gpt2", weights, inputs, outputs | {"losses": train(model, batches)})


if __name__ == "__main__":
    make_bert()
    make_gpt2()
