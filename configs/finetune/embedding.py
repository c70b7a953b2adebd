"""Fine-tuning for embeddings: vectors of texts that are close if the texts belong together.

Command
    python -m lm_research.train --config=configs/finetune/embedding.py --workdir=runs/search \
        --config.train.init_from=MODEL_DIR --config.task.train=train.jsonl --config.task.validation=dev.jsonl

    Records have two texts that belong together, `text` and `pair` (a question and its answer, two ways to say a thing), and
    optionally one that does not belong to the first (task.negative_key). With `:stsb` they are the sentence pairs of STS-B from TensorFlow
    Datasets, and their similarity from 0 to 5 is learned; for files of that kind set task.problem_type=regression, task.label_key,
    task.value_zero and task.value_one.

Hardware   any; BERT-base at length 128 and 128 pairs should take about 27 GB, estimated from classification.py's 5 GB for an eighth of the
           rows. The negatives of a row are the other rows of the whole batch, over all devices, so the batch is not divided into
           micro-batches: on smaller devices lower it, or set model.remat=full.
Time       see experiments/finetune/README.md for a small model on a CPU.
Result     Reimers and Gurevych 2019, table 2, test set of STS-B, Spearman x 100, fine-tuned on it: SBERT-base 84.67, SBERT-large 84.45.
           Planned, not measured here. What was measured, on paraphrased verses, is in experiments/finetune/README.md.

Sources
    Reimers and Gurevych 2019, section 3: mean pooling, squared error of the cosine, batch 16, learning rate 2e-5, warm-up over a tenth of
    the steps; 4 epochs on STS-B from the authors' example script. The batch of 128 pairs is ours. Temperature 0.05: Gao et al. 2021
    (SimCSE), and sentence-transformers' scale of 20. The rest as in classification.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config(name: str = "") -> ConfigDict:
    """Pairs that belong together; `name` is "stsb" for graded similarities, or empty for files."""
    config = default_config()
    config.model.scan_layers = False  # a loop copies activations into stacks and out
    config.task.update(name="embedding", pair_key="pair")
    config.data.update(max_length=128)
    config.train.update(num_epochs=1.0, batch_size=128)
    config.optimizer.update(learning_rate=2e-5, weight_decay=0.01, epsilon=1e-6, clip_norm=1.0)
    config.schedule.update(name="linear", warmup_ratio=0.1)
    config.eval.update(every_steps=0)
    config.checkpoint.update(every_steps=0)
    if name:
        dataset = {"stsb": "glue/stsb"}[name]
        config.task.update(
            text_key="sentence1", pair_key="sentence2", problem_type="regression", value_zero=0.0, value_one=5.0
        )
        config.task.update(train=f"tfds:{dataset}@train", validation=f"tfds:{dataset}@validation")
        config.train.update(num_epochs=4.0, batch_size=16)
    return config
