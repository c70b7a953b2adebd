"""Fine-tuning for a label on each word: named entities, parts of speech.

Command
    python -m lm_research.train --config=configs/finetune/tagging.py --workdir=runs/entities \
        --config.train.init_from=MODEL_DIR --config.task.train=train.conll --config.task.validation=dev.conll

    Files have CoNLL's columns (a word first, its tag last, a blank line between sentences; any ending but those of records), or
    are records with a list of words and a list of tags, named by task.text_key and task.label_key.

Hardware   any; BERT-base at length 128 and batch 32 takes about 5 GB.
Time       not yet measured here.
Result     BERT-base cased (Devlin et al. 2018, table 7): 92.4 F1 on the test set of CoNLL-2003. Not measured here.

Sources
    Devlin et al. 2018, section 5.3 and appendix A.3: the first piece of each word is classified; batch 32, learning rate 5e-5, 3
    epochs. The rest as in classification.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config() -> ConfigDict:
    """BERT's recipe for tags."""
    config = default_config()
    config.task.update(name="tagging", text_key="tokens", label_key="tags")
    config.data.update(max_length=128)
    config.train.update(num_epochs=3.0, batch_size=32)
    config.optimizer.update(learning_rate=5e-5, weight_decay=0.01, epsilon=1e-6, clip_norm=1.0)
    config.schedule.update(name="linear", warmup_ratio=0.1)
    config.eval.update(every_steps=0)
    config.checkpoint.update(every_steps=0)
    return config
