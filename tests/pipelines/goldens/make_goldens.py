"""Make pipelines.json next to this file: answers of transformers' pipelines for small models whose weights follow a rule.

Run in a separate environment with torch 2.13, transformers 5.24 and safetensors; tests need neither of the first two:

    PYTHONPATH=tests python tests/pipelines/goldens/make_goldens.py

The weights follow the rule of tests/helpers/golden_models.py, the vocabulary is written below. For each model the file holds

    kind, family, config, weights    enough to write the checkpoint
    cases                            task, inputs, options, and the answer
"""

from __future__ import annotations

import json
import pathlib
import platform
import tempfile

import numpy as np
import torch
import transformers

from helpers.golden_models import Golden, write_checkpoint

HERE = pathlib.Path(__file__).resolve().parent
VOCAB = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the a king queen of spain visit ##ed ##s old river in march , . ? ! who where does "
    "flow from mountain ##ain bread is good bad this example entail about food travel"
).split()
BASE = dict(
    vocab_size=len(VOCAB),
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=40,
    max_position_embeddings=40,
    type_vocab_size=2,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
TEXTS = ["The king of Spain visited the old river.", "bread is good!", "Who visits mountains in march, a queen?"]
MASKED = ["the king of [MASK] visited the river .", "bread is [MASK] .", "a [MASK] of [MASK] in march"]
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}

MODELS = {
    "masked": (
        "BertForMaskedLM",
        {},
        [
            ("fill-mask", MASKED, {"top_k": 3}),
            ("fill-mask", MASKED[:2], {"targets": ["good", "bad", "spain"]}),
        ],
    ),
    "classes": (
        "BertForSequenceClassification",
        {"id2label": {0: "bad", 1: "so-so", 2: "good"}},
        [
            ("text-classification", TEXTS, {}),
            ("text-classification", TEXTS, {"top_k": 2}),
            ("text-classification", TEXTS, {"top_k": None, "function_to_apply": "sigmoid"}),
            ("text-classification", [{"text": TEXTS[0], "text_pair": TEXTS[1]}], {}),
        ],
    ),
    "several": (
        "BertForSequenceClassification",
        {"problem_type": "multi_label_classification"},
        [
            ("text-classification", TEXTS, {"top_k": None}),
        ],
    ),
    "value": (
        "BertForSequenceClassification",
        {"num_labels": 1, "problem_type": "regression"},
        [
            ("text-classification", TEXTS, {}),
        ],
    ),
    "inference": (
        "BertForSequenceClassification",
        {"id2label": NLI, "label2id": {name: i for i, name in NLI.items()}},
        [
            ("zero-shot-classification", TEXTS[:2], {"candidate_labels": ["food", "travel", "the river"]}),
            ("zero-shot-classification", TEXTS[:1], {"candidate_labels": "food, travel", "multi_label": True}),
            (
                "zero-shot-classification",
                TEXTS[:1],
                {"candidate_labels": ["food"], "hypothesis_template": "about {} ."},
            ),
        ],
    ),
    "tags": (
        "BertForTokenClassification",
        {"id2label": TAGS},
        [
            ("token-classification", TEXTS, {"aggregation_strategy": way, "ignore_labels": ignored})
            for way in ("none", "simple", "first", "average", "max")
            for ignored in (["O"], [])
        ],
    ),
    "features": ("BertModel", {}, [("feature-extraction", TEXTS[:2], {})]),
}


def write(folder: pathlib.Path, entry: dict) -> None:
    weights = {name: tuple(shape) for name, shape in entry["weights"].items()}
    write_checkpoint(folder, Golden("", entry["kind"], "bert", "", entry["config"], weights, {}, {}, {}, {}))
    (folder / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )


def plain(value: object) -> object:
    if isinstance(value, np.generic | torch.Tensor):
        return value.item()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def main() -> None:
    found = {
        "vocab": VOCAB,
        "versions": {
            "maker": "tests/pipelines/goldens/make_goldens.py",
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "models": {},
    }
    for name, (kind, more, cases) in MODELS.items():
        config = transformers.BertConfig(**BASE, **more, architectures=[kind])
        model = getattr(transformers, kind)(config)
        weights = {key: list(value.shape) for key, value in model.state_dict().items() if value.is_floating_point()}
        tied = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
        weights = {key: shape for key, shape in weights.items() if key not in tied}
        entry = {
            "kind": kind,
            "config": json.dumps(json.loads(config.to_json_string()), sort_keys=True),
            "weights": weights,
            "cases": [],
        }
        with tempfile.TemporaryDirectory() as folder:
            write(pathlib.Path(folder), entry)
            for task, inputs, options in cases:
                pipe = transformers.pipeline(task, model=folder, tokenizer=folder, device="cpu")
                answers = plain(pipe(inputs, **options))
                entry["cases"].append({"task": task, "inputs": inputs, "options": options, "answers": answers})
        found["models"][name] = entry
    (HERE / "pipelines.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
