"""Fine-tuning an encoder-decoder to write a target for a source: translation, summaries, anything as text to text.

Command
    python -m lm_research.train --config=configs/finetune/seq2seq.py --workdir=runs/pairs \
        --config.train.init_from=MODEL_DIR --config.task.train=train.jsonl --config.task.validation=dev.jsonl

    Records have the fields source and target (or those given by --config.task.text_key and --config.task.label_key). Two text files whose
    lines belong together are --config.task.train=lines:train.de,train.en. :wmt14_en_de, :wmt16_en_ro, :cnn_dailymail and :xsum read
    those data sets from TensorFlow Datasets. MODEL_DIR is a T5, BART, mBART or Marian model, or a run of this library; without it a model is
    trained from scratch (--config.model.family=transformer). BART needs another recipe than T5: see below.

Hardware   untried on accelerators. If a batch does not fit, raise train.accumulation_steps. All pairs are held in memory once, while
           the data set is built: an estimated 10 GB for WMT14.
Time       planned: python -m lm_research.plan with the same flags and --topology or --hardware predicts it for a model and its records;
           experiments/finetune/README.md has a small model's run on a CPU.
Result     Raffel et al. 2020, table 14, test sets: T5-base 30.9 BLEU on WMT14 En-De, 28.0 on WMT16 En-Ro, ROUGE-1/2/L 42.05/20.34/39.40
           on CNN/DM; T5-large 32.0, 28.1, 42.50/20.68/39.75. Lewis et al. 2020, table 3: BART-large 44.16/21.28/40.90 on CNN/DM,
           45.14/22.27/37.25 on XSum. Liu et al. 2020: mBART 37.7 BLEU on WMT16 En-Ro. Their ROUGE-L of CNN/DM is eval_rougelsum here,
           times 100. Planned, not measured here; experiments/finetune/README.md has a small run.

Sources
    Raffel et al. 2020, section 3.1.2: Adafactor at a constant 1e-3, 2^18 steps of batches of 128, sequences of 512 tokens; the best
    checkpoint by the validation set is kept. Section 3.7: beams of 4 with length penalty 0.6. Appendix D: the prefixes.
    Lewis et al. 2020 as its authors trained it for CNN/DM: AdamW with beta2 0.999 and epsilon 1e-8, peak 3e-5 with 500 steps of
    warm-up in 20,000, batches of about 64, label smoothing 0.1, weight decay 0.01, clipping at 0.1, 1,024 tokens; beams of 4, length
    penalty 2.0, no repeated trigram, 55 to 140 tokens: --config.optimizer.name=adamw --config.optimizer.learning_rate=3e-5 ...

Where it differs
    Evaluations read 16 batches, whatever the size of the validation set; the end of a run reads all of it. Length penalties
    differ in form between the papers; here a finished beam's log-probability is divided by its length to that power.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config

# Name -> data set, fields of source and target, prefix, tokens of source and target, metric.
DATA = {
    "wmt14_en_de": ("wmt14_translate/de-en", "en", "de", "translate English to German: ", 512, 512, "bleu"),
    "wmt16_en_ro": ("wmt16_translate/ro-en", "en", "ro", "translate English to Romanian: ", 512, 512, "bleu"),
    "cnn_dailymail": ("cnn_dailymail", "article", "highlights", "summarize: ", 512, 128, "rougelsum"),
    "xsum": ("xsum", "document", "summary", "summarize: ", 512, 64, "rouge2"),
}


def get_config(name: str = "") -> ConfigDict:
    """T5's recipe; `name` is a key of DATA, or empty for files."""
    config = default_config()
    config.model.scan_layers = False  # a loop copies activations into stacks and out
    config.task.update(
        name="seq2seq", text_key="source", label_key="target", predict_with_generate="each", metric="bleu"
    )
    config.data.update(max_length=512, packing=True)
    config.objective.target_length = 128
    config.model.update(family="t5", max_length=512, dropout_rate=0.1)
    config.train.update(num_steps=2**18, batch_size=128)
    config.optimizer.update(name="adafactor", learning_rate=1e-3, weight_decay=0.0, clip_norm=1.0)
    config.schedule.update(name="constant", warmup_steps=0)
    config.eval.update(every_steps=5_000, num_batches=16)
    config.checkpoint.update(every_steps=5_000)
    if name:
        data, source, target, prefix, source_length, target_length, metric = DATA[name]
        parts = {part: f"tfds:{data}@{part}" for part in ("train", "validation", "test")}
        config.task.update(text_key=source, label_key=target, source_prefix=prefix, metric=metric, **parts)
        config.task.generation = "num_beams=4,length_penalty=0.6"
        config.data.update(max_length=source_length, on_error="skip")
        config.objective.target_length = target_length
    return config
