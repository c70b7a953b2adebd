"""transformers' generate of GPT2LMHeadModel. `options`: dtype of the model, attention ("sdpa" or "eager"), cache (None or "static")."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from experiments.benchmarks.generate import workload
from experiments.benchmarks.generate.worker import Generate, serve
from experiments.benchmarks.generate.workload import NEW, Row


def build(row: Row, options: dict[str, Any]) -> tuple[Generate, dict[str, Any]]:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=workload.VOCAB_SIZE,
        n_embd=row.width,
        n_layer=row.layers,
        n_head=row.width // 64,
        n_positions=workload.MAX_LENGTH,
        bos_token_id=None,
        eos_token_id=None,
    )
    attention = options.get("attention", "sdpa")
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    model.to(getattr(torch, options["dtype"]))
    given = {"cache_implementation": options["cache"]} if options.get("cache") else {}

    def generate(ids: np.ndarray) -> np.ndarray:
        tokens = torch.from_numpy(ids).long()
        with torch.inference_mode():
            output = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=NEW,
                num_beams=row.beams,
                do_sample=False,
                pad_token_id=0,
                **given,
            )
        assert output.shape == (row.batch, workload.PROMPT + NEW)
        return output.numpy()

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    parameters = sum(p.numel() for p in model.parameters())
    return generate, {"parameters": parameters, "threads": torch.get_num_threads(), "versions": versions}


if __name__ == "__main__":
    serve(build)
