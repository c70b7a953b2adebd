"""Fine-tuning for a label on each word: named entities, parts of speech.

Command
    python -m lm_research.train --config=configs/finetune/tagging.py --workdir=runs/entities \
        --config.train.init_from=MODEL_DIR --config.task.train=train.conll --config.task.validation=dev.conll

    Files have CoNLL's columns (a word first, its tag last, a blank line between sentences; any ending but those of records), or
    are records with a list of words and a list of tags, named by task.text_key and task.label_key.

    :conll2003 reads CoNLL-2003 and :wikiann_LANG the articles of one language in WikiANN (Pan et al. 2017, divided as by Rahimi et al.
    2019) from TensorFlow Datasets: :wikiann_en, :wikiann_de, ... To train in one language and test in another:
    --config=configs/finetune/tagging.py:wikiann_en --config.task.test=tfds:wikiann/sw@test

    The records of a batch share rows (data.packing), which changes only the amount of padding and the random draws of dropout.

Hardware   any; BERT-base at length 128 and batch 32 takes about 5 GB.
Time       planned: minutes an epoch of CoNLL-2000 or WNUT-17 with MiniLM on two quiet cores, from the number of operations; the rows
           glue_conll2000, glue_wnut17 and glue_snips_slots of experiments/results/results.md measure it. For other sizes:
           python -m lm_research.plan with the same flags.
Result     CoNLL-2003, F1 on the test set: BERT-base cased 92.4, BERT-large cased 92.8 (Devlin et al. 2018, table 7), XLM-R large 92.9
           (Conneau et al. 2019, table 2). WikiANN, trained on English, over 40 languages: XLM-R large 65.4 (Hu et al. 2020, table 2).
           Planned, not measured here.

Sources
    Devlin et al. 2018, section 5.3 and appendix A.3: the first piece of each word is classified; batch 32, learning rate 5e-5, 3
    epochs. WikiANN: Hu et al. 2020, appendix: batch 32, learning rate 2e-5, 10 epochs. The rest as in classification.py.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config(name: str = "") -> ConfigDict:
    """BERT's recipe for tags; `name` is conll2003 or wikiann_LANG, or empty for files."""
    config = default_config()
    config.model.scan_layers = False  # a loop copies activations into stacks and out
    config.task.update(name="tagging", text_key="tokens", label_key="tags")
    config.data.update(max_length=128, packing=True)
    config.train.update(num_epochs=3.0, batch_size=32)
    config.optimizer.update(learning_rate=5e-5, weight_decay=0.01, epsilon=1e-6, clip_norm=1.0)
    config.schedule.update(name="linear", warmup_ratio=0.1)
    config.eval.update(every_steps=0)
    config.checkpoint.update(every_steps=0)
    if name == "conll2003":
        config.task.update(label_key="ner", train="tfds:conll2003@train", validation="tfds:conll2003@dev")
        config.task.update(test="tfds:conll2003@test")
    elif name:
        dataset = f"tfds:wikiann/{name.removeprefix('wikiann_')}"
        config.task.update(train=f"{dataset}@train", validation=f"{dataset}@validation", test=f"{dataset}@test")
        config.train.update(num_epochs=10.0)
        config.optimizer.update(learning_rate=2e-5)
    return config
