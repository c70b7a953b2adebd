"""Models that transformers does not have, in PyTorch, for make_goldens.py: their mathematics and names of weights, without options."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput


class Base(PreTrainedModel):
    """Nothing is initialized: weights come from files."""

    def _init_weights(self, module: nn.Module) -> None:
        pass


# NeoBERT: https://github.com/chandar-lab/NeoBERT, src/neobert/model


class NeoBertConfig(PreTrainedConfig):
    model_type = "neobert"

    def __init__(self, hidden_size=768, num_hidden_layers=28, num_attention_heads=12, intermediate_size=3072, **more):
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.intermediate_size = num_attention_heads, intermediate_size
        self.norm_eps, self.vocab_size = more.pop("norm_eps", 1e-6), more.pop("vocab_size", 32064)
        super().__init__(**more)


def turned(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions of queries or keys [B, L, H, K]: each pair of adjacent elements is a complex number."""
    width, length = x.shape[-1], x.shape[1]
    frequency = 1.0 / 10000.0 ** (torch.arange(0, width, 2).float() / width)
    angle = torch.outer(torch.arange(length).float(), frequency)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.view_as_real(pairs).flatten(-2)


class NeoBertLayer(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        inner = 8 * ((int(2 * config.intermediate_size / 3) + 7) // 8)
        self.attention_norm = nn.RMSNorm(width, config.norm_eps)
        self.qkv, self.wo = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.ffn_norm = nn.RMSNorm(width, config.norm_eps)
        self.ffn = nn.ModuleDict(
            {"w12": nn.Linear(width, 2 * inner, bias=False), "w3": nn.Linear(inner, width, bias=False)}
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        by_head = self.qkv(self.attention_norm(x)).view(batch, length, self.heads, -1)
        query, key, value = by_head.chunk(3, dim=-1)
        query, key, value = (one.transpose(1, 2) for one in (turned(query), turned(key), value))
        scores = query @ key.mT / query.shape[-1] ** 0.5
        mixed = scores.masked_fill(mask == 0, -torch.inf).softmax(-1) @ value
        x = x + self.wo(mixed.transpose(1, 2).reshape(batch, length, width))
        gate, up = self.ffn["w12"](self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.ffn["w3"](F.silu(gate) * up)


class NeoBERT(Base):
    config_class, base_model_prefix = NeoBertConfig, "model"

    def __init__(self, config) -> None:
        super().__init__(config)
        self.encoder = nn.Embedding(config.vocab_size, config.hidden_size)
        self.transformer_encoder = nn.ModuleList(NeoBertLayer(config) for _ in range(config.num_hidden_layers))
        self.layer_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.post_init()

    def states(self, input_ids, attention_mask):
        x = self.encoder(input_ids)
        for layer in self.transformer_encoder:
            x = layer(x, attention_mask[:, None, None])
        return self.layer_norm(x)

    def forward(self, input_ids, attention_mask):
        return BaseModelOutput(self.states(input_ids, attention_mask))


class NeoBERTLMHead(Base):
    config_class = NeoBertConfig

    def __init__(self, config) -> None:
        super().__init__(config)
        self.model = NeoBERT(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(self, input_ids, attention_mask, labels=None):
        logits = self.decoder(self.model.states(input_ids, attention_mask))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)


class NeoBERTForSequenceClassification(Base):
    config_class = NeoBertConfig

    def __init__(self, config) -> None:
        super().__init__(config)
        self.model = NeoBERT(config)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask, labels):
        logits = self.classifier(torch.tanh(self.dense(self.model.states(input_ids, attention_mask)[:, 0])))
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)
