"""Fine-tune all-MiniLM-L6-v2 with transformers' Trainer, with the settings of the rows glue_*, and store its scores.

    python experiments/results/make_trainer_reference.py [--bf16] NAME [NAME ...]    # keys of SCORES

The scores of each seed, as fractions, go to references/trainer.json beside the versions and the arithmetic that made them, and into the
rows' stored measurements; without a NAME only the latter are brought up to date. Needs torch, transformers, accelerate and scikit-learn. Weights, files, number of steps, batch, rate, schedule, decay, clipping, dropout and length are
those of the rows; the order of the records (by chance, and those of similar length together) and the draws of dropout are not. With
--bf16 the products are computed in bfloat16 (autocast), as the rows are where the processor has units for it. Metrics are scikit-learn's and
SciPy's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
import scipy.stats
import sklearn.metrics
import torch
import transformers

from experiments.results import run, tables
from experiments.results.finetuning import SEEDS, TRAINER, FineTuning
from experiments.results.minilm import model
from experiments.results.row import Figure
from experiments.results.sets import SETS

BATCH, LENGTH = 32, 128
LEFT_OUT = {"atis": 5}  # test records that are not in the file and count as wrong, as in rows/glue_atis.py
SCORES: dict[str, tuple[str, Callable[[Any, Any], float]]] = {
    "atis": ("accuracy", sklearn.metrics.accuracy_score),
    "cola": ("matthews", sklearn.metrics.matthews_corrcoef),
    "mrpc": ("f1", sklearn.metrics.f1_score),
    "rte": ("accuracy", sklearn.metrics.accuracy_score),
    "stsb": ("spearman", lambda labels, values: scipy.stats.spearmanr(labels, values).statistic),
    "trec": ("accuracy", sklearn.metrics.accuracy_score),
    "wnli": ("accuracy", sklearn.metrics.accuracy_score),
}


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read one record a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def features(records: list[dict[str, Any]], names: list[str], tokenizer: Any) -> list[dict[str, Any]]:
    """Encode the records; labels are numbers of names, or values where there are no names."""
    encoded = []
    for record in records:
        texts = [record[key] for key in ("text", "pair") if key in record]
        label = names.index(record["label"]) if names else float(record["label"])
        encoded.append({**tokenizer(*texts, truncation=True, max_length=LENGTH), "labels": label})
    return encoded


def recipe(name: str) -> FineTuning:
    """The settings of a row."""
    return run.rows()[f"glue_{name}"].measure.__self__  # a bound method


def score(name: str, seed: int, folder: pathlib.Path, bf16: bool) -> float:
    """Train with one seed, and score the model after the last step."""
    train, test = read(folder / "train.jsonl"), read(folder / "test.jsonl")
    names = [] if name == "stsb" else sorted({record["label"] for record in train})
    transformers.set_seed(seed)  # of the new classifier's weights
    network = transformers.AutoModelForSequenceClassification.from_pretrained(
        model(), num_labels=len(names) or 1, problem_type=None if names else "regression"
    )
    row = recipe(name)
    steps = math.ceil(row.epochs * len(train) / BATCH)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "run"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        learning_rate=row.rate,
        lr_scheduler_type="linear",
        warmup_steps=round(0.1 * steps),
        weight_decay=0.01,
        adam_epsilon=1e-6,
        max_grad_norm=1.0,
        seed=seed,
        save_strategy="no",
        train_sampling_strategy="group_by_length",  # less padding
        report_to="none",
        use_cpu=True,
        bf16=bf16,
        logging_steps=20,
        disable_tqdm=True,
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(model())
    trainer = transformers.Trainer(
        model=network,
        args=arguments,
        train_dataset=features(train, names, tokenizer),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    found = trainer.predict(features(test, names, tokenizer))
    values = np.argmax(found.predictions, axis=-1) if names else found.predictions[:, 0]
    fraction = len(test) / (len(test) + LEFT_OUT.get(name, 0))
    return fraction * float(SCORES[name][1](found.label_ids, values))


def update_rows() -> None:
    """Compare the stored measurements of rows with the stored scores, and write their pages and the table."""
    for name in SCORES:
        path = run.FOLDER / "pages" / f"glue_{name}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if found.get("figures"):
            figures = recipe(name).beside_trainer([Figure(**figure) for figure in found["figures"]])
            found["figures"] = [dataclasses.asdict(figure) for figure in figures]
            path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tables.write(run.FOLDER, run.rows())


def main() -> None:
    """Train on each of the named sets with each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCORES))
    parser.add_argument("--bf16", action="store_true", help="compute products in bfloat16 (float32)")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(SCORES)):
        parser.error(f"there are no settings for {', '.join(unknown)}; choose from {', '.join(SCORES)}")
    made = {"torch": torch.__version__, "transformers": transformers.__version__}
    made["arithmetic"] = "bfloat16" if args.bf16 else "float32"
    for name in args.names:
        with tempfile.TemporaryDirectory() as temporary:
            SETS[name](pathlib.Path(temporary))
            scores = [score(name, seed, pathlib.Path(temporary), args.bf16) for seed in SEEDS]
        stored = json.loads(TRAINER.read_text()) if TRAINER.is_file() else {}
        settings = {"epochs": recipe(name).epochs, "learning_rate": recipe(name).rate}
        stored[name] = made | settings | {"scores": {SCORES[name][0]: scores}}
        TRAINER.parent.mkdir(exist_ok=True)
        TRAINER.write_text(json.dumps(stored, indent=1) + "\n")
        print(name, scores, flush=True)
    update_rows()


if __name__ == "__main__":
    main()
