"""Make *.npz next to this file: what another implementation, Hugging Face transformers on PyTorch, computes.

Run in a separate environment with torch 2.13, transformers 5.24 and safetensors; tests need neither of the first two:

    PYTHONPATH=tests python tests/interop/goldens/make_goldens.py [START-OF-A-NAME ...]

Small models of odd sizes, float32, eager attention, no dropout. Each file holds

    kind, family, what    class, model_type, and "outputs"; "losses"; "texts" that `generate` continues; or "apart": outputs of files
                          whose tied tables differ
    config                text of config.json
    weights               JSON: name of every tensor of model.safetensors -> shape; golden_models.golden_tensor fills them
    optimizer, versions   JSON: settings of AdamW, {} if there is none; what made the file
    inputs/NAME           keyword arguments of the model
    outputs/NAME          what it returns; hidden states and attentions [layers, ...] for some; see below for "losses"

A file of losses holds STEPS steps of AdamW on three batches in turn, inputs/NAME [3, ...]; outputs/losses [STEPS] are
those before each step.

Where no key is visible to a query, as in causal models with padding on the left, outputs mean nothing: compare only the places
where attention_mask is 1. Biases of keys cancel in a softmax unless positions rotate between; their values do not show
in outputs. Every model goes through a checkpoint, written by golden_models.write_checkpoint and read by
from_pretrained, which must report no missing and no unexpected tensors; save_pretrained must then write the same names.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import pathlib
import platform
import re
import sys
import tempfile
import zlib

import numpy as np
import references
import safetensors.numpy
import torch
import transformers
from case import Case, merged
from full_attentions import encoder_attentions

from helpers.golden_models import Golden, golden_tensors, load_golden, write_checkpoint

HERE = pathlib.Path(__file__).resolve().parent
IGNORED = -100  # the label that transformers leaves out of its losses
STEPS = 10
VERSIONS = {
    "maker": "tests/interop/goldens/make_goldens.py",
    "transformers": transformers.__version__,
    "torch": torch.__version__,
    "numpy": np.__version__,
    "safetensors": safetensors.__version__,
    "python": platform.python_version(),
}


def class_named(kind: str):
    """A class of transformers, or of references.py."""
    return getattr(transformers, kind, None) or getattr(references, kind)


def reader_of(config):
    """The config of the part that reads input_ids: the encoder's in an encoder-decoder."""
    return config.encoder if config.model_type == "encoder-decoder" else config


def computed(name: str, case: Case) -> bool:
    """Only Marian's decoder stores its sinusoidal positions, which follow from their number."""
    marian = case.kind.startswith("Marian") and name.endswith("embed_positions.weight")
    return marian or bool(case.computed and re.search(case.computed, name))


# --- inputs -----------------------------------------------------------------------------------------------------------


