"""Fine-tuning for multiple choice: which of several endings, causes or answers goes with a text.

Command
    python -m lm_research.train --config=configs/finetune/multiple_choice.py --workdir=runs/choice \
        --config.train.init_from=MODEL_DIR --config.task.train=train.jsonl --config.task.validation=dev.jsonl

    Records have a context (task.text_key), optionally a text that every choice continues (task.pair_key), choices (task.choices_key: a
    list, or one field for each) and the right one (task.label_key: a number from 0, a letter, or its text). :swag, :copa and
    :race name the fields of those data sets; without a name they are question, choices and label. COPA is read from the unpacked
    archive of SuperGLUE: --config.task.train=FOLDER/COPA/train.jsonl --config.task.validation=FOLDER/COPA/val.jsonl

Hardware   any; BERT-base at length 128 and batch 16 of four choices takes about 8 GB: on smaller devices raise
           train.accumulation_steps.
Time       planned: python -m lm_research.plan with the same flags and --topology or --hardware predicts it for a model and its records.
Result     Devlin et al. 2018, table 4: SWAG, BERT-base 81.6 and BERT-large 86.6 accuracy on the development set. Wang et al. 2019
           (SuperGLUE), table 3: COPA, BERT-large 70.6. Liu et al. 2019, table 7: RACE, RoBERTa-large 83.2. Planned, not measured here.

Sources
    Devlin et al. 2018, section 4.4: 3 epochs, learning rate 2e-5, batch 16. The rest as in classification.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config

# Name -> fields of the context, of the text that choices continue, of the choices, of the right one; tokens of a row.
FIELDS = {
    "": ("question", "", "choices", "label", 128),
    "swag": ("sent1", "sent2", "ending0,ending1,ending2,ending3", "label", 128),
    "copa": ("premise", "question", "choice1,choice2", "label", 128),
    "race": ("article", "question", "options", "answer", 512),
}


def get_config(name: str = "") -> ConfigDict:
    """BERT's recipe for SWAG; `name` is a key of FIELDS."""
    config = default_config()
    config.model.scan_layers = False  # a loop copies activations into stacks and out
    text, pair, choices, label, length = FIELDS[name]
    config.task.update(name="multiple_choice", text_key=text, pair_key=pair, choices_key=choices, label_key=label)
    config.data.update(max_length=length)
    config.train.update(num_epochs=3.0, batch_size=16)
    config.optimizer.update(learning_rate=2e-5, weight_decay=0.01, epsilon=1e-6, clip_norm=1.0)
    config.schedule.update(name="linear", warmup_ratio=0.1)
    config.eval.update(every_steps=0)
    config.checkpoint.update(every_steps=0)
    return config
