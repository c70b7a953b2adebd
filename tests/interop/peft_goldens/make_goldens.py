"""Make the folders next to this file: tiny random models, LoRA adapters of peft for them, and what both together answer.

    pip install torch==2.13.0 transformers==5.24.0 peft==0.21.2
    PYTHONPATH=tests python tests/interop/peft_goldens/make_goldens.py [tied | modules]

NAME/base is the model, NAME/adapter what peft's save_pretrained wrote, NAME/outputs.npz the ids and the merged model's logits. gpt2/NAME is
an adapter of gpt2/base that changes one use of its tied table, or both, and logits.npz the logits of peft's model without merging: merging
adds the change of one use to the other, as both are one array there. modules/NAME is an adapter of the golden model of that name in
../goldens, whose modules have other names in transformers than the tensors in its files.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, BertModel, GPT2Config, GPT2LMHeadModel

from helpers.golden_models import golden_path, load_golden, write_checkpoint

HERE = pathlib.Path(__file__).parent


def bert_config() -> BertConfig:
    return BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=40,
        max_position_embeddings=16,
        num_labels=3,
        initializer_range=0.3,
    )


def make(name: str, model: torch.nn.Module, base: torch.nn.Module, lora: LoraConfig) -> None:
    folder = HERE / name
    base.save_pretrained(folder / "base")
    tuned = get_peft_model(model, lora)
    with torch.no_grad():
        for path, parameter in tuned.named_parameters():
            if "lora_B" in path or "modules_to_save" in path:
                parameter.normal_(std=0.3)
    tuned.save_pretrained(folder / "adapter")
    tidy(folder / "adapter")
    ids = torch.arange(24).reshape(2, 12) * 7 % 39 + 1
    tuned.eval()
    apart = tuned(input_ids=ids).logits.detach()
    merged = tuned.merge_and_unload().eval()
    logits = merged(input_ids=ids).logits.detach()
    assert torch.allclose(apart, logits, atol=1e-4)
    np.savez(folder / "outputs.npz", ids=ids.numpy(), logits=logits.numpy())


def tied() -> None:
    """Randomness comes only from `torch.manual_seed(0)`."""
    for name, options in {
        "head_saved": {"target_modules": ["c_attn"], "modules_to_save": ["lm_head"]},
        "table_saved": {"target_modules": ["c_attn"], "modules_to_save": ["wte"]},
        "head_adapted": {"target_modules": ["c_attn", "lm_head"]},
        "table_adapted": {"target_modules": ["wte"]},
    }.items():
        torch.manual_seed(0)
        base, folder = GPT2LMHeadModel.from_pretrained(HERE / "gpt2/base"), HERE / "gpt2" / name
        tuned = get_peft_model(base, LoraConfig(r=2, lora_alpha=6, **options)).eval()
        with torch.no_grad():
            for path, parameter in tuned.named_parameters():
                if "lora_" in path or "modules_to_save" in path:
                    parameter.normal_(std=0.3)
        tuned.save_pretrained(folder)
        tidy(folder)
        ids = torch.from_numpy(np.load(HERE / "gpt2/outputs.npz")["ids"])
        np.savez_compressed(folder / "logits.npz", logits=tuned(input_ids=ids).logits.detach().numpy())


def modules() -> None:
    """Randomness comes only from `torch.manual_seed(0)`."""
    linear = "(q|k|v|o|up|gate|down)_proj"
    for name, targets in {
        "nomic_bert_masked": rf".*\.{linear}",
        "gte_masked": rf".*\.{linear}",
        "gemma3_multimodal_causal": rf".*language_model.*\.{linear}",
        "t5gemma2_generation": rf".*(text_model|decoder)\.layers\.\d+\.(self_attn|mlp)\.{linear}",
        "gpt_neox_causal": r".*\.query_key_value|lm_head",
    }.items():
        torch.manual_seed(0)
        golden, folder = load_golden(golden_path(name)), HERE / "modules" / name
        with tempfile.TemporaryDirectory() as directory:
            write_checkpoint(pathlib.Path(directory), golden)
            model = getattr(transformers, golden.kind).from_pretrained(directory, attn_implementation="eager")
        tuned = get_peft_model(model, LoraConfig(r=1, lora_alpha=3, target_modules=targets)).eval()
        with torch.no_grad():
            for path, parameter in tuned.named_parameters():
                if "lora_B" in path:
                    parameter.normal_(std=0.3)
        tuned.save_pretrained(folder)
        tidy(folder)
        given = {key: torch.from_numpy(value.astype(np.int64)) for key, value in golden.inputs.items()}
        np.savez_compressed(folder / "logits.npz", logits=tuned(**given).logits.detach().numpy())


def tidy(folder: pathlib.Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "somewhere/else"
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (folder / "README.md").unlink(missing_ok=True)


def main() -> None:
    if sys.argv[1:]:
        return {"tied": tied, "modules": modules}[sys.argv[1]]()
    torch.manual_seed(0)
    body = BertModel(bert_config())
    model = BertForSequenceClassification(bert_config())
    model.bert.load_state_dict(body.state_dict())
    lora = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["query", "value", "output.dense"],
        modules_to_save=["classifier"],
        rank_pattern={"value": 2},
        alpha_pattern={"value": 5},
    )
    make("bert", model, body, lora)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_layer=2, n_head=2, n_inner=24, vocab_size=40, n_positions=16, initializer_range=0.3)
    )
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=["c_attn", "attn.c_proj"], fan_in_fan_out=True, use_rslora=True)
    make("gpt2", gpt2, gpt2, lora)
    tied()
    modules()


if __name__ == "__main__":
    main()
