"""Fine-tuning for extractive question answering: the span of a context that answers a question, or no answer.

Command
    python -m lm_research.train --config=configs/finetune/question_answering.py --workdir=runs/squad \
        --config.train.init_from=MODEL_DIR --config.task.train=train-v1.1.json --config.task.validation=dev-v1.1.json

    Files have SQuAD's form (data -> paragraphs -> qas), or are records with id, question, context and answers
    {"text": [...], "answer_start": [...]}. :squad and :squad2 read SQuAD 1.1 and 2.0 from TensorFlow Datasets.

Hardware   any; BERT-base at length 384 and batch 32 takes about 12 GB: on smaller devices raise train.accumulation_steps.
Time       planned: python -m lm_research.plan with the same flags and --topology or --hardware predicts it for a model and its records.
Result     Devlin et al. 2018, tables 2 and 3, development sets, exact match / F1: BERT-base 80.8 / 88.5 and BERT-large 84.1 / 90.9 on
           SQuAD 1.1; BERT-large 78.7 / 81.9 on 2.0. Liu et al. 2019, table 6: RoBERTa-large 88.9 / 94.6 and 86.5 / 89.4. These
           are planned, not measured here.

Sources
    Devlin et al. 2018, section 4.2: 3 epochs (2 on SQuAD 2.0), learning rate 5e-5, batch 32 (48 on 2.0). The authors' code: length
    384, answers of at most 30 tokens, 20 best. Their windows begin 128 tokens apart; here, as in transformers, neighbors have 128
    tokens in common, which makes about half as many. The rest as in classification.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config(squad: str = "") -> ConfigDict:
    """BERT's recipe; `squad` is "squad" or "squad2", or empty for files."""
    config = default_config()
    config.model.scan_layers = False  # a loop copies activations into stacks and out
    config.task.update(name="question_answering", text_key="context", pair_key="question", label_key="answers")
    config.task.update(doc_stride=128, max_answer_length=30, n_best=20)
    config.data.update(max_length=384, packing=True)
    config.train.update(num_epochs=3.0, batch_size=32)
    config.optimizer.update(learning_rate=5e-5, weight_decay=0.01, epsilon=1e-6, clip_norm=1.0)
    config.schedule.update(name="linear", warmup_ratio=0.1)
    config.eval.update(every_steps=0)
    config.checkpoint.update(every_steps=0)
    if squad:
        name = {"squad": "squad", "squad2": "squad/v2.0"}[squad]
        config.task.update(train=f"tfds:{name}@train", validation=f"tfds:{name}@validation")
    if squad == "squad2":
        config.train.update(num_epochs=2.0, batch_size=48)
    return config
