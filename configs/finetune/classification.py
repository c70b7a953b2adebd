"""Fine-tuning for classification: sentences, or pairs of them, with one label, several, or a value.

Command
    python -m lm_research.train --config=configs/finetune/classification.py --workdir=runs/sentiment \
        --config.train.init_from=MODEL_DIR --config.task.train=train.jsonl --config.task.validation=dev.jsonl

    With `:NAME` the recipe reads a task of GLUE (Wang et al. 2018) from TensorFlow Datasets:
    --config=configs/finetune/classification.py:mrpc, and so on for cola, sst2, mrpc, stsb, qqp, mnli, mnli_mismatched, qnli, rte,
    wnli.

    The records of a batch share rows (data.packing), which changes only the amount of padding and the random draws of dropout.

    With adapters instead of the whole model: --config.lora.rank=8 --config.optimizer.learning_rate=1e-3

    Tasks of SuperGLUE (Wang et al. 2019) read the unpacked archives of super.gluebenchmark.com, because the builder in TensorFlow
    Datasets needs TensorFlow: :boolq, :cb, :multirc, :record, :superglue_rte, :wic, :wsc, with FOLDER/BoolQ and so on:

    python -m lm_research.train --config=configs/finetune/classification.py:boolq --workdir=runs/boolq --config.train.init_from=MODEL_DIR \
        --config.task.train=FOLDER/BoolQ/train.jsonl --config.task.validation=FOLDER/BoolQ/val.jsonl

    In WiC the word, and in WSC the pronoun, is between asterisks (lm_research/tasks/superglue.py). COPA is :copa in multiple_choice.py.
    MultiRC's two metrics are f1, over answers, and group_accuracy, over questions. ReCoRD's are choice_accuracy (its exact match) and
    choice_credit (its F1), over queries: each entity of the passage makes a record, and the likeliest of a query's is the answer.

    :xnli_LANG (:xnli_de, :xnli_sw, ...) trains on the English MNLI, is validated on its English development set and tested in LANG
    on XNLI, as XLM-R does (Conneau et al. 2019): ar, bg, de, el, en, es, fr, hi, ru, sw, th, tr, ur, vi, zh.

Hardware   any; BERT-base at length 128 and batch 32 takes about 5 GB.
Time       see experiments/finetune/README.md.
Result     BERT-base (Devlin et al. 2018, table 1, test set): SST-2 93.5 accuracy, CoLA 52.1 Matthews, MRPC 88.9 F1, STS-B 85.8
           Spearman, QQP 71.2 F1, MNLI 84.6 / 83.4 accuracy, QNLI 90.5, RTE 66.4. BERT-large (Wang et al. 2019, table 3, test set): BoolQ
           77.4, CB 75.7 F1 / 83.6 accuracy, MultiRC 70.0 F1 / 24.1 exact match, ReCoRD 72.0 F1 / 71.3 exact match, RTE 71.7, WiC 69.6,
           WSC 64.4. XLM-R base (Conneau et al. 2019, table 1): XNLI 85.8 en, 78.7 de, 76.7 zh, 66.5 sw, 76.2 over 15 languages. These
           are published and not measured here. Measured is all-MiniLM-L6-v2 (22.7M parameters) on some of these sets and on others: rows glue_*
           of experiments/results/results.md, which also names those that no one has run.

Sources
    Devlin et al. 2018, appendix A.3: batch 16 or 32, learning rate 5e-5, 3e-5 or 2e-5, 2 to 4 epochs, dropout 0.1. The authors'
    code: AdamW with epsilon 1e-6 and decay 0.01, warm-up over a tenth of the steps, then linear decay, clipping to norm 1.
    SuperGLUE: Wang et al. 2019, section 5.1: learning rate 1e-5, at most 10 epochs. XNLI: Hu et al. 2020 (XTREME), appendix: learning rate
    2e-5, batch 32, 2 to 5 epochs.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config

# Name -> fields of the two texts, problem type, metric that the benchmark reports, split to hold out.
GLUE = {
    "cola": ("sentence", "", "single_label", "matthews", "validation"),
    "sst2": ("sentence", "", "single_label", "accuracy", "validation"),
    "mrpc": ("sentence1", "sentence2", "single_label", "f1", "validation"),
    "stsb": ("sentence1", "sentence2", "regression", "spearman", "validation"),
    "qqp": ("question1", "question2", "single_label", "f1", "validation"),
    "mnli": ("premise", "hypothesis", "single_label", "accuracy", "validation_matched"),
    "mnli_mismatched": ("premise", "hypothesis", "single_label", "accuracy", "validation_mismatched"),
    "qnli": ("question", "sentence", "single_label", "accuracy", "validation"),
    "rte": ("sentence1", "sentence2", "single_label", "accuracy", "validation"),
    "wnli": ("sentence1", "sentence2", "single_label", "accuracy", "validation"),
}

# Name -> fields of the two texts, metric that the benchmark reports, tokens of a row.
SUPERGLUE = {
    "boolq": ("question", "passage", "accuracy", 256),
    "cb": ("premise", "hypothesis", "accuracy+f1_macro", 256),
    "multirc": ("passage", "question", "f1+group_accuracy", 512),
    "record": ("passage", "statement", "choice_accuracy+choice_credit", 512),
    "superglue_rte": ("premise", "hypothesis", "accuracy", 256),
    "wic": ("marked1", "marked2", "accuracy", 128),
    "wsc": ("marked", "candidate", "accuracy", 128),
}


def get_config(name: str = "") -> ConfigDict:
    """BERT's recipe; `name` is a key of GLUE or SUPERGLUE, or xnli_LANG."""
    config = default_config()
    config.model.scan_layers = False  # a loop copies activations into stacks and out
    config.task.update(name="classification")
    config.data.update(max_length=128, packing=True)
    config.train.update(num_epochs=3.0, batch_size=32)
    config.optimizer.update(learning_rate=3e-5, weight_decay=0.01, epsilon=1e-6, clip_norm=1.0)
    config.schedule.update(name="linear", warmup_ratio=0.1)
    config.eval.update(every_steps=0)
    config.checkpoint.update(every_steps=0)
    if name in SUPERGLUE:
        text, pair, metric, length = SUPERGLUE[name]
        config.task.update(text_key=text, pair_key=pair, metric=metric)
        config.task.update(group_key="question_id" if name in ("multirc", "record") else "")
        config.task.update(relevance_key="f1" if name == "record" else "")
        config.data.update(max_length=length)
        config.train.update(num_epochs=10.0)
        config.optimizer.update(learning_rate=1e-5)
        config.eval.update(every_steps=500)
        config.checkpoint.update(every_steps=500)
    elif name.startswith("xnli_"):
        language = name.removeprefix("xnli_")
        config.task.update(text_key=f"premise.{language}", pair_key=f"hypothesis.{language}", metric="accuracy")
        config.task.update(train="tfds:glue/mnli@train", validation="tfds:glue/mnli@validation_matched")
        config.task.update(test="tfds:xnli@test")
        config.optimizer.update(learning_rate=2e-5)
    elif name:
        text, pair, problem, metric, held_out = GLUE[name]
        dataset = name.partition("_")[0]
        config.task.update(text_key=text, pair_key=pair, problem_type=problem, metric=metric)
        config.task.update(train=f"tfds:glue/{dataset}@train", validation=f"tfds:glue/{dataset}@{held_out}")
    return config
