"""The step in PyTorch: transformers' BertForPreTraining or GPT2LMHeadModel, AdamW, clipping.

Set up for speed as users reasonably would: fused AdamW, scaled_dot_product_attention, no attention mask (every token is
real), gradients set to None; bfloat16 by autocast. `options`: attention ("sdpa" or "eager"), dtype, by default the row's, compile (bool).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import transformers

from experiments.benchmarks.train_step import workload
from experiments.benchmarks.train_step.worker import Side, serve
from experiments.benchmarks.train_step.workload import Row

IGNORED = -100  # the label that transformers' losses leave out


def make_config(row: Row) -> transformers.PretrainedConfig:
    heads, length = row.width // 64, workload.MAX_LENGTH[row.family]
    vocab = workload.VOCAB_SIZE[row.family]
    if row.family == "bert":
        return transformers.BertConfig(
            vocab_size=vocab,
            hidden_size=row.width,
            num_hidden_layers=row.layers,
            num_attention_heads=heads,
            intermediate_size=4 * row.width,
            max_position_embeddings=length,
            hidden_dropout_prob=row.dropout,
            attention_probs_dropout_prob=row.dropout,
        )
    return transformers.GPT2Config(
        vocab_size=vocab,
        n_embd=row.width,
        n_layer=row.layers,
        n_head=heads,
        n_positions=length,
        resid_pdrop=row.dropout,
        embd_pdrop=row.dropout,
        attn_pdrop=row.dropout,
        use_cache=False,
    )


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Make AdamW without decay on biases and norms."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": workload.WEIGHT_DECAY}, {"params": rest, "weight_decay": 0.0}]
    betas = (workload.BETA1, workload.BETA2)
    return torch.optim.AdamW(groups, lr=workload.LEARNING_RATE, betas=betas, eps=workload.EPSILON, fused=True)


class TorchSide(Side):
    def __init__(self, row: Row, options: dict[str, Any]) -> None:
        self.row, self.device = row, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.autocast = options.get("dtype", row.dtype) == "bfloat16"
        self.wait_each = self.device.type == "cpu"
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")  # TF32 if the device supports it
        attention = options.get("attention", "sdpa")
        auto = transformers.AutoModelForPreTraining
        self.model = auto.from_config(make_config(row), attn_implementation=attention).to(self.device).train()
        self.optimizer = make_optimizer(self.model)
        self.loss_of = torch.compile(self._loss) if options.get("compile") else self._loss
        self.latest = torch.zeros(())
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else "cpu"
        self.about = {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "device": name,
            "platform": "gpu" if self.device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }

    def prepare(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        batch = {name: torch.from_numpy(values.copy()) for name, values in batch.items()}
        tokens, targets = batch["tokens_BL"].long(), batch.get("targets_BM", batch.get("targets_BL")).long()
        if self.row.family == "gpt2":
            return {"tokens": tokens, "targets": targets}
        positions = batch["mask_positions_BM"].long()
        labels = torch.full_like(tokens, IGNORED).scatter_(1, positions, targets)
        ready = {"tokens": tokens, "types": batch["types_BL"].long(), "next": batch["next_sentence_B"].long()}
        return ready | (
            {"labels": labels} if self.row.mode == "paper" else {"positions": positions, "targets": targets}
        )

    def _loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.row.family == "gpt2":
            # transformers shifts labels itself, which would leave out the last position; given targets it does not.
            logits = self.model(batch["tokens"]).logits
            return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        if self.row.mode == "paper":
            return self.model(
                batch["tokens"],
                token_type_ids=batch["types"],
                labels=batch["labels"],
                next_sentence_label=batch["next"],
            ).loss
        output = self.model.bert(batch["tokens"], token_type_ids=batch["types"])
        index = batch["positions"][..., None].expand(-1, -1, self.row.width)
        logits, next_logits = self.model.cls(output.last_hidden_state.gather(1, index), output.pooler_output)
        masked = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
        return masked + F.cross_entropy(next_logits, batch["next"])

    def step(self, prepared: dict[str, torch.Tensor]) -> None:
        batch = {name: values.to(self.device, non_blocking=True) for name, values in prepared.items()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), workload.CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.latest = loss.detach()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def loss(self) -> float:
        return float(self.latest)

    def device_peak_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None


if __name__ == "__main__":
    serve(TorchSide)
