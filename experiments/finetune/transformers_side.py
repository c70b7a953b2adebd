"""`python -m experiments.finetune.transformers_side --model=DIR --train=FILE --test=FILE`: the same fine-tuning in PyTorch.

The recipe of configs/finetune/classification.py by hand, as transformers' Trainer does it: BertForSequenceClassification, batches padded to
their longest row, AdamW without decay on biases and norms, linear warm-up and decay, clipping. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import numpy as np


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.finetune.transformers_side", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=3e-5)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    options = parser.parse_args(argv)
    for seed in map(int, options.seeds.split(",")):
        accuracy, seconds = run(options, seed)
        print(f"seed {seed}: test accuracy {accuracy:.4f}, {seconds:.0f} s of training", flush=True)
    return 0


def run(options: argparse.Namespace, seed: int, batch: int = 32, longest: int = 128) -> tuple[float, float]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=2)
    names = ["negative", "positive"]
    train, test = (([json.loads(line) for line in open(path)]) for path in (options.train, options.test))
    decayed = [
        value for name, value in model.named_parameters() if not name.endswith("bias") and "LayerNorm" not in name
    ]
    rest = [value for name, value in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.rate, eps=1e-6)
    steps = -(-options.epochs * len(train) // batch)
    schedule = get_linear_schedule_with_warmup(optimizer, round(0.1 * steps), steps)
    order = np.concatenate(
        [np.random.default_rng([seed, epoch]).permutation(len(train)) for epoch in range(options.epochs + 1)]
    )

    def inputs(rows: list[dict]) -> dict:
        texts = [row["text"] for row in rows]
        return tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")

    begin = time.perf_counter()
    model.train()
    for step in range(steps):
        rows = [train[i] for i in order[step * batch : (step + 1) * batch]]
        labels = torch.tensor([names.index(row["label"]) for row in rows])
        optimizer.zero_grad()
        model(**inputs(rows), labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - begin
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(test), batch):
            rows = test[start : start + batch]
            chosen = model(**inputs(rows)).logits.argmax(-1).tolist()
            right += sum(names[best] == row["label"] for best, row in zip(chosen, rows, strict=True))
    return right / len(test), seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