def draw(case: Case, config, rng: np.random.RandomState) -> dict[str, np.ndarray]:
    """One batch of three rows: full, padded on one side, padded on the other."""
    reader = reader_of(config)
    vocab = reader.vocab_size if hasattr(reader, "vocab_size") else reader.get_text_config().vocab_size
    rows, length = 3, case.length
    pad, end, begin = (getattr(config, f"{which}_token_id", None) for which in ("pad", "eos", "bos"))
    usual = [token for token in range(4, vocab) if token not in (pad, end, begin)]
    pad = 0 if pad is None else pad
    mask = np.ones((rows, length), np.int64)
    for row, side in enumerate(case.masks.split(), start=1):
        cut = rng.randint(1, length // 2 + 1)
        mask[row, length - cut :] = side != "right"
        mask[row, 2 : 2 + cut] &= side != "inside"
        mask[row, :cut] &= side != "left"
    tokens = np.where(mask == 1, rng.choice(usual, (rows, length)), pad)
    inputs = {"input_ids": tokens, "attention_mask": mask}
    if case.packed:
        inputs["position_ids"] = np.arange(length) + np.array([[0], [0], [2]])
        for row, first in enumerate((3, length // 2)):
            inputs["position_ids"][row, first:] -= first
    if case.chosen:
        inputs["global_attention_mask"] = np.zeros_like(mask)
        for row, count in enumerate((2, 1, 0)):
            inputs["global_attention_mask"][row, rng.choice(np.flatnonzero(mask[row]), count, replace=False)] = 1
    if not case.masks:
        del inputs["attention_mask"]
    if case.types and getattr(reader, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = rng.randint(0, reader.type_vocab_size, (rows, length)) * mask
    if case.types == "tokens":
        inputs["token_type_ids"] = rng.randint(0, vocab, (rows, length))
    if case.labels == "choice":
        stacked = [draw(dataclasses.replace(case, labels=""), config, rng) for _ in range(4)]
        inputs = {key: np.stack([one[key] for one in stacked], 1) for key in stacked[0]}
        return inputs | {"labels": rng.randint(0, 4, rows)}
    return inputs | draw_labels(case, config, rng, tokens, mask, usual)


def draw_labels(case: Case, config, rng, tokens, mask, usual) -> dict[str, np.ndarray]:
    rows, length = tokens.shape
    writer = config.get_text_config(decoder=True)
    rows_of_table = getattr(writer, "decoder_vocab_size", None) or writer.vocab_size
    targets = [token for token in usual if token < rows_of_table]
    out: dict[str, np.ndarray] = {}

    def sparse(values: np.ndarray, share: float) -> np.ndarray:
        """Some places ignored, all padding, never a whole row."""
        kept = (rng.random_sample(values.shape) < share) & (mask == 1)
        kept[:, length // 2] |= mask[:, length // 2] == 1
        return np.where(kept, values, IGNORED)

    def either() -> np.ndarray:
        """Both answers occur."""
        return rng.permutation(np.arange(rows) % 2)

    if "tokens" in case.labels:
        out["labels"] = sparse(rng.choice(usual, tokens.shape), 0.4)
    if "next" in case.labels:
        out["next_sentence_label"] = either()
    if "order" in case.labels:
        out["sentence_order_label"] = either()
    if case.labels == "pair":
        out["labels"] = either()
    if case.labels == "causal":
        after_padding = np.pad(mask, ((0, 0), (1, 0)))[:, :-1] == 0  # would be predicted where no key is open
        out["labels"] = np.where(after_padding, IGNORED, sparse(tokens, 0.8))
    if case.labels == "replaced":
        out["labels"] = rng.randint(0, 2, tokens.shape)
    if case.labels == "classes":
        out["labels"] = sparse(rng.randint(0, config.num_labels, tokens.shape), 0.8)
    if case.labels == "sequence":
        out["labels"] = rng.randint(0, config.num_labels, rows)
    if case.labels == "regression":
        out["labels"] = rng.uniform(-1, 1, rows).astype(np.float32)
    if case.labels == "several":
        out["labels"] = rng.randint(0, 2, (rows, config.num_labels)).astype(np.float32)
    if case.labels == "span":  # the last row's end is out of range: left out of the loss
        out["start_positions"] = rng.randint(0, length, rows)
        out["end_positions"] = np.array([*rng.randint(0, length, rows - 1), length + 3])
    if case.labels == "target":  # -100 at the ends of rows only, as padded targets are
        lengths = np.array([case.target, *rng.randint(3, case.target, rows - 1)])
        values = rng.choice(targets, (rows, case.target))
        out["labels"] = np.where(np.arange(case.target) < lengths[:, None], values, IGNORED)
    if case.decoder:
        out["decoder_input_ids"] = rng.choice(targets, (rows, case.target))
        out["decoder_input_ids"][:, 0] = getattr(config, "decoder_start_token_id", config.bos_token_id) or 0
    if case.decoder == "masked":
        lengths = np.array([case.target, *rng.randint(3, case.target, rows - 1)])
        out["decoder_attention_mask"] = (np.arange(case.target) < lengths[:, None]).astype(np.int64)
    return out


def end_rows(inputs: dict, config) -> dict:
    """Classifiers of encoder-decoder families read the last end token: one a row, at the last open place."""
    for row, mask in enumerate(inputs["attention_mask"]):
        inputs["input_ids"][row, np.flatnonzero(mask)[-1]] = config.eos_token_id
    return inputs


# --- checkpoints ------------------------------------------------------------------------------------------------------


def shapes_in(folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    with safetensors.safe_open(folder / "model.safetensors", framework="np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}


def describe(case: Case, folder: pathlib.Path) -> Golden:
    """Return the config and names that save_pretrained writes."""
    model_class = class_named(case.kind)
    model_class(model_class.config_class(**case.config)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) if case.text is None else case.text
    weights = {name: shape for name, shape in shapes_in(folder).items() if not computed(name, case)}
    for item in case.extra:
        name, like = item.split("=")
        weights[name] = weights[like]
    for name in case.absent:
        del weights[name]
    what = "losses" if case.steps else "apart" if case.apart else "texts" if case.new_tokens else "outputs"
    text = json.dumps(config, indent=1, sort_keys=True) + "\n"
    return Golden(case.name, case.kind, config["model_type"], what, text, weights, {}, {}, {}, VERSIONS)


def load(golden: Golden, case: Case, folder: pathlib.Path):
    """Load the checkpoint with from_pretrained and check it."""
    write_checkpoint(folder / "in", golden)
    model, info = class_named(golden.kind).from_pretrained(
        folder / "in",
        output_loading_info=True,
        attn_implementation=case.attention,
        dtype=torch.float32,
        **({"experts_implementation": "eager"} if case.fused else {}),
    )
    info["missing_keys"] = {name for name in info["missing_keys"] if not computed(name, case)}
    assert not any(info.values()), (golden.name, info)
    state, tensors = model.state_dict(), golden_tensors(golden)
    if tensors.keys() <= state.keys():
        for name, value in tensors.items():
            assert np.array_equal(state[name].numpy(), value), (golden.name, name)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        known = {id(parameter) for name, parameter in parameters.items() if name in tensors}
        for name, parameter in parameters.items():
            parameter.requires_grad_(parameter.requires_grad and not computed(name, case))
            assert id(parameter) in known or computed(name, case), (golden.name, name)
    copy.deepcopy(model).save_pretrained(folder / "out")  # a copy: saving changes the config
    if golden.what != "apart":  # with a tensor that is absent in "in", another one is in "out"
        written = {name: shape for name, shape in shapes_in(folder / "out").items() if not computed(name, case)}
        assert written == dict(sorted(golden.weights.items())), golden.name
        values = safetensors.numpy.load_file(
            folder / "out" / "model.safetensors"
        )  # some classes rename and join tensors
        assert all(np.array_equal(values[name], value) for name, value in tensors.items()), golden.name
    return model.eval()


# --- outputs ----------------------------------------------------------------------------------------------------------


def tensors_of(inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in inputs.items()}


def forward(model, inputs: dict[str, np.ndarray], deep: bool) -> dict[str, np.ndarray]:
    more = {"output_hidden_states": True, "output_attentions": True} if deep else {}
    with torch.no_grad():
        said = model(**tensors_of(inputs), **more)
    outputs = {}
    for key, value in said.items():
        if isinstance(value, torch.Tensor):
            outputs[key] = value.numpy()
        elif key == "encoder_attentions":
            layers, whole = (
                [one.numpy() for one in said.get(name) or ()] for name in (key, "encoder_global_attentions")
            )
            outputs[key] = encoder_attentions(model.config.model_type, layers, inputs, whole)
        elif key == "encoder_global_attentions":
            continue  # a part of the former
        elif deep and isinstance(value, tuple) and value and isinstance(value[0], torch.Tensor):
            outputs[key] = np.stack([one.numpy() for one in value])
    assert outputs and all(v.dtype == np.float32 and np.isfinite(v).all() for v in outputs.values())
    return outputs


def generate(model, inputs: dict[str, np.ndarray], new_tokens: int) -> dict[str, np.ndarray]:
    """Prompts or sources with the tokens that follow, chosen greedily and by 3 beams; padding is on the left of prompts."""
    outputs = {}
    for name, beams in (("greedy", 1), ("beams", 3)):
        tokens = copy.deepcopy(
            model
        ).generate(  # a copy: frequencies of the type dynamic keep those of the longest text
            **tensors_of(inputs),
            max_new_tokens=new_tokens,
            num_beams=beams,
            do_sample=False,
            pad_token_id=getattr(model.config, "pad_token_id", None) or 0,
        )
        outputs[name] = tokens.numpy().astype(np.int32)
    assert all(len(np.unique(value)) > 3 for value in outputs.values()), outputs
    return outputs


def train(model, batches: list[dict[str, np.ndarray]], optimizer: dict[str, float]) -> np.ndarray:
    """Losses before each step; decay on every parameter, no clipping."""
    betas = (optimizer["beta1"], optimizer["beta2"])
    adamw = torch.optim.AdamW(
        model.parameters(),
        lr=optimizer["learning_rate"],
        betas=betas,
        eps=optimizer["epsilon"],
        weight_decay=optimizer["weight_decay"],
    )
    losses = []
    for step in range(STEPS):
        loss = model(**tensors_of(batches[step % len(batches)])).loss
        losses.append(loss.item())
        adamw.zero_grad()
        loss.backward()
        adamw.step()
    return np.array(losses, np.float32)


def make(case: Case) -> Golden:
    rng = np.random.RandomState(zlib.crc32(case.name.encode()))
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        golden = describe(case, folder / "made")
        model = load(golden, case, folder)
    inputs = draw(case, model.config, rng)
    if case.kind.endswith("ForSequenceClassification") and model.config.is_encoder_decoder:
        inputs = end_rows(inputs, model.config)
    if not case.given_mask:
        del inputs["attention_mask"]
    if case.new_tokens:
        return dataclasses.replace(golden, inputs=inputs, outputs=generate(model, inputs, case.new_tokens))
    if not case.steps:
        return dataclasses.replace(golden, inputs=inputs, outputs=forward(model, inputs, case.deep))
    batches = [inputs] + [draw(case, model.config, rng) for _ in range(2)]
    optimizer = {"learning_rate": case.steps, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01}
    losses = train(model, batches, optimizer)
    stacked = {key: np.stack([batch[key] for batch in batches]) for key in inputs}
    return dataclasses.replace(golden, inputs=stacked, outputs={"losses": losses}, optimizer=optimizer)


def save(golden: Golden, case: Case) -> int:
    arrays = {key: np.array(getattr(golden, key)) for key in ("kind", "family", "what", "config")}
    for key in ("weights", "optimizer", "versions"):
        arrays[key] = np.array(json.dumps(getattr(golden, key)))
    arrays |= {f"inputs/{key}": v.astype(np.int32) if v.dtype == np.int64 else v for key, v in golden.inputs.items()}
    arrays |= {f"outputs/{key}": value for key, value in golden.outputs.items()}
    path = HERE / ("slow" if case.slow else "") / f"{golden.name}.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)
    back = load_golden(path)
    assert (back.weights, back.config, back.kind) == (golden.weights, golden.config, golden.kind)
    return path.stat().st_size


# --- cases ------------------------------------------------------------------------------------------------------------

BERT = {
    "vocab_size": 61,
    "hidden_size": 21,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "max_position_embeddings": 13,
    "type_vocab_size": 3,
    "hidden_act": "gelu",
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ROBERTA = merged(BERT, type_vocab_size=1, vocab_size=67, max_position_embeddings=17, layer_norm_eps=1e-5)
DISTILBERT = {
    "vocab_size": 61,
    "dim": 20,
    "n_layers": 3,
    "n_heads": 5,
    "hidden_dim": 33,
    "max_position_embeddings": 14,
}
ELECTRA = merged(BERT, embedding_size=10, vocab_size=53, hidden_size=20, num_attention_heads=5, type_vocab_size=2)
ALBERT = {
    "vocab_size": 71,
    "embedding_size": 11,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 35,
    "max_position_embeddings": 15,
    "type_vocab_size": 3,
}
GPT2 = {
    "vocab_size": 61,
    "n_embd": 21,
    "n_layer": 3,
    "n_head": 3,
    "n_inner": 38,
    "n_positions": 15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {
    "vocab_size": 61,
    "hidden_size": 30,
    "intermediate_size": 43,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 23,
    "rms_norm_eps": 1e-5,
}
QWEN2 = {key: value for key, value in LLAMA.items() if key != "head_dim"} | {"hidden_size": 36}
THETA = {"rope_type": "default", "rope_theta": 500.0}
LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 700.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 100.0,
}
T5 = {
    "vocab_size": 61,
    "d_model": 22,
    "d_kv": 6,
    "d_ff": 35,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 10,
    "decoder_start_token_id": 0,
    "feed_forward_proj": "relu",
}
BART = {
    "vocab_size": 61,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 35,
    "decoder_ffn_dim": 29,
    "max_position_embeddings": 13,
    "activation_function": "gelu",
}
MARIAN = merged(
    BART,
    pad_token_id=60,
    eos_token_id=0,
    decoder_start_token_id=60,
    forced_eos_token_id=0,
    scale_embedding=True,
    activation_function="swish",
    max_position_embeddings=14,
)

# config.json as checkpoints from before transformers 5 have it
OLD_LINEAR = merged(
    LLAMA,
    architectures=["LlamaForCausalLM"],
    model_type="llama",
    torch_dtype="float32",
    rope_theta=700.0,
    rope_scaling={"type": "linear", "factor": 2.5},
    tie_word_embeddings=False,
    hidden_act="silu",
)
OLD_LLAMA3 = merged(OLD_LINEAR, rope_theta=100.0, rope_scaling={k: v for k, v in LLAMA3.items() if k != "rope_theta"})
OLD_T5 = merged(
    T5,
    architectures=["T5ForConditionalGeneration"],
    model_type="t5",
    feed_forward_proj="gated-gelu",
    tie_word_embeddings=False,
    is_encoder_decoder=True,
    pad_token_id=0,
    eos_token_id=1,
    layer_norm_epsilon=1e-6,
)
OLD_MT5 = merged(OLD_T5, architectures=["MT5ForConditionalGeneration"], model_type="mt5")
HEAD = ("lm_head.weight=shared.weight",)

# Encoder families as decoders, on their own and with an encoder. The cache of BART's decoder has as many layers as its encoder would.
BART3, MARIAN3 = merged(BART, encoder_layers=3), merged(MARIAN, encoder_layers=3)
ALONE = {"is_decoder": True, "num_hidden_layers": 3}
BEHIND = merged(ALONE, add_cross_attention=True)


def pair(encoder: tuple[str, dict], decoder: tuple[str, dict], **more) -> dict:
    """The config of an encoder-decoder; the token that targets begin with is not one of the special ones."""
    tokens = {"decoder_start_token_id": 4, "pad_token_id": 0, "eos_token_id": 3}
    parts = [merged(config, model_type=kind) for kind, config in (encoder, decoder)]
    return {
        "encoder": parts[0],
        "decoder": merged(parts[1], is_decoder=True, add_cross_attention=True),
        **tokens,
        **more,
    }


ENCODERS = [
    Case("bert_pretraining", "BertForPreTraining", BERT, "tokens next", deep=True),
    Case("bert_masked", "BertForMaskedLM", merged(BERT, hidden_act="relu"), "tokens"),
    Case(
        "bert_masked_untied",
        "BertForMaskedLM",
        merged(BERT, hidden_act="gelu_new", tie_word_embeddings=False, type_vocab_size=1),
        "tokens",
    ),
    Case("bert_model", "BertModel", merged(BERT, hidden_act="silu", layer_norm_eps=1e-3), deep=True),
    Case("bert_model_plain", "BertModel", merged(BERT, num_attention_heads=7), masks="", types=False, length=13),
    Case("bert_sequence", "BertForSequenceClassification", merged(BERT, num_labels=3), "sequence"),
    Case("bert_sequence_regression", "BertForSequenceClassification", merged(BERT, num_labels=1), "regression"),
    Case(
        "bert_sequence_several",
        "BertForSequenceClassification",
        merged(BERT, num_labels=4, problem_type="multi_label_classification"),
        "several",
    ),
    Case("bert_token", "BertForTokenClassification", merged(BERT, num_labels=5, hidden_act="relu"), "classes"),
    Case("bert_question", "BertForQuestionAnswering", merged(BERT, hidden_act="gelu_new"), "span"),
    Case("bert_choice", "BertForMultipleChoice", merged(BERT, hidden_act="silu"), "choice"),
    Case("bert_next", "BertForNextSentencePrediction", BERT, "pair"),
    Case(
        "bert_losses",
        "BertForPreTraining",
        merged(BERT, **NO_DROPOUT),
        "tokens next",
        masks="right right",
        steps=4e-3,
    ),
    Case("roberta_masked", "RobertaForMaskedLM", ROBERTA, "tokens", deep=True),
    Case("roberta_masked_untied", "RobertaForMaskedLM", merged(ROBERTA, tie_word_embeddings=False), "tokens"),
    Case("roberta_model", "RobertaModel", merged(ROBERTA, hidden_act="relu", layer_norm_eps=1e-12)),
    Case("roberta_sequence", "RobertaForSequenceClassification", merged(ROBERTA, num_labels=3), "sequence"),
    Case("roberta_token", "RobertaForTokenClassification", merged(ROBERTA, num_labels=4), "classes"),
    Case("roberta_question", "RobertaForQuestionAnswering", ROBERTA, "span"),
    Case("roberta_choice", "RobertaForMultipleChoice", ROBERTA, "choice"),
    Case("xlm_roberta_masked", "XLMRobertaForMaskedLM", merged(ROBERTA, pad_token_id=3), "tokens"),
    Case("xlm_roberta_sequence", "XLMRobertaForSequenceClassification", merged(ROBERTA, num_labels=3), "sequence"),
    Case("distilbert_masked", "DistilBertForMaskedLM", DISTILBERT, "tokens", deep=True),
    Case(
        "distilbert_masked_sinusoidal",
        "DistilBertForMaskedLM",
        merged(DISTILBERT, sinusoidal_pos_embds=True, activation="relu"),
        "tokens",
    ),
    Case("distilbert_model", "DistilBertModel", DISTILBERT),
    Case("distilbert_sequence", "DistilBertForSequenceClassification", merged(DISTILBERT, num_labels=3), "sequence"),
    Case("distilbert_token", "DistilBertForTokenClassification", merged(DISTILBERT, num_labels=4), "classes"),
    Case("distilbert_question", "DistilBertForQuestionAnswering", DISTILBERT, "span"),
    Case("electra_generator", "ElectraForMaskedLM", ELECTRA, "tokens", deep=True),
    Case("electra_discriminator", "ElectraForPreTraining", ELECTRA, "replaced"),
    Case("electra_model", "ElectraModel", merged(ELECTRA, embedding_size=20, hidden_act="relu")),
    Case("electra_sequence", "ElectraForSequenceClassification", merged(ELECTRA, num_labels=3), "sequence"),
    Case("electra_token", "ElectraForTokenClassification", merged(ELECTRA, num_labels=4), "classes"),
    Case("electra_question", "ElectraForQuestionAnswering", ELECTRA, "span"),
    Case("albert_pretraining", "AlbertForPreTraining", ALBERT, "tokens order", deep=True),
    Case("albert_masked", "AlbertForMaskedLM", merged(ALBERT, hidden_act="relu"), "tokens"),
    Case("albert_model", "AlbertModel", merged(ALBERT, hidden_act="gelu", layer_norm_eps=1e-5)),
    Case("albert_sequence", "AlbertForSequenceClassification", merged(ALBERT, num_labels=3), "sequence"),
    Case("albert_token", "AlbertForTokenClassification", merged(ALBERT, num_labels=4), "classes"),
    Case("albert_question", "AlbertForQuestionAnswering", ALBERT, "span"),
    Case(  # five layers in three groups of two blocks: 5 is not a multiple of 3
        "albert_groups",
        "AlbertForMaskedLM",
        merged(ALBERT, num_hidden_layers=5, num_hidden_groups=3, inner_group_num=2),
        "tokens",
        deep=True,
        length=6,
    ),
    Case("albert_groups_unused", "AlbertModel", merged(ALBERT, num_hidden_layers=2, num_hidden_groups=3)),
    Case(
        "albert_groups_losses",
        "AlbertForPreTraining",
        merged(ALBERT, num_hidden_groups=2, inner_group_num=2),
        "tokens order",
        masks="right right",
        steps=4e-3,
    ),
]

DECODERS = [
    Case("gpt2_causal", "GPT2LMHeadModel", GPT2, "causal", deep=True),
    Case("gpt2_causal_types", "GPT2LMHeadModel", GPT2, types="tokens"),
    Case("gpt2_causal_relu", "GPT2LMHeadModel", merged(GPT2, activation_function="relu", n_inner=None), "causal"),
    Case("gpt2_causal_untied", "GPT2LMHeadModel", merged(GPT2, tie_word_embeddings=False), "causal"),
    Case("gpt2_causal_layer_scaled", "GPT2LMHeadModel", merged(GPT2, scale_attn_by_inverse_layer_idx=True), "causal"),
    Case("gpt2_model", "GPT2Model", merged(GPT2, layer_norm_epsilon=1e-3), masks=""),
    Case("gpt2_sequence", "GPT2ForSequenceClassification", merged(GPT2, num_labels=3, pad_token_id=3), "sequence"),
    Case("gpt2_token", "GPT2ForTokenClassification", merged(GPT2, num_labels=4), "classes"),
    Case("gpt2_question", "GPT2ForQuestionAnswering", GPT2, "span", masks="right right"),
    Case(
        "gpt2_losses",
        "GPT2LMHeadModel",
        merged(GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        "causal",
        masks="right right",
        steps=4e-3,
    ),
    Case("llama_causal", "LlamaForCausalLM", merged(LLAMA, rope_parameters=THETA), "causal", deep=True),
    Case(
        "llama_causal_biases",
        "LlamaForCausalLM",
        merged(LLAMA, attention_bias=True, mlp_bias=True, num_key_value_heads=3, head_dim=10),
        "causal",
    ),
    Case(
        "llama_causal_tied",
        "LlamaForCausalLM",
        merged(LLAMA, tie_word_embeddings=True, head_dim=None, hidden_size=24, num_key_value_heads=6),
        "causal",
    ),
    Case("llama_causal_linear", "LlamaForCausalLM", merged(LLAMA, rope_parameters=LINEAR), "causal", length=12),
    Case("llama_causal_linear_old", "LlamaForCausalLM", merged(LLAMA, rope_parameters=LINEAR), text=OLD_LINEAR),
    Case(
        "llama_causal_llama3",
        "LlamaForCausalLM",
        merged(LLAMA, rope_parameters=LLAMA3, head_dim=12),
        "causal",
        length=20,
    ),
    Case(
        "llama_causal_llama3_old",
        "LlamaForCausalLM",
        merged(LLAMA, rope_parameters=LLAMA3),
        text=OLD_LLAMA3,
        length=20,
    ),
    Case("llama_model", "LlamaModel", merged(LLAMA, hidden_act="gelu", num_key_value_heads=1)),
    Case("llama_sequence", "LlamaForSequenceClassification", merged(LLAMA, num_labels=3, pad_token_id=0), "sequence"),
    Case("llama_token", "LlamaForTokenClassification", merged(LLAMA, num_labels=4), "classes"),
    Case("llama_question", "LlamaForQuestionAnswering", LLAMA, "span", masks="right right"),
    Case("mistral_causal", "MistralForCausalLM", merged(LLAMA, sliding_window=4), "causal", length=12, deep=True),
    Case("mistral_causal_full", "MistralForCausalLM", merged(LLAMA, sliding_window=None), "causal"),
    Case("qwen2_causal", "Qwen2ForCausalLM", QWEN2, "causal", deep=True),
    Case(
        "qwen2_causal_sliding",
        "Qwen2ForCausalLM",
        merged(QWEN2, use_sliding_window=True, sliding_window=4, max_window_layers=1, tie_word_embeddings=True),
        "causal",
        length=12,
    ),
]

ENCODERS_AS_DECODERS = [
    Case("bert_decoder", "BertLMHeadModel", merged(BERT, **ALONE), "causal", deep=True),
    Case("bert_decoder_untied", "BertLMHeadModel", merged(BERT, **ALONE, tie_word_embeddings=False), "causal"),
    Case(  # it has layers for an encoder's states, which nothing reads without one
        "bert_decoder_crossing",
        "BertLMHeadModel",
        merged(BERT, **BEHIND, hidden_act="gelu_new"),
        "causal",
    ),
    Case("bert_decoder_both_ways", "BertLMHeadModel", BERT, "causal"),
    Case("bert_decoder_model", "BertModel", merged(BERT, **ALONE)),
    Case("bert_decoder_masked", "BertForMaskedLM", merged(BERT, **ALONE), "tokens"),
    Case("bert_decoder_sequence", "BertForSequenceClassification", merged(BERT, **ALONE, num_labels=3), "sequence"),
    Case(
        "bert_decoder_losses",
        "BertLMHeadModel",
        merged(BERT, **ALONE, **NO_DROPOUT),
        "causal",
        masks="right right",
        steps=4e-3,
    ),
    Case("roberta_decoder", "RobertaForCausalLM", merged(ROBERTA, **ALONE), "causal", deep=True, length=6),
    Case("xlm_roberta_decoder", "XLMRobertaForCausalLM", merged(ROBERTA, **ALONE, pad_token_id=3), "causal"),
    Case("electra_decoder", "ElectraForCausalLM", merged(ELECTRA, **ALONE), "causal"),
    Case("electra_decoder_untied", "ElectraForCausalLM", merged(ELECTRA, **ALONE, tie_word_embeddings=False), "causal"),
    Case("bart_decoder", "BartForCausalLM", BART3, "causal", deep=True, length=6),
    Case("bart_decoder_untied", "BartForCausalLM", merged(BART3, tie_word_embeddings=False), "causal"),
    Case("mbart_decoder", "MBartForCausalLM", merged(BART3, scale_embedding=True), "causal"),
    Case("marian_decoder", "MarianForCausalLM", MARIAN3, "causal"),
    Case("gpt2_crossing", "GPT2LMHeadModel", merged(GPT2, add_cross_attention=True), "causal"),
]

PAIRS = [
    Case(
        "pair_bert_bert",
        "EncoderDecoderModel",
        pair(("bert", BERT), ("bert", merged(BERT, hidden_size=24, vocab_size=53))),
        "target",
        length=6,
        target=5,
        deep=True,
    ),
    Case(
        "pair_bert_bert_untied",
        "EncoderDecoderModel",
        pair(("bert", BERT), ("bert", merged(BERT, tie_word_embeddings=False, type_vocab_size=1))),
        "target",
    ),
    Case(
        "pair_roberta_roberta",
        "EncoderDecoderModel",
        pair(("roberta", ROBERTA), ("roberta", ROBERTA), pad_token_id=1),
        "target",
    ),
    Case(  # padding is a token like others to the sinks of RoBERTa's positions
        "pair_xlm_roberta_roberta",
        "EncoderDecoderModel",
        pair(("xlm-roberta", ROBERTA), ("roberta", ROBERTA), pad_token_id=1),
        decoder="masked",
    ),
    Case("pair_bert_gpt2", "EncoderDecoderModel", pair(("bert", BERT), ("gpt2", GPT2)), "target", types=True),
    Case(
        "pair_electra_electra",
        "EncoderDecoderModel",
        pair(("electra", ELECTRA), ("electra", merged(ELECTRA, embedding_size=20))),
        decoder="given",
    ),
    Case(
        "pair_albert_bart",
        "EncoderDecoderModel",
        pair(("albert", ALBERT), ("bart", merged(BART3, d_model=28))),
        "target",
    ),
    Case("pair_distilbert_mbart", "EncoderDecoderModel", pair(("distilbert", DISTILBERT), ("mbart", BART3)), "target"),
    Case(
        "pair_bert_gpt2_losses",
        "EncoderDecoderModel",
        pair(
            ("bert", merged(BERT, **NO_DROPOUT, hidden_size=24)),
            ("gpt2", merged(GPT2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
        ),
        "target",
        steps=4e-3,
        masks="right right",
    ),
]

SEQ2SEQ = [
    Case("t5_generation", "T5ForConditionalGeneration", T5, "target", deep=True),
    Case("t5_generation_masked", "T5ForConditionalGeneration", T5, decoder="masked"),
    Case(
        "t5_generation_gated_gelu",
        "T5ForConditionalGeneration",
        merged(T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        "target",
        text=OLD_T5,
        extra=HEAD,
    ),
    Case(
        "t5_generation_gated_silu",
        "T5ForConditionalGeneration",
        merged(T5, feed_forward_proj="gated-silu", tie_word_embeddings=False),
        "target",
        extra=HEAD,
    ),
    Case(
        "t5_generation_gated_tied",
        "T5ForConditionalGeneration",
        merged(T5, feed_forward_proj="gated-gelu"),
        "target",
    ),
    Case(
        "t5_generation_long",
        "T5ForConditionalGeneration",
        merged(T5, relative_attention_num_buckets=8, relative_attention_max_distance=20, num_decoder_layers=1),
        "target",
        length=24,
        target=22,
    ),
    Case("t5_encoder", "T5EncoderModel", merged(T5, layer_norm_epsilon=1e-3), length=12, deep=True),
    Case("t5_model", "T5Model", merged(T5, num_decoder_layers=None), decoder="given"),
    Case("t5_sequence", "T5ForSequenceClassification", merged(T5, num_labels=3), "sequence"),
    Case("t5_token", "T5ForTokenClassification", merged(T5, num_labels=4), "classes"),
    Case("t5_question", "T5ForQuestionAnswering", T5, "span"),
    Case("t5_losses", "T5ForConditionalGeneration", merged(T5, dropout_rate=0.0), "target", steps=1e-2),
    Case("mt5_generation", "MT5ForConditionalGeneration", merged(T5, feed_forward_proj="gated-gelu"), "target"),
    Case(
        "mt5_generation_untied",
        "MT5ForConditionalGeneration",
        merged(T5, feed_forward_proj="gated-gelu"),
        "target",
        text=OLD_MT5,
        extra=HEAD,
    ),
    Case("bart_generation", "BartForConditionalGeneration", BART, "target", deep=True),
    Case(
        "bart_generation_scaled",
        "BartForConditionalGeneration",
        merged(BART, scale_embedding=True, activation_function="relu", pad_token_id=3),
        decoder="masked",
    ),
    Case(
        "bart_generation_untied",
        "BartForConditionalGeneration",
        merged(BART, tie_word_embeddings=False),
        "target",
    ),
    Case("bart_model", "BartModel", merged(BART, activation_function="gelu_new")),
    Case("bart_sequence", "BartForSequenceClassification", merged(BART, num_labels=4), "sequence"),
    Case("bart_question", "BartForQuestionAnswering", BART, "span"),
    Case("bart_losses", "BartForConditionalGeneration", merged(BART, dropout=0.0), "target", steps=4e-3),
    Case("mbart_generation", "MBartForConditionalGeneration", merged(BART, scale_embedding=True), "target", deep=True),
    Case("mbart_model", "MBartModel", merged(BART, activation_function="relu"), decoder="given"),
    Case("marian_translation", "MarianMTModel", MARIAN, "target", deep=True),
    Case(
        "marian_translation_two_vocabularies",
        "MarianMTModel",
        merged(
            MARIAN,
            share_encoder_decoder_embeddings=False,
            decoder_vocab_size=53,
            vocab_size=67,
            pad_token_id=50,
            decoder_start_token_id=50,
            d_model=21,
            decoder_attention_heads=7,
            scale_embedding=False,
        ),
        decoder="masked",
    ),
    Case(
        "marian_translation_untied",
        "MarianMTModel",
        merged(MARIAN, tie_word_embeddings=False, share_encoder_decoder_embeddings=False, decoder_vocab_size=61),
        "target",
    ),
    Case("marian_translation_untied_shared", "MarianMTModel", merged(MARIAN, tie_word_embeddings=False), "target"),
    Case("mbart_generation_start", "MBartForConditionalGeneration", merged(BART, decoder_start_token_id=7), "target"),
]

SHARED, ENCODER, DECODER = (f"{name}.weight" for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens"))
APART = [
    Case(
        "apart_bert",
        "BertForMaskedLM",
        BERT,
        apart=True,
        extra=(
            "cls.predictions.decoder.weight=bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias=cls.predictions.bias",
        ),
    ),
    Case("apart_roberta_bias", "RobertaForMaskedLM", ROBERTA, apart=True, extra=("lm_head.decoder.bias=lm_head.bias",)),
    Case(
        "apart_albert",
        "AlbertForMaskedLM",
        ALBERT,
        apart=True,
        extra=("predictions.decoder.weight=albert.embeddings.word_embeddings.weight",),
    ),
    Case(
        "apart_distilbert",
        "DistilBertForMaskedLM",
        DISTILBERT,
        apart=True,
        extra=("vocab_projector.weight=distilbert.embeddings.word_embeddings.weight",),
    ),
    Case(
        "apart_electra",
        "ElectraForMaskedLM",
        ELECTRA,
        apart=True,
        extra=("generator_lm_head.weight=electra.embeddings.word_embeddings.weight",),
    ),
    Case("apart_gpt2", "GPT2LMHeadModel", GPT2, apart=True, extra=("lm_head.weight=transformer.wte.weight",)),
    Case(
        "apart_llama",
        "LlamaForCausalLM",
        merged(LLAMA, tie_word_embeddings=True),
        apart=True,
        extra=("lm_head.weight=model.embed_tokens.weight",),
    ),
    Case(
        "apart_t5",
        "T5ForConditionalGeneration",
        T5,
        decoder="given",
        apart=True,
        extra=(f"lm_head.weight={SHARED}", f"{ENCODER}={SHARED}"),
    ),
    Case(
        "apart_t5_decoder_alone",
        "T5ForConditionalGeneration",
        T5,
        decoder="given",
        apart=True,
        extra=(f"{DECODER}={SHARED}",),
        absent=(SHARED,),
    ),
    Case(
        "apart_mt5_sides",
        "MT5ForConditionalGeneration",
        T5,
        decoder="given",
        apart=True,
        extra=(f"{ENCODER}={SHARED}", f"{DECODER}={SHARED}"),
        absent=(SHARED,),
    ),
    Case(
        "apart_bart_output",
        "BartForConditionalGeneration",
        BART,
        decoder="given",
        apart=True,
        extra=(f"lm_head.weight=model.{SHARED}",),
    ),
    Case(
        "apart_bart_decoder",
        "BartForConditionalGeneration",
        BART,
        decoder="given",
        apart=True,
        extra=(f"model.{DECODER}=model.{SHARED}",),
    ),
    Case(
        "apart_mbart_sides",
        "MBartForConditionalGeneration",
        BART,
        decoder="given",
        apart=True,
        extra=(f"model.{ENCODER}=model.{SHARED}", f"model.{DECODER}=model.{SHARED}"),
        absent=(f"model.{SHARED}",),
    ),
    Case(
        "apart_marian",
        "MarianMTModel",
        MARIAN,
        decoder="given",
        apart=True,
        extra=(f"model.{ENCODER}=model.{SHARED}",),
    ),
]


def more_cases() -> list[Case]:
    """The lists CASES of all cases_*.py next to this file."""
    names = sorted(path.stem for path in HERE.glob("cases_*.py"))
    return [case for name in names for case in importlib.import_module(name).CASES]


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    total = 0
    for case in ENCODERS + DECODERS + ENCODERS_AS_DECODERS + PAIRS + SEQ2SEQ + APART + more_cases():
        if len(sys.argv) > 1 and not case.name.startswith(tuple(sys.argv[1:])):
            continue
        golden = make(case)
        total += (size := save(golden, case))
        shapes = " ".join(f"{key}{list(value.shape)}" for key, value in golden.outputs.items())
        print(f"{case.name}.npz  {size}  {case.kind}  {shapes}", *golden.outputs.get("losses", ()))
    print(total, "bytes")


if __name__ == "__main__":
    main()
