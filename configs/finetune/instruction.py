"""Instruction tuning: a causal model learns to answer; the loss is on answers only.

Command
    python -m lm_research.train --config=configs/finetune/instruction.py --workdir=runs/assistant \
        --config.train.init_from=MODEL_DIR --config.task.train=train.jsonl --config.task.validation=dev.jsonl

    Records have prompt and completion (or those given by --config.task.text_key and --config.task.label_key), Alpaca's instruction, input and
    output, or messages: a list of {"role", "content"}. MODEL_DIR is a GPT-2, Llama, Mistral or Qwen2 model, or a causal run of this library.
    Then: lm_research.pipeline("conversational", model="runs/assistant/model").

Hardware   untried on accelerators. A 7B model needs several: --config.mesh.preset=fsdp.
Time       planned: python -m lm_research.plan with the same flags and --topology or --hardware predicts it for a model and its records.
Result     Taori et al. 2023 give no loss; Wang et al. 2022 (Self-Instruct) rate answers by hand. What a run reports is eval_lm_loss_nats
           and eval_perplexity of held-out answers and, with --config.task.predict_with_generate=end, exact match. Planned, not measured here.

Sources
    Taori et al. 2023, Stanford Alpaca, its training command for Llama 7B: 3 epochs, batch 128, learning rate 2e-5, cosine after 3% of
    warm-up, no weight decay, 512 tokens.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from lm_research.config import default_config


def get_config() -> ConfigDict:
    """Alpaca's recipe."""
    config = default_config()
    config.model.scan_layers = False  # a loop copies activations into stacks and out
    config.task.update(name="instruction", text_key="prompt", label_key="completion", predict_with_generate="never")
    config.data.update(max_length=512, packing=True)
    config.model.update(family="gpt2", max_length=1024, dropout_rate=0.0, attention_dropout_rate=0.0)
    config.train.update(num_epochs=3.0, batch_size=128)
    config.optimizer.update(learning_rate=2e-5, weight_decay=0.0, clip_norm=1.0)
    config.schedule.update(name="cosine", warmup_ratio=0.03)
    config.eval.update(every_steps=200, num_samples=0)
    config.checkpoint.update(every_steps=200)
    return config
