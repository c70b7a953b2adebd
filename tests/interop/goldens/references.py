"""Models that transformers does not have, in PyTorch, for make_goldens.py: their mathematics and names of weights, without options."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput, MaskedLMOutput, SequenceClassifierOutput


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
        self.encoder = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
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


# GPT-BERT: https://github.com/ltgoslo/gpt-bert, pretraining/model.py, and model_extra.py with `attention_gate` and `depth_weights`


class GptBertConfig(PreTrainedConfig):
    model_type = "gpt_bert"

    def __init__(self, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=2560, **more):
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.intermediate_size = num_attention_heads, intermediate_size
        self.vocab_size, self.layer_norm_eps = more.pop("vocab_size", 16384), more.pop("layer_norm_eps", 1e-5)
        self.position_bucket_size = more.pop("position_bucket_size", 32)
        self.max_position_embeddings, self.tie_word_embeddings = more.pop("max_position_embeddings", 512), True
        super().__init__(**more)


def bare_norm(x: torch.Tensor, config) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=config.layer_norm_eps)


def log_buckets(length: int, config) -> torch.Tensor:
    """Index of each query's distance from each key in the table of 2 x buckets - 1 rows."""
    middle, longest = config.position_bucket_size // 2, config.max_position_embeddings
    distance = torch.arange(length)[:, None] - torch.arange(length)
    size = torch.where(distance.abs() < middle, middle - 1, distance.abs().clamp(max=longest - 1))
    far = torch.ceil(torch.log(size / middle) / math.log((longest - 1) / middle) * (middle - 1)).int() + middle
    bucket = torch.where(size <= middle, distance, far * distance.sign())
    return bucket.long() + config.position_bucket_size - 1


class GptBertAttention(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        width, self.config = config.hidden_size, config
        self.in_proj_qk = nn.Linear(width, 2 * width)
        if config.attention_gate:
            self.in_proj_vg = nn.Linear(width, 2 * width)
        else:
            self.in_proj_v = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, visible, table):
        batch, length, width = x.shape
        heads, scale = self.config.num_attention_heads, (3 * width / self.config.num_attention_heads) ** -0.5

        def by_head(y):
            return y.reshape(*y.shape[:-1], heads, -1)

        x = bare_norm(x, self.config)
        query, key = map(by_head, self.in_proj_qk(x).chunk(2, dim=-1))
        rows = self.in_proj_qk(table)[log_buckets(length, self.config)]
        query_rows, key_rows = map(by_head, rows.chunk(2, dim=-1))
        scores = torch.einsum("blhk,bshk->bhls", query, key)
        scores = scores + torch.einsum("blhk,lshk->bhls", query, key_rows)
        scores = scores + torch.einsum("bshk,lshk->bhls", key, query_rows)
        probabilities = (scores * scale).masked_fill(~visible, -torch.inf).softmax(-1).masked_fill(~visible, 0.0)
        value, gate = self.in_proj_vg(x).chunk(2, dim=-1) if self.config.attention_gate else (self.in_proj_v(x), None)
        mixed = torch.einsum("bhls,bshk->blhk", probabilities, by_head(value)).reshape(batch, length, width)
        mixed = bare_norm(mixed, self.config)
        return self.out_proj(mixed if gate is None else mixed * F.gelu(gate))


