"""`python -m experiments.finetune.transformers_side --model=DIR --train=FILE --test=FILE`: the same fine-tuning by transformers' Trainer.

The recipe of configs/finetune/classification.py in TrainingArguments: BertForSequenceClassification, batches padded to their longest row,
AdamW without decay on biases and norms, linear warm-up and decay, clipping, and one evaluation at the end. Needs torch, transformers and
accelerate.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.finetune.transformers_side", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=3e-5)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16, the fastest on processors with AMX")
    options = parser.parse_args(argv)
    for seed in map(int, options.seeds.split(",")):
        accuracy, seconds = run(options, seed)
        print(f"seed {seed}: test accuracy {accuracy:.4f}, {seconds:.0f} s of training", flush=True)
    return 0


def run(options: argparse.Namespace, seed: int, batch: int = 32, longest: int = 128) -> tuple[float, float]:
    """Return the test accuracy and the seconds of Trainer.train."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2)
    names = ["negative", "positive"]

    def features(path: str) -> list[dict]:
        rows = [json.loads(line) for line in open(path)]
        texts = tokenizer([row["text"] for row in rows], truncation=True, max_length=longest)
        return [
            {"input_ids": ids, "attention_mask": mask, "labels": names.index(row["label"])}
            for ids, mask, row in zip(texts["input_ids"], texts["attention_mask"], rows, strict=True)
        ]

    train, test = features(options.train), features(options.test)
    steps = options.epochs * -(-len(train) // batch)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            seed=seed,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=batch,
            learning_rate=options.rate,
            weight_decay=0.01,
            adam_epsilon=1e-6,
            max_grad_norm=1.0,
            lr_scheduler_type="linear",
            warmup_steps=round(0.1 * steps),
            optim="adamw_torch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            bf16=options.bf16,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=train,
            eval_dataset=test,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda found: {"accuracy": float((found[0].argmax(-1) == found[1]).mean())},
        )
        begin = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - begin
        return trainer.evaluate()["eval_accuracy"], seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
