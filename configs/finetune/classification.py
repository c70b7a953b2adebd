"""Fine-tuning for classification: sentences, or pairs of them, with one label, several, or a value.

Command
    python -m lm_research.train --config=configs/finetune/classification.py --workdir=runs/sentiment \
        --config.train.init_from=MODEL_DIR --config.task.train=train.jsonl --config.task.validation=dev.jsonl

    With `:NAME` the recipe reads a task of GLUE (Wang et al. 2018) from TensorFlow Datasets:
    --config=configs/finetune/classification.py:mrpc, and so on for cola, sst2, mrpc, stsb, qqp, mnli, mnli_mismatched, qnli, rte,
    wnli.

    With adapters instead of the whole model: --config.lora.rank=8 --config.optimizer.learning_rate=1e-3

Hardware   any; BERT-base at length 128 and batch 32 takes about 5 GB.
Time       see experiments/finetune/README.md.
Result     BERT-base (Devlin et al. 2018, table 1, test set): SST-2 93.5 accuracy, CoLA 52.1 Matthews, MRPC 88.9 F1, STS-B 85.8
           Spearman, QQP 71.2 F1, MNLI 84.6 / 83.4 accuracy, QNLI 90.5, RTE 66.4. Not measured here: no task of GLUE has been
           run with this code yet.

Sources
    Devlin et al. 2018, appendix A.3: batch 16 or 32, learning rate 5e-5, 3e-5 or 2e-5, 2 to 4 epochs, dropout 0.1. The authors'
    code: AdamW with epsilon 1e-6 and decay 0.01, warm-up over a tenth of the steps, then linear decay, clipping to norm 1.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config

# Name -> fields of the two texts, target, metric that the benchmark reports, split to hold out.
GLUE = {
    "cola": ("sentence", "", "label", "matthews", "validation"),
    "sst2": ("sentence", "", "label", "accuracy", "validation"),
    "mrpc": ("sentence1", "sentence2", "label", "f1", "validation"),
    "stsb": ("sentence1", "sentence2", "value", "spearman", "validation"),
    "qqp": ("question1", "question2", "label", "f1", "validation"),
    "mnli": ("premise", "hypothesis", "label", "accuracy", "validation_matched"),
    "mnli_mismatched": ("premise", "hypothesis", "label", "accuracy", "validation_mismatched"),
    "qnli": ("question", "sentence", "label", "accuracy", "validation"),
    "rte": ("sentence1", "sentence2", "label", "accuracy", "validation"),
    "wnli": ("sentence1", "sentence2", "label", "accuracy", "validation"),
}


def get_config(glue: str = "") -> ConfigDict:
    """BERT's recipe; `glue` names a task of the benchmark."""
    config = default_config()
    config.task.update(name="classification")
    config.data.update(max_length=128)
    config.train.update(num_epochs=3.0, batch_size=32)
    config.optimizer.update(learning_rate=3e-5, weight_decay=0.01, epsilon=1e-6, clip_norm=1.0)
    config.schedule.update(name="linear", warmup_ratio=0.1)
    config.eval.update(every_steps=0)
    config.checkpoint.update(every_steps=0)
    if glue:
        text, pair, target, metric, held_out = GLUE[glue]
        name = glue.partition("_")[0]
        config.task.update(text_key=text, pair_key=pair, target=target, metric=metric)
        config.task.update(train=f"tfds:glue/{name}@train", validation=f"tfds:glue/{name}@{held_out}")
    return config