class GptBertFeedForward(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        self.config, width, inner = config, config.hidden_size, config.intermediate_size
        self.mlp = nn.ModuleDict(
            {"1": nn.Linear(width, 2 * inner, bias=False), "4": nn.Linear(inner, width, bias=False)}
        )

    def forward(self, x):
        up, gate = self.mlp["1"](bare_norm(x, self.config)).chunk(2, dim=-1)
        return self.mlp["4"](bare_norm(up * F.gelu(gate, approximate="tanh"), self.config))


class GptBertEmbedding(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.relative_embedding = nn.Parameter(torch.empty(2 * config.position_bucket_size - 1, config.hidden_size))
        self.relative_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class GptBertEncoder(nn.Module):
    def __init__(self, config) -> None:
        super().__init__()
        depth = config.num_hidden_layers
        self.attention_layers = nn.ModuleList(GptBertAttention(config) for _ in range(depth))
        self.mlp_layers = nn.ModuleList(GptBertFeedForward(config) for _ in range(depth))
        if config.depth_weights:
            self.dwa_modules = nn.Module()
            self.dwa_modules.alphas = nn.ParameterList(torch.empty(n + 2) for n in range(2 * depth))


class GPTBERT(Base):
    """The stack; `causal` masks later positions."""

    config_class, causal = GptBertConfig, False

    def __init__(self, config) -> None:
        super().__init__(config)
        self.embedding, self.transformer = GptBertEmbedding(config), GptBertEncoder(config)
        self.add_head(config)
        self.post_init()

    def add_head(self, config) -> None:
        pass

    def states(self, input_ids, attention_mask):
        visible = attention_mask[:, None, None].bool()
        if self.causal:
            visible = visible & torch.ones(input_ids.shape[1], input_ids.shape[1], dtype=torch.bool).tril()
        table = self.embedding.relative_layer_norm(self.embedding.relative_embedding)
        x = bare_norm(self.embedding.word_embedding(input_ids), self.config)
        past = [x]
        for number, attention in enumerate(self.transformer.attention_layers):
            for offset in (0, 1):
                x = x + (self.transformer.mlp_layers[number](x) if offset else attention(x, visible, table))
                if self.config.depth_weights:
                    past.append(x)
                    weights = self.transformer.dwa_modules.alphas[2 * number + offset]
                    x = sum(weight * state for weight, state in zip(weights, past, strict=True))
        return x


class Head(nn.Module):
    def __init__(self, config, classes: int, table: nn.Parameter | None = None) -> None:
        super().__init__()
        output = nn.Linear(config.hidden_size, classes)
        output.weight = output.weight if table is None else table
        self.config = config
        self.nonlinearity = nn.ModuleDict({"1": nn.Linear(config.hidden_size, config.hidden_size), "5": output})

    def forward(self, x):
        x = F.gelu(self.nonlinearity["1"](bare_norm(x, self.config)))
        return self.nonlinearity["5"](bare_norm(x, self.config))


class GPTBERTForMaskedLM(GPTBERT):
    """A masked token is predicted from the state before it, as in training; the first from its own."""

    _tied_weights_keys = {"classifier.nonlinearity.5.weight": "embedding.word_embedding.weight"}

    def add_head(self, config) -> None:
        self.classifier = Head(config, config.vocab_size, self.embedding.word_embedding.weight)

    def forward(self, input_ids, attention_mask, labels=None):
        logits = self.classifier(self.states(input_ids, attention_mask))
        logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return MaskedLMOutput(loss=loss, logits=logits)


class GPTBERTForCausalLM(GPTBERTForMaskedLM, GenerationMixin):
    causal = True

    def prepare_inputs_for_generation(self, input_ids, attention_mask, **unused):
        return {"input_ids": input_ids, "attention_mask": attention_mask}  # all tokens, as there is no cache

    def forward(self, input_ids, attention_mask, labels=None, return_dict=True):
        logits = self.classifier(self.states(input_ids, attention_mask))
        loss = None if labels is None else F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


class GPTBERTForSequenceClassification(Base):
    """evaluation/GLUE/classifier.py of the same repository."""

    config_class = GptBertConfig

    def __init__(self, config) -> None:
        super().__init__(config)
        self.transformer, self.classifier = GPTBERT(config), Head(config, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask, labels):
        logits = self.classifier(self.transformer.states(input_ids, attention_mask)[:, 0])
        return SequenceClassifierOutput(loss=F.cross_entropy(logits, labels), logits=logits)
