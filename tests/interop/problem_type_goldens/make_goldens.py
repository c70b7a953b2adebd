"""Make problem_types.json next to this file: losses of transformers' sequence classifiers for each problem_type and number of outputs.

Run in a separate environment with torch 2.13 and transformers 5.24; tests do not need them:

    PYTHONPATH=tests python tests/interop/problem_type_goldens/make_goldens.py

Weights follow the rule of tests/helpers/golden_models.py.
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
import torch
import transformers

from helpers.golden_models import golden_tensor

HERE = pathlib.Path(__file__).resolve().parent
SMALL = {"vocab_size": 31, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1}
BERT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 12,
}
BART = {
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "max_position_embeddings": 12,
}
KINDS = {
    "BertForSequenceClassification": BERT,
    "BartForSequenceClassification": BART,
}
INPUTS = [[5, 9, 17, 2], [22, 6, 30, 2], [4, 4, 11, 2]]
VALUES, BITS = (
    [[0.5, -1.25, 2.0], [1.0, 0.0, -0.5], [-2.0, 0.75, 1.5]],
    [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]],
)
# problem_type, outputs, labels; integers are given as int64, else as float32.
CASES = [
    (None, 1, [0.5, -1.0, 2.0]),
    (None, 3, [2, 0, 1]),
    (None, 3, BITS),
    ("regression", 1, [[0.5], [-1.0], [2.0]]),
    ("regression", 3, VALUES),
    ("single_label_classification", 3, [2, -100, 1]),
    ("multi_label_classification", 1, [[1.0], [0.0], [1.0]]),
    ("multi_label_classification", 3, BITS),
]


def build(kind: str, problem_type: str | None, outputs: int) -> torch.nn.Module:
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**SMALL, **KINDS[kind], num_labels=outputs, problem_type=problem_type)).eval()
    with torch.no_grad():
        for name, weight in reversed(model.state_dict().items()):  # of tied tensors the first name counts
            if weight.is_floating_point():
                weight.copy_(torch.tensor(golden_tensor(name, tuple(weight.shape))))
    return model


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    """Return every tensor by name; a tied one appears once."""
    first = {tensor.data_ptr(): name for name, tensor in reversed(model.state_dict().items())}
    return {name: list(x.shape) for name, x in model.state_dict().items() if name == first[x.data_ptr()]}


def loss(kind: str, problem_type: str | None, outputs: int, labels: list) -> dict:
    given = np.array(labels)
    given = torch.tensor(given.astype(np.int64 if given.dtype.kind == "i" else np.float32))
    with torch.no_grad():
        value = build(kind, problem_type, outputs)(input_ids=torch.tensor(INPUTS), labels=given).loss
    return {"kind": kind, "problem_type": problem_type, "outputs": outputs, "labels": labels, "loss": float(value)}


models = {}
for kind in KINDS:
    model = build(kind, None, 1)
    config = json.loads(model.config.to_json_string(use_diff=True)) | {"architectures": [kind]}
    models[kind] = {"config": config, "weights": shapes(model)}
content = {
    "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    "inputs": INPUTS,
    "models": models,  # with one output: an axis of 1 is that of the outputs
    "cases": [loss(kind, *case) for kind in KINDS for case in CASES],
}
(HERE / "problem_types.json").write_text(json.dumps(content) + "\n")
